"""Forgetting helped by sparsity: a penalty on the sizes of weights while fine-tuning, or pruning before it.

A model with few weights has little room for what single examples were like; Jia et al. 2023 find that fine-tuning on the retained examples
then comes nearer to a retrained model.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from imprint.errors import MethodError
from imprint.forgetting.descent import NONE
from imprint.forgetting.job import Forgetting, Forgotten
from imprint.forgetting.stepping import EPOCHS, RATE, Share, epochs_of, fine_tune, rate_of, weights, within
from imprint.methods import method

SOURCE = "Jia et al. 2023, arXiv:2304.04934, github.com/OPTML-Group/Unlearn-Sparse"
SEARCH = {
    "l1-sparse": {
        "learning_rate": (Share(RATE), Share(0.1), Share(1.0)),
        "alpha": (1e-4, 1e-5, 1e-3),
        "epochs": (Share(EPOCHS), Share(0.3)),
    },
    "prune-fine-tune": {
        "sparsity": (0.8, 0.5, 0.95),
        "learning_rate": (Share(1.0), Share(0.3)),
        "epochs": (Share(EPOCHS), Share(0.3)),
    },
}


@method("forget", "l1-sparse", higher="forgets more", needs=(), source=SOURCE, exact=False, search=SEARCH["l1-sparse"])
def l1_sparse(
    job: Forgetting, *, alpha: float = 1e-4, epochs: int | None = None, learning_rate: float | None = None
) -> Forgotten:
    """Fine-tune on the retained examples with a penalty on the sum of the sizes of all weights, which fades to nothing.

        loss of the retained + alpha (1 - epoch / epochs) |weights|_1

    Args:
        job: The request.
        alpha: Weight of the penalty in the first epoch. The authors choose it for each data set; later users of their code take 1e-4.
        epochs: Passes over the retained examples; None for a tenth of the parent's.
        learning_rate: None for three tenths of the parent's peak.
    """
    alpha, count = within("alpha", alpha, 0, 1e6), epochs_of(job, epochs)
    changed = weights(job)

    def penalty(epoch: int) -> Float[Tensor, ""]:
        return alpha * (1 - epoch / count) * torch.stack([one.abs().sum() for one in changed]).sum()

    steps = fine_tune(job, job.retain, count, rate_of(job, learning_rate), penalty=penalty)
    return Forgotten(job.module, False, NONE, steps)


@method(
    "forget", "prune-fine-tune", higher="forgets more", needs=(), source=SOURCE, exact=False, search=SEARCH["prune-fine-tune"],
)  # fmt: skip
def prune_fine_tune(
    job: Forgetting, *, sparsity: float = 0.8, epochs: int | None = None, learning_rate: float | None = None
) -> Forgotten:
    """Set the smallest weights to zero for good, then fine-tune the others on the retained examples.

    The smallest of all hidden linear layers and convolutions together go; biases, norms and the output layer stay. The authors train the
    pruned model on all examples before they fine-tune it, which would bring back what is to be forgotten; here it is only fine-tuned.

    Args:
        job: The request.
        sparsity: Share of weights that become zero. The authors take 0.95 of a ResNet; of an MLP on digits that costs 3 points of accuracy,
            and 0.8 none.
        epochs: Passes over the retained examples; None for a tenth of the parent's.
        learning_rate: None for the parent's peak: a pruned model has to be healed.

    Raises:
        MethodError: There is no such layer.
    """
    sparsity = within("sparsity", sparsity, 0, 1)
    weights(job)
    kept = largest(job.module, sparsity)

    def prune() -> None:
        for weight, one in kept:
            weight.mul_(one)

    with torch.no_grad():
        prune()
    steps = fine_tune(job, job.retain, epochs_of(job, epochs), rate_of(job, learning_rate, share=1.0), after=prune)
    zeros = sum(int((~one).sum()) for _, one in kept)
    total = sum(one.numel() for _, one in kept)
    return Forgotten(job.module, False, NONE, steps, (f"{zeros:,} of {total:,} weights of hidden layers are zero.",))


def largest(module: nn.Module, sparsity: float) -> list[tuple[Tensor, Bool[Tensor, "..."]]]:
    """The weights of the hidden layers of a module, and which of them are not among the smallest; of a linear model those of its layer.

    Raises:
        MethodError: It has neither a linear layer nor a convolution.
    """
    layers = [one for one in module.modules() if isinstance(one, nn.Linear | nn.Conv1d | nn.Conv2d)]
    found = [one.weight for one in (layers[:-1] or layers) if one.weight.requires_grad]
    if not found:
        raise MethodError(
            f"{type(module).__name__} has neither a linear layer nor a convolution that could be pruned.",
            "Choose method='l1-sparse'.",
        )
    size = torch.cat([one.detach().abs().flatten() for one in found])
    least = size.argsort(stable=True)[: round(sparsity * len(size))]
    kept = torch.ones(len(size), dtype=torch.bool, device=size.device).index_fill_(0, least, False)
    parts = torch.split(kept, [one.numel() for one in found])
    return [(one, part.view(one.shape)) for one, part in zip(found, parts, strict=True)]
