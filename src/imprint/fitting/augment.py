"""Augmentation of image batches on tensors: mirrored and shifted copies, drawn with the step's own generator.

Only for natural colour images: a mirrored glyph is another glyph, and a shifted sensor reading another reading.
"""

from __future__ import annotations

import torch
from jaxtyping import Shaped
from torch import Tensor

AUGMENTS = ("none", "flip-crop")
# Shift of at most an eighth of the side, as the 4 pixels of 32 that CIFAR recipes use.
SHIFT = 1 / 8


def flip_crop(
    images: Shaped[Tensor, "example channel height width"], random: torch.Generator
) -> Shaped[Tensor, "example channel height width"]:
    """Mirror half of the images left to right, and shift each by up to an eighth of its sides; edges are repeated.

    >>> flip_crop(torch.full((2, 3, 8, 8), 7, dtype=torch.uint8), torch.Generator().manual_seed(0)).unique()
    tensor([7], dtype=torch.uint8)
    """
    count, _, height, width = images.shape
    device = random.device
    mirrored = torch.rand(count, 1, generator=random, device=device) < 0.5
    down = torch.randint(-int(height * SHIFT), int(height * SHIFT) + 1, (count, 1), generator=random, device=device)
    right = torch.randint(-int(width * SHIFT), int(width * SHIFT) + 1, (count, 1), generator=random, device=device)
    y = (torch.arange(height, device=device) + down).clamp(0, height - 1)
    x = (torch.arange(width, device=device) + right).clamp(0, width - 1)
    x = torch.where(mirrored, width - 1 - x, x)
    example = torch.arange(count, device=device)[:, None, None]
    # One gather for the whole batch: [example, height, width, channel], then channels first again.
    return images.permute(0, 2, 3, 1)[example, y[:, :, None], x[:, None, :]].permute(0, 3, 1, 2).contiguous()
