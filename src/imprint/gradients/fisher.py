"""Whose gradients the Fisher matrix is the second moment of.

| fisher      | gradients of the examples                                                                                             |
|-------------|-----------------------------------------------------------------------------------------------------------------------|
| `true`      | `J^T H^(1/2) s` with the Jacobian J of the outputs, the loss's Hessian H in the outputs and random signs s             |
| `drawn`     | those of labels that are drawn from the model's own predictions                                                        |
| `empirical` | those of the labels of the data                                                                                        |

The first two have the same mean, the Gauss-Newton matrix `J^T H J`, which stays what it is when the model has learned its labels by heart.
But of a model that is sure of most examples, hardly any drawn label has a gradient, and those that have are enormous; random signs
give every example a gradient of its expected size, at the same cost. Labels of the data need no random numbers, and vanish where they
are fitted.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from imprint.errors import EvidenceError, nearest
from imprint.fitting import as_input, generator
from imprint.gradients.capture import Capture, evaluating
from imprint.gradients.curvature import Stream
from imprint.gradients.examples import Examples
from imprint.gradients.layer import LayerGradient
from imprint.tasks import Batch, Classification, Multilabel, Regression, Task

FISHERS = ("true", "drawn", "empirical")
# Gradients are kept between passes if all of them take no more bytes.
KEPT_BYTES = 2**28


def root(
    task: Task, outputs: Float[Tensor, "example *axes"], signs: Float[Tensor, "example *axes"]
) -> Float[Tensor, "example *axes"]:
    """`H^(1/2) s`: vectors whose mean outer product over random signs is the loss's Hessian in the outputs.

    Raises:
        EvidenceError: The Hessian of the task's loss is not known here.

    >>> root(Regression(), torch.tensor([[3.0], [5.0]]), torch.tensor([[1.0], [-1.0]])).tolist()
    [[1.0], [-1.0]]
    """
    if isinstance(task, Classification):  # (1 - p 1^T) diag(sqrt p) s has the covariance diag(p) - p p^T
        p = outputs.softmax(-1)
        scaled = p.sqrt() * signs
        return scaled - p * scaled.sum(-1, keepdim=True)
    if isinstance(task, Multilabel):  # the loss is a mean over labels
        p = outputs.sigmoid()
        return (p * (1 - p) / outputs.shape[-1]).sqrt() * signs
    if isinstance(task, Regression):
        return signs
    raise EvidenceError(
        f"The curvature of the loss of a {task.name} task is not known.",
        "Take the empirical Fisher: fisher='empirical'.",
    )


def drawn(
    task: Task, outputs: Shaped[Tensor, "example *axes"], random: torch.Generator
) -> Shaped[Tensor, "example *axes"]:
    """Targets drawn from what the model says of them.

    Classes from the softmax, labels each from its sigmoid, quantities from a Gaussian around the prediction whose variance is that of
    the loss (half a squared error is the negative log-likelihood of variance 1).

    Raises:
        EvidenceError: The task gives no distribution.

    >>> drawn(Classification(("no", "yes")), torch.tensor([[9.0, -9.0], [-9.0, 9.0]]), torch.Generator().manual_seed(0))
    tensor([0, 1])
    """
    if isinstance(task, Classification):
        flat = outputs.flatten(0, -2).softmax(-1)
        return torch.multinomial(flat, 1, generator=random).view(outputs.shape[:-1])
    if isinstance(task, Multilabel):
        return torch.bernoulli(outputs.sigmoid(), generator=random)
    if isinstance(task, Regression):
        noise = torch.randn(len(outputs), generator=random, dtype=outputs.dtype, device=outputs.device)
        return outputs.squeeze(1) + noise
    raise EvidenceError(
        f"No labels can be drawn from a {task.name} model.", "Take the empirical Fisher: fisher='empirical'."
    )


def gradients(examples: Examples, fisher: str = "true", seed: int = 0, keep: bool = True) -> Stream:
    """Gradients of examples as curvature is fitted to them; the same in each pass.

    Args:
        examples: The examples, with the model.
        fisher: One of `FISHERS`.
        seed: Of the random signs or labels.
        keep: Whether they stay in memory for the next pass, if they are few; for one pass that only costs memory.

    Raises:
        EvidenceError: There is no such Fisher, or the task gives none but the empirical one.
    """
    if fisher not in FISHERS:
        raise EvidenceError(f"No Fisher '{fisher}'.", nearest(fisher, FISHERS))
    capture, task = examples.capture, examples.capture.task
    if fisher == "true":

        def along(outputs: Tensor, signs: Tensor) -> Tensor:
            return (outputs * root(task, outputs.detach(), signs)).flatten(1).sum(1)

        capture = Capture(capture.module, task, of=along, layers=capture.patterns, note=capture.note)
    kept: list[list[LayerGradient]] | None = None

    def stream() -> Iterator[list[LayerGradient]]:
        nonlocal kept
        if kept is not None:
            yield from kept
            return
        keeping: list[list[LayerGradient]] | None = [] if keep else None
        spent = 0
        for inputs, target in blocks(examples, fisher, seed):
            found = capture(inputs, target)
            spent += sum(layer.nbytes for layer in found)
            if keeping is not None and spent <= KEPT_BYTES:
                keeping.append(found)
            else:
                keeping = None
            yield found
        kept = keeping

    return stream


def blocks(examples: Examples, fisher: str = "empirical", seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """(inputs, targets) of examples, some at a time, on the model's device.

    What stands for the targets is, for the true Fisher, random signs of the shape of the outputs.
    """
    module, task = examples.capture.module, examples.capture.task
    for number, begin in enumerate(range(0, len(examples), examples.size)):
        inputs, target = examples.read(np.arange(begin, min(begin + examples.size, len(examples))))
        inputs, target = as_input(inputs.to(examples.device), examples.device), target.to(examples.device)
        random = generator(seed, "fisher", number, device=examples.device)
        if fisher == "drawn":
            target = drawn(task, outputs_of(module, task, inputs, target), random).to(target.dtype)
        elif fisher == "true":
            like = outputs_of(module, task, inputs[:1], target[:1])
            bits = torch.randint(0, 2, (len(inputs), *like.shape[1:]), generator=random, device=examples.device)
            target = bits.to(like.dtype) * 2 - 1
        yield inputs, target


@torch.no_grad()
def outputs_of(module: nn.Module, task: Task, inputs: Tensor, target: Tensor) -> Tensor:
    """What the model says, in evaluation mode."""
    with evaluating(module):
        return task.outputs(module, Batch(inputs, target))
