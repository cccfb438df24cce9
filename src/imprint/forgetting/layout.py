"""Between two orders of a model's weights: by layer, as per-example gradients and curvature have them, and by parameter, as modules do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

from imprint.fitting import derive
from imprint.forgetting.job import Forgetting, Part
from imprint.forgetting.stepping import weights
from imprint.gradients import Examples
from imprint.gradients.capture import Capture
from imprint.gradients.curvature import LayerCurvature
from imprint.gradients.curvature_evidence import fitted
from imprint.gradients.diagonal import Diagonal
from imprint.gradients.examples import check_differentiable
from imprint.gradients.moments import by_layer
from imprint.recording.model import narrow
from imprint.recording.needs import Curvature as CurvatureNeed

if TYPE_CHECKING:
    from imprint.gradients.curvature import Curvature

# Bytes of gradients' factors at a time. Squares of them are summed a tenth faster so (a small CNN) than in the blocks of other passes.
BLOCK = 2**25


def examples_of(job: Forgetting, part: Part) -> Examples:
    """The examples of a part with the job's module as it is now, to take gradients of their losses block by block.

    Raises:
        EvidenceError: The model has no gradients, or the parent was trained with a loss of whole batches.
        MethodError: It has no weights to change.
    """
    check_differentiable(job.run)
    weights(job)

    def read(which: np.ndarray) -> tuple[Tensor, Tensor]:
        places = part.places[torch.from_numpy(np.asarray(which))]
        return narrow(job.module, part.inputs(places)), part.data.target[part.split[places]]

    capture = Capture(job.module.eval(), job.task, note=lambda _: None)
    return Examples(read, len(part), capture, job.device, block=BLOCK)


def by_parameter(
    examples: Examples, layers: Mapping[str, Shaped[Tensor, "..."]], fill: float = 0.0
) -> dict[str, Shaped[Tensor, "..."]]:
    """Numbers by layer, in the order of a gradient of each, as numbers by parameter, in its shape.

    Args:
        examples: Whose layers.
        layers: Name of a layer -> as many numbers as a gradient of it has.
        fill: For weights that no layer has.
    """
    named = {name: one for name, one in examples.capture.module.named_parameters() if one.requires_grad}
    sizes = [one.numel() for one in named.values()]
    numbered = torch.split(torch.arange(sum(sizes)), sizes)
    where = by_layer(
        examples, {name: own.view(one.shape) for own, (name, one) in zip(numbered, named.items(), strict=True)}
    )
    first = next(iter(layers.values()))
    vector = first.new_full((sum(sizes),), fill)
    for name, values in layers.items():
        vector[where[name].to(vector.device)] = values.flatten().to(vector)
    return {
        name: own.view(one.shape) for own, (name, one) in zip(torch.split(vector, sizes), named.items(), strict=True)
    }


def curvature_of(job: Forgetting, part: Part | None, approximation: str, fisher: str) -> Curvature:
    """The curvature of a part's loss at the job's module; None for all training examples.

    What the run recorded of all of them is taken where the module has the run's final weights; else it is fitted here, to the same
    numbers, and not kept with the run.
    """
    if part is None:
        there = known(job, approximation, fisher)
        if there is not None:
            return there
        need = CurvatureNeed(approximation=approximation, fisher=fisher)
        if need not in job.memory:
            every = torch.cat([job.forget.places, job.retain.places]).sort().values
            job.memory[need] = _fitted(job, Part(job.data, job.forget.split, every), approximation, fisher)
        found: Curvature = job.memory[need]
        return found
    return _fitted(job, part, approximation, fisher)


def known(job: Forgetting, approximation: str, fisher: str) -> Curvature | None:
    """The curvature of all training examples, if the run recorded it of these weights, or it was fitted to them before."""
    need = CurvatureNeed(approximation=approximation, fisher=fisher)
    if is_final(job) and job.run.has(need):
        return job.run.gather([need])[need.name]
    return job.memory.get(need)


def diagonals(job: Forgetting, fisher: str = "empirical") -> tuple[Curvature, Curvature]:
    """The diagonal curvature of the forgotten examples, and of all; no example is looked at twice."""
    gone, every = curvature_of(job, job.forget, "diagonal", fisher), known(job, "diagonal", fisher)
    if every is None:
        kept = curvature_of(job, job.retain, "diagonal", fisher)
        every = job.memory[CurvatureNeed(approximation="diagonal", fisher=fisher)] = pooled(gone, kept)
    return gone, every


def pooled(first: Curvature, second: Curvature) -> Curvature:
    """The diagonal curvature of two sets of examples together: the mean over all of them."""
    examples = first.examples + second.examples

    def mean(one: Tensor, other: Tensor) -> Tensor:
        return (first.examples * one.double() + second.examples * other.double()).div(examples).to(one.dtype)

    layers = {
        name: LayerCurvature(
            *(mean(getattr(one, part), getattr(second[name], part)) for part in ("values", "inputs", "outputs"))
        )
        for name, one in first.layers.items()
    }
    return Diagonal(layers, examples)


def _fitted(job: Forgetting, part: Part, approximation: str, fisher: str) -> Curvature:
    return fitted(approximation, examples_of(job, part), fisher, derive(job.run.learner.seed, "curvature"))


def is_final(job: Forgetting) -> bool:
    """Whether the job's module has the final weights of its run, and not those of another model."""
    own, final = job.module.state_dict(), job.run.model().module.state_dict()
    return own.keys() == final.keys() and all(torch.equal(own[name].cpu(), final[name].cpu()) for name in own)
