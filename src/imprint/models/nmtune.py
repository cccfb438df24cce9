"""NMTune: a head for features of a network that was itself trained on wrong labels (Chen et al. 2024, arXiv:2309.17002).

Label noise in pre-training changes the shape of the feature space: it spreads out, its first directions lose weight, and what is
learned on it carries over less well to other data. The head is a small residual network on the frozen features and a linear layer on
what it gives; besides the loss, three terms of each batch shape what it gives, `z`, of the frozen features `x`:

    1.0   |z/|z| - x/|x||^2, mean over numbers            it keeps what the features knew
    0.04  sum of squared covariances off the diagonal of z / d       it takes apart what goes together
    0.001 less the mean share of the 5 largest singular values of z   it gives weight back to the first directions

with the weights of the authors' code. Changed from it: LayerNorm in the place of BatchNorm (an example's output never depends on its
batch here), one view of an example and not two (features are made once), at most 1024 hidden units.

The terms are of a batch, not of an example: members of a fleet are trained one by one, and gradients of examples are those of the
loss alone.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

RATIO, MOST_HIDDEN = 4, 1024
CONSISTENCY, COVARIANCE, DOMINANCE = 1.0, 0.04, 0.001
DOMINANT = 5


class NMTune(nn.Module):
    """The residual network, the linear layer on it, and the penalty of the last batch.

    Args:
        shape: Of one example's features; they are flattened.
        width: How many outputs.
    """

    def __init__(self, shape: tuple[int, ...], width: int) -> None:
        super().__init__()
        size = math.prod(shape)
        hidden = min(RATIO * size, MOST_HIDDEN)
        self.body = nn.Sequential(
            nn.Linear(size, hidden), nn.LayerNorm(hidden), nn.ReLU(), nn.Linear(hidden, size, bias=True)
        )
        self.scale = nn.Parameter(torch.ones(size))
        self.head = nn.Linear(size, width)
        self._batch: tuple[Tensor, Tensor] | None = None

    def features(self, inputs: Tensor) -> Float[Tensor, "example feature"]:
        """The frozen features, moved."""
        flat = inputs.flatten(1)
        moved: Tensor = self.scale * self.body(flat) + flat
        return moved

    def forward(self, inputs: Tensor) -> Float[Tensor, "example output"]:
        moved = self.features(inputs)
        self._batch = (inputs.flatten(1).detach(), moved) if self.training else None
        outputs: Tensor = self.head(moved)
        return outputs

    def penalty(self) -> Float[Tensor, ""]:
        """What the loop adds to the loss of the batch that was just read (in training mode); asked once per batch."""
        if self._batch is None:
            return torch.zeros(())
        (inputs, moved), self._batch = self._batch, None
        return regularised(inputs.float(), moved.float())


def regularised(inputs: Float[Tensor, "example feature"], moved: Float[Tensor, "example feature"]) -> Float[Tensor, ""]:
    """The three terms, weighted and added up.

    Args:
        inputs: Frozen features of a batch.
        moved: What the network makes of them.

    >>> regularised(torch.eye(2), torch.eye(2)).round(decimals=4)             # covariance -1/2 twice: 0.04 * 0.5 / 2; dominance 1/2
    tensor(0.0095)
    """
    return CONSISTENCY * consistency(inputs, moved) + COVARIANCE * covariance(moved) - DOMINANCE * dominance(moved)


def consistency(inputs: Float[Tensor, "example feature"], moved: Float[Tensor, "example feature"]) -> Float[Tensor, ""]:
    """Mean squared difference of the directions."""
    return F.mse_loss(F.normalize(moved, dim=1), F.normalize(inputs, dim=1))


def covariance(moved: Float[Tensor, "example feature"]) -> Float[Tensor, ""]:
    """Sum of the squared covariances of different features, per feature; zero of a batch of one."""
    centred = moved - moved.mean(0)
    found = centred.T @ centred / max(1, len(moved) - 1)
    return (found.square().sum() - found.diagonal().square().sum()) / moved.shape[1]


def dominance(moved: Float[Tensor, "example feature"]) -> Float[Tensor, ""]:
    """Mean of the largest singular values, as shares of the sum of all."""
    values = torch.linalg.svdvals(moved)
    return values[:DOMINANT].mean() / values.sum().clamp(min=torch.finfo(values.dtype).tiny)
