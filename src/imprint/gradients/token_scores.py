"""Which tokens of a document help a query: exact scores of every token, from one forward pass per query and batch.

The score of token t of a document is the inner product of the gradients of the query's loss and of that token's own loss:

    score[t] = <gradient of query, gradient of loss[t]> = d/ds loss[t](weights + s * gradient of query)   at s = 0

The right side is a derivative along one direction, which forward-mode differentiation carries through the forward pass: it gives all tokens
at once, for every parameter, without a projection and without a backward pass over the document. Sums over tokens are the exact gradient
products of documents. `project(tokens=True)` gives the same, projected, for any query; it takes a backward pass per token.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from imprint.errors import EvidenceError
from imprint.gradients.capture import evaluating
from imprint.gradients.general import Losses
from imprint.gradients.recording import Loss, next_token, on_device

Direction = dict[str, Tensor]


def direction(model: nn.Module, batches: Iterable[Any], loss: Loss | None = None) -> Direction:
    """The gradient of the summed loss of some batches: of one query, or of a group of queries.

    Args:
        model: The model; only parameters that require gradients count.
        batches: As of `project`.
        loss: As of `project`.

    Returns:
        Name of each parameter -> its gradient.

    Raises:
        EvidenceError: No parameter requires gradients, or there is no batch.
    """
    trained = _trained(model)
    device = next(model.parameters()).device
    found: list[Tensor] | None = None
    with torch.enable_grad(), evaluating(model):
        for batch in batches:
            total = (loss or next_token)(model, on_device(batch, device)).sum()
            gradients = torch.autograd.grad(total, list(trained.values()), allow_unused=True, materialize_grads=True)
            found = list(gradients) if found is None else [a.add_(b) for a, b in zip(found, gradients, strict=True)]
    if found is None:
        raise EvidenceError("There was no batch of queries.", "Give some.")
    return dict(zip(trained, found, strict=True))


def token_scores(
    model: nn.Module, batches: Iterable[Any], query: Direction, loss: Loss | None = None
) -> Iterator[Float[Tensor, "example position"]]:
    """Scores of the tokens of each batch for a query: positive = training on the token lowers the query's loss.

    Args:
        model: The model that `query` is a direction of.
        batches: As of `project`; read one at a time.
        query: From `direction`.
        loss: As of `project`; returns `[example, position]`, or `[example]`, which gives the scores of examples.

    Raises:
        EvidenceError: The query is of another model.

    >>> model = nn.Linear(2, 1, bias=False)
    >>> def loss(model, batch):  # a number per token
    ...     return model(batch)[..., 0]
    >>> query = direction(model, [torch.tensor([[[1.0, 2.0]]])], loss)
    >>> next(token_scores(model, [torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]])], query, loss))
    tensor([[1., 2., 3.]])
    """
    trained = _trained(model)
    if {name: one.shape for name, one in trained.items()} != {name: one.shape for name, one in query.items()}:
        raise EvidenceError(
            "The direction of the query is not of this model's trained parameters.",
            "Take it with direction(model, ...).",
        )
    device = next(model.parameters()).device
    of: Loss = loss or next_token
    losses = Losses(model, lambda module, batch, _: of(module, batch))
    own = {f"model.{name}": one.detach() for name, one in trained.items()}
    along = {f"model.{name}": one.to(trained[name]) for name, one in query.items()}
    for batch in batches:
        here = on_device(batch, device)

        def values(parameters: Direction, batch: Any = here) -> Tensor:
            return functional_call(losses, parameters, (batch, None))

        # The other kernels of attention have no rule for forward-mode differentiation.
        with evaluating(model), sdpa_kernel(SDPBackend.MATH):
            scores = jvp(values, (own,), (along,))[1]
        yield scores.detach()


def _trained(model: nn.Module) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {name: one for name, one in model.named_parameters() if one.requires_grad}
    if not found:
        raise EvidenceError(
            f"No parameter of {type(model).__name__} requires gradients.", "Call module.requires_grad_(True) first."
        )
    return found


__all__ = ["direction", "token_scores"]
