"""Per-example gradients from one backward pass: hooks see what goes into each layer and the gradient of what comes out of it.

Examples do not mix in a network without batch statistics, so the gradient of the sum of their losses with respect to a layer's output
holds, example by example, the gradient of each one's own loss. One forward and one backward pass give the factors of all of them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from imprint.errors import EvidenceError, nearest
from imprint.gradients.general import Losses, per_example
from imprint.gradients.layer import LayerGradient, whole
from imprint.gradients.plan import Call, Layer, Plan, listening, planned, trainable
from imprint.gradients.rules import bias_alone, with_ones
from imprint.tasks import Batch, Classification, Regression, Task

Of = str | Callable[[Tensor, Tensor], Tensor]


class Capture:
    """Reads the gradients of a model's examples, batch by batch; it looks at the model once, at the first batch.

    Args:
        module: The model. It is put into evaluation mode while it is read: dropout is off.
        task: Gives the loss.
        of: What is differentiated: "loss" (nats, one per example), "margin" (`log p/(1-p)` of the target), or a function of outputs and
            target that gives one number per example.
        layers: Shell patterns of the names of the layers to keep; None for all with parameters that require gradients.
        note: Told in a sentence which layers take the general path, if any do; None warns of it.

    Raises:
        EvidenceError: The model's batch normalisation is in training mode and mixes examples, or the loss is one of whole batches.
    """

    def __init__(
        self,
        module: nn.Module,
        task: Task,
        *,
        of: Of = "loss",
        layers: Sequence[str] | str | None = None,
        note: Callable[[str], None] | None = None,
    ) -> None:
        if isinstance(of, str) and of not in ("loss", "margin"):
            raise EvidenceError(f"No gradient of '{of}'.", nearest(of, ["loss", "margin"]))
        if of == "loss" and not getattr(getattr(task, "criterion", None), "by_example", True):
            raise EvidenceError(
                "The run was trained with a loss of whole batches, which no example has by itself.", "Use of='margin'."
            )
        _refuse_batch_statistics(module)
        self.module, self.task, self.of, self.note = module, task, of, note
        self.patterns = (layers,) if isinstance(layers, str) else None if layers is None else tuple(layers)
        self._losses = Losses(module, self._value)
        self._plan: Plan | None = None

    def __call__(
        self, inputs: Shaped[Tensor, "example ..."], target: Shaped[Tensor, "example ..."]
    ) -> list[LayerGradient]:
        """The layers' gradients of a batch."""
        return self.with_values(inputs, target)[1]

    def with_values(
        self, inputs: Shaped[Tensor, "example ..."], target: Shaped[Tensor, "example ..."]
    ) -> tuple[Float[Tensor, " example"], list[LayerGradient]]:
        """What is differentiated, and the layers' gradients."""
        with evaluating(self.module):
            plan = self.plan(inputs, target)
            examples = len(inputs)
            with torch.enable_grad(), listening(self.module, plan.hooked, plan.layouts, examples) as calls:
                values = self._losses(inputs, target)
            heard = [call for name in plan.hooked for call in calls[name]]
            edges = [call.edge for call in heard if call.edge is not None]
            gradients = iter(torch.autograd.grad(values.sum(), edges, allow_unused=True) if edges else ())
            arriving = {id(call): next(gradients) if call.edge is not None else None for call in heard}
            names = [name for layer in plan.general for name in layer.parameters]
            general = per_example(self._losses, names, inputs, target) if names else {}
            found = []
            with torch.no_grad():
                for layer in plan.layers:
                    if layer.parameters:
                        parts = [general[name].flatten(1) for name in layer.parameters]
                        found.append(whole(layer.name, "other", torch.cat(parts, 1)))
                    else:
                        found += self._read(layer, plan, calls, arriving, examples)
        return values.detach(), found

    def plan(self, inputs: Tensor, target: Tensor) -> Plan:
        """How the model's layers are read; found out on these examples if it is not yet known."""
        if self._plan is None:
            with evaluating(self.module):
                self._plan = planned(self.module, self._losses, inputs, target, self.patterns)
            if self._plan.general:
                names = ", ".join(layer.name or type(self.module).__name__ for layer in self._plan.general)
                said = f"No rule reads the gradients of {names}: they take a pass of their own through torch.func."
                if self.note is None:
                    warnings.warn(said, stacklevel=3)
                else:
                    self.note(said)
        return self._plan

    def _value(self, module: nn.Module, inputs: Tensor, target: Tensor) -> Float[Tensor, " example"]:
        batch = Batch(inputs, target)
        outputs = self.task.outputs(module, batch)
        if callable(self.of):
            return self.of(outputs, target)
        return self.task.objective(outputs, batch) if self.of == "loss" else log_odds(self.task, outputs, batch)

    def _read(
        self, layer: Layer, plan: Plan, calls: dict[str, list[Call]], arriving: dict[int, Tensor | None], examples: int
    ) -> list[LayerGradient]:
        """The gradient of one layer from what hooks saw: several calls joined, an embedding with its tied head."""
        found: list[LayerGradient] = []
        biases: list[LayerGradient] = []
        shared = len(layer.modules) > 1
        for name, rule in zip(layer.modules, layer.rules, strict=True):
            module, layout = self.module.get_submodule(name), plan.layouts[name]
            own = trainable(module)
            pieces, alone = [], []
            for call in calls[name]:
                leading = rule.leading(module, call.inputs)
                gradient = arriving[id(call)]
                gradient = torch.zeros_like(call.output) if gradient is None else gradient
                left = layout.arrange(call.inputs, leading, examples)
                right = layout.arrange(gradient, leading, examples)
                left, right = (left if rule.kind == "embedding" else _float(left)), _float(right)
                if rule.kind in ("linear", "conv"):
                    first, second = rule.pieces(module, left, right)
                    if "bias" in own and (shared or "weight" not in own):
                        alone.append(bias_alone(second))
                    elif "bias" in own:
                        first = with_ones(module, first)
                    pieces.append((first, second))
                else:
                    pieces.append(rule.pieces(module, left, right))
            if alone:
                biases.append(_joined(f"{name}.bias", "affine", alone))
            if "weight" in own or rule.kind not in ("linear", "conv"):
                codes = module.num_embeddings if isinstance(module, nn.Embedding) else 0
                found.append(_joined(name, rule.kind, pieces, codes))
        return _tied(found) + biases


