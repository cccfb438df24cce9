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
from imprint.gradients.curvature_evidence import fitted
from imprint.gradients.examples import check_differentiable
from imprint.gradients.moments import by_layer
from imprint.recording.model import narrow
from imprint.recording.needs import Curvature as CurvatureNeed

if TYPE_CHECKING:
    from imprint.gradients.curvature import Curvature


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

    return Examples(read, len(part), Capture(job.module.eval(), job.task, note=lambda _: None), job.device)


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
    numbers, and not kept.
    """
    need = CurvatureNeed(approximation=approximation, fisher=fisher)
    if part is None:
        if is_final(job) and job.run.has(need):
            return job.run.gather([need])[need.name]
        every = torch.cat([job.forget.places, job.retain.places]).sort().values
        part = Part(job.data, job.forget.split, every)
    return fitted(approximation, examples_of(job, part), fisher, derive(job.run.learner.seed, "curvature"))


def is_final(job: Forgetting) -> bool:
    """Whether the job's module has the final weights of its run, and not those of another model."""
    own, final = job.module.state_dict(), job.run.model().module.state_dict()
    return own.keys() == final.keys() and all(torch.equal(own[name].cpu(), final[name].cpu()) for name in own)
