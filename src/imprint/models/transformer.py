"""A small transformer for texts that are read word by word: two layers, trained from nothing in a minute.

Pre-norm (Xiong et al. 2020, arXiv:2002.04745), learned positions, a mean over the words' last states, one linear layer. It is written with
plain layers, and its forward takes the way in which a layer is called: what stacks many models into one (`imprint.fleets.stacking`) runs
the same lines with layers of its own.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

WIDTH, HEADS, LAYERS = 128, 4, 2
DROPOUT = 0.2
# Standard deviation of initial embeddings (GPT-2's): the layers decide from the start, and not the random table.
SPREAD = 0.02
PADDING = 0

# How a layer is called.
Apply = Callable[[nn.Module, Tensor], Tensor]


def call(layer: nn.Module, inputs: Tensor) -> Tensor:
    """The layer's own forward."""
    return layer(inputs)


class Block(nn.Module):
    """Attention among the words of a text, then two linear layers on each word; both are added to what came in."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.before_attention, self.before_feed = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mix, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.drop = nn.Dropout(DROPOUT)

    def forward(self, states: Tensor, attended: Bool[Tensor, "... position"], apply: Apply = call) -> Tensor:
        mixed = attention(apply(self.mix, apply(self.before_attention, states)), attended)
        states = states + apply(self.drop, apply(self.out, mixed))
        fed = F.gelu(apply(self.up, apply(self.before_feed, states)))
        return states + apply(self.drop, apply(self.down, fed))


class Transformer(nn.Module):
    """Token codes -> outputs.

    Args:
        codes: How many codes there are; 0 is padding.
        length: Places in a row.
        width: How many outputs.

    >>> Transformer(codes=50, length=7, width=3)(torch.tensor([[4, 9, 2, 0, 0, 0, 0]])).shape
    torch.Size([1, 3])
    """

    def __init__(self, codes: int, length: int, width: int) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(codes, WIDTH, padding_idx=PADDING), nn.Embedding(length, WIDTH)
        self.drop = nn.Dropout(DROPOUT)
        self.blocks = nn.ModuleList([Block() for _ in range(LAYERS)])
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, width)
        for table in (self.tokens, self.positions):
            nn.init.normal_(table.weight, std=SPREAD)
        with torch.no_grad():
            self.tokens.weight[PADDING] = 0

    def forward(self, codes: Int64[Tensor, "... position"], apply: Apply = call) -> Float[Tensor, "... output"]:
        """Outputs.

        Args:
            codes: Rows of codes; leading axes are kept.
            apply: How layers are called.
        """
        return apply(self.head, mean(self.states(codes, apply), shares(codes)))

    def features(self, codes: Int64[Tensor, "... position"]) -> Float[Tensor, "... feature"]:
        """The mean of the words' last states: what the last layer reads."""
        return mean(self.states(codes), shares(codes))

    def states(self, codes: Int64[Tensor, "... position"], apply: Apply = call) -> Float[Tensor, "... position width"]:
        """The last state of each place of a row."""
        places = torch.arange(codes.shape[-1], device=codes.device)
        # A row of padding alone attends to its first place, so that no softmax is over nothing.
        attended = (codes != PADDING) | (places == 0)
        states = apply(self.drop, apply(self.tokens, codes) + apply(self.positions, places.expand(codes.shape)))
        for block in self.blocks:
            states = block(states, attended, apply)
        return apply(self.norm, states)


def attention(
    mixed: Float[Tensor, "... position three_widths"], attended: Bool[Tensor, "... position"]
) -> Float[Tensor, "... position width"]:
    """Attention of several heads to the attended places, from queries, keys and values side by side."""
    *leading, length, width = mixed.shape
    heads = mixed.reshape(-1, length, 3, HEADS, width // (3 * HEADS)).permute(2, 0, 3, 1, 4)
    query, key, value = heads.unbind(0)
    found = F.scaled_dot_product_attention(query, key, value, attn_mask=attended.reshape(-1, 1, 1, length))
    return found.transpose(1, 2).reshape(*leading, length, width // 3)


def shares(codes: Int64[Tensor, "... position"]) -> Float[Tensor, "... position"]:
    """What each place counts in the mean over the words of its row; padding counts nothing."""
    real = (codes != PADDING).float()
    return real / real.sum(-1, keepdim=True).clamp(min=1)


def mean(values: Float[Tensor, "... position n"], share: Float[Tensor, "... position"]) -> Float[Tensor, "... n"]:
    """The mean over places."""
    return (share.to(values.dtype)[..., None, :] @ values)[..., 0, :]