def capture(
    module: nn.Module,
    task: Task,
    inputs: Shaped[Tensor, "example ..."],
    target: Shaped[Tensor, "example ..."],
    *,
    of: Of = "loss",
    layers: Sequence[str] | str | None = None,
) -> list[LayerGradient]:
    """The gradient of each example's own loss with respect to each layer's weights, in factored form; arguments as of `Capture`.

    >>> from imprint.tasks import Classification
    >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> found = capture(model, Classification(("no", "yes")), torch.randn(5, 3), torch.tensor([0, 1, 1, 0, 1]))
    >>> [(layer.name, layer.kind, len(layer), layer.shape) for layer in found]
    [('0', 'linear', 5, (4, 4)), ('2', 'linear', 5, (5, 2))]
    """
    return Capture(module, task, of=of, layers=layers)(inputs, target)


def log_odds(task: Task, outputs: Float[Tensor, "example ..."], batch: Batch) -> Float[Tensor, " example"]:
    """`log p/(1-p)` of the probability that the model gives the target; higher = more clearly right.

    With `p = exp(-loss)` that is defined for every task in nats. Of a quantity it is minus the absolute error, in standard deviations
    of the target: the loss is a function of it alone there, too.

    >>> from imprint.tasks import Classification
    >>> batch = Batch(torch.empty(1), torch.tensor([1]))
    >>> log_odds(Classification(("no", "yes")), torch.tensor([[1.0, 3.0]]), batch)
    tensor([2.])
    """
    if isinstance(task, Classification) and outputs.dim() == 2:
        own = batch.target[:, None]
        return outputs.gather(1, own)[:, 0] - outputs.scatter(1, own, -torch.inf).logsumexp(1)
    if isinstance(task, Regression):
        return task.margin(outputs, batch.target)
    loss = task.loss(outputs, batch)
    return -loss - torch.log((-torch.expm1(-loss)).clamp(min=torch.finfo(loss.dtype).tiny))


def surprise(task: Task, loss: Float[Tensor, " example"]) -> Float[Tensor, " example"]:
    """How fast the loss falls as the margin (`log_odds`) rises: `1 - p`; of a quantity, the absolute error.

    >>> from imprint.tasks import Classification
    >>> surprise(Classification(("no", "yes")), torch.tensor([0.0, 1.0])).round(decimals=3)
    tensor([0.0000, 0.6320])
    """
    return (2 * loss).sqrt() if isinstance(task, Regression) else -torch.expm1(-loss)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode, and each part back to its own mode at the end."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def _refuse_batch_statistics(module: nn.Module) -> None:
    for name, part in module.named_modules():
        if isinstance(part, _BatchNorm) and (part.training or part.running_mean is None):
            raise EvidenceError(
                f"The batch normalisation '{name}' takes its statistics from the batch: one example's gradient depends on the others.",
                "Call module.eval() first, which takes the recorded statistics; or use GroupNorm."
                if part.running_mean is not None
                else "It records no statistics: use GroupNorm, or track_running_stats=True.",
            )


def _float(values: Tensor) -> Tensor:
    return (
        values.float() if values.dtype in (torch.float16, torch.bfloat16) or not values.is_floating_point() else values
    )


def _joined(name: str, kind: str, pieces: list[tuple[Tensor, Tensor]], codes: int = 0) -> LayerGradient:
    """Calls of one layer as positions of one; gradients that are at hand themselves are added up."""
    if len(pieces) == 1:
        return LayerGradient(name, kind, *pieces[0], codes=codes)
    if kind in ("affine", "other"):
        return whole(name, kind, torch.stack([right[:, 0] for _, right in pieces]).sum(0))
    left, right = zip(*pieces, strict=True)
    return LayerGradient(name, kind, torch.cat(left, 1), torch.cat(right, 1), codes=codes)


def _tied(found: list[LayerGradient]) -> list[LayerGradient]:
    """Uses of one weight as one gradient: all embeddings joined, all linear layers joined, and these two tied."""
    if len(found) < 2:
        return found
    by_kind: dict[str, list[LayerGradient]] = {}
    for one in found:
        by_kind.setdefault(one.kind, []).append(one)
    joined = [
        _joined(some[0].name, kind, [(one.inputs, one.outputs) for one in some], some[0].codes)
        for kind, some in by_kind.items()
    ]
    if len(joined) == 1:
        return joined
    embedding, head = joined
    return [
        LayerGradient(
            embedding.name, "embedding", embedding.inputs, embedding.outputs, codes=embedding.codes, tied=head
        )
    ]


__all__ = ["Capture", "Of", "capture", "evaluating", "log_odds", "surprise"]
