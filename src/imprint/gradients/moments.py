"""The running means of squared gradients that Adam kept, laid out as per-example gradients are, so that the two can be put together.

Adam does not step along a gradient g, but along g / sqrt(v + epsilon) (and what it remembers of gradients before), with the running
mean v of squared gradients: weights that rarely get a gradient count more. A run keeps v with its last checkpoint, parameter by parameter;
per-example gradients come layer by layer, a bias as the last row of its weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from safetensors import safe_open
from torch import Tensor, nn

from imprint.errors import EvidenceError
from imprint.gradients.examples import Examples, examples_of
from imprint.gradients.layer import LayerGradient
from imprint.gradients.plan import trainable
from imprint.gradients.products import full

if TYPE_CHECKING:
    from imprint.recording import Run


@dataclass(frozen=True, eq=False)
class Moments:
    """Adam's running means of squared gradients at a checkpoint.

    Attributes:
        second: By layer, each as long as a gradient of the layer.
        beta: How much of them a step keeps.
        epsilon: What is added to them before their root is taken.
    """

    second: dict[str, Float[Tensor, " number"]]
    beta: float = 0.999
    epsilon: float = 1e-8

    def scaled(self, layer: LayerGradient) -> Float[Tensor, "example number"]:
        """Each example's gradient of a layer as Adam would scale it if the example were the next batch.

        >>> layer = LayerGradient("head", "linear", torch.ones(1, 1, 2), torch.tensor([[[3.0]]]))
        >>> Moments({"head": torch.tensor([0.0, 9.0])}, beta=1.0, epsilon=1.0).scaled(layer)
        tensor([[3.0000, 0.9487]])
        """
        gradient = full(layer).flatten(1)
        mean = self.second[layer.name].to(gradient)
        square = gradient.square().mul_(1 - self.beta).add_(mean, alpha=self.beta).add_(self.epsilon)
        return gradient.div_(square.sqrt_())


def moments_of(run: Run, checkpoint: str | int = "last") -> Moments:
    """Adam's running means of squared gradients that a run keeps with a checkpoint.

    Raises:
        EvidenceError: It keeps none: the run was not trained by Adam in our loop, or the checkpoint is not the last.
    """
    found = run.checkpoints.named(str(checkpoint))
    groups = found.description.get("optimizer", {}).get("param_groups", [{}])
    if not found.resumable or "betas" not in groups[0]:
        raise EvidenceError(
            f"The run {run.path} keeps no moments of Adam with its checkpoint {found.name}.",
            "The last checkpoint of imprint.fit(Learner(optimizer='adamw')) has them; or choose 'less', which reads plain gradients.",
        )
    found.verify()
    examples = examples_of(run, run.rows(None)[:4], checkpoint)
    named = [name for name, one in examples.capture.module.named_parameters() if one.requires_grad]
    with safe_open(found.path("state.safetensors"), framework="pt") as file:
        second = {name: file.get_tensor(f"optimizer/{number}/exp_avg_sq") for number, name in enumerate(named)}
    return Moments(by_layer(examples, second), groups[0]["betas"][1], groups[0]["eps"])


def by_layer(examples: Examples, values: Mapping[str, Tensor]) -> dict[str, Float[Tensor, " number"]]:
    """One number per weight, by parameter, as a gradient of each layer has them.

    Args:
        examples: Whose gradients.
        values: Parameter's name in the module (tied ones by the first) -> numbers in its shape.
    """
    layers, module = examples.probe, examples.capture.module
    apart = {one.name: one.parameters for one in examples.capture.plan(*examples.read(np.arange(1))).general}
    first = {id(one): name for name, one in module.named_parameters()}
    every = module.named_parameters(remove_duplicate=False)
    known = {name: values[first[id(one)]] for name, one in every if first[id(one)] in values}
    return {
        one.name: _joined(known[name] for name in apart[one.name])
        if one.name in apart
        else arranged(one, module, known)
        for one in layers
    }


def arranged(layer: LayerGradient, module: nn.Module, values: Mapping[str, Tensor]) -> Float[Tensor, " number"]:
    """Numbers of a layer's parameters in the order of `full(layer)`."""
    if layer.name in values:
        return values[layer.name].flatten()
    part = module.get_submodule(layer.name)
    own = {name: values[f"{layer.name}.{name}" if layer.name else name] for name in trainable(part)}
    if layer.kind == "embedding":
        return own["weight"].flatten()
    if layer.kind not in ("linear", "conv"):
        return _joined(own[name] for name in ("weight", "bias") if name in own)
    # Hugging Face's Conv1D is a linear layer whose weights stand the other way round.
    weight = (
        own["weight"] if type(part).__name__ == "Conv1D" and own["weight"].dim() == 2 else own["weight"].flatten(1).T
    )
    bias = [own["bias"][None]] if layer.shape[0] == len(weight) + 1 else []
    return torch.cat([weight, *bias]).flatten()


def _joined(parts: Iterable[Tensor]) -> Float[Tensor, " number"]:
    return torch.cat([one.flatten() for one in parts])
