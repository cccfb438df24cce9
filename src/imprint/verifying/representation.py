"""What a model knows before it decides: do the features of a forgotten model resemble those of one that never saw the examples?

A method can change the last layer and leave the features as they were, or ruin the features and save the outputs; neither shows in the
outputs alone (Kim, Cha, Kim 2025, arXiv:2503.06991). Two measures on held-out rows: linear centred kernel alignment with the
features of another model (Kornblith et al. 2019, arXiv:1905.00414),

    CKA(A, B) = |A' B|^2 / (|A' A| |B' B|)        (columns centred, Frobenius norms),

and the accuracy of a linear probe, which says what the features are still good for.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from imprint.errors import MethodError
from imprint.fitting import as_input
from imprint.fitting.ridge import blocks, centre, ridge
from imprint.forgetting import Forgetting
from imprint.models import features as features_of
from imprint.tasks import Batch, Task

# Rows whose features are computed at a time.
PIECE = 1024
# Penalty of the probe, on features with a mean square of 1 about their means.
DECAY = 1e-2
# A spread below this share of the mean square is rounding: the features are constant.
CONSTANT = 1e-20


def features(
    source: Forgetting | nn.Module, task: Task, inputs: Shaped[Tensor, "row ..."]
) -> Float[Tensor, "row feature"]:
    """Features of rows before the last layer, in evaluation mode, on the CPU.

    They are what the module's own `features(inputs)` gives, if it has that, else the input of its last linear layer
    (`imprint.models.features`). Of a model in shards, all shards' features side by side.

    Args:
        source: A module, or a job, whose module is taken.
        task: Its task, which says how the module is called.
        inputs: Encoded inputs.

    Raises:
        MethodError: The module has no linear layer and no method `features`.

    >>> from imprint.tasks import Classification
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> features(net, Classification(("a", "b")), torch.zeros(4, 2)).shape
    torch.Size([4, 3])
    """
    module = source.module if isinstance(source, Forgetting) else source
    where = next((one.device for one in module.parameters()), torch.device("cpu"))

    def call(batch: Tensor) -> object:
        return task.outputs(module, Batch(batch, torch.empty(len(batch), device=where)))

    pieces = (as_input(piece.to(where), where) for piece in torch.split(inputs, PIECE))
    return torch.cat([features_of(module, piece, call).cpu() for piece in pieces])


def cka(a: Float[Tensor, "row d1"], b: Float[Tensor, "row d2"]) -> float:
    """Linear centred kernel alignment of two sets of features of the same rows.

    1 = the same up to rotation, shift and scale; 0 = no linear relation, or the features of one do not vary at all. With not many more rows
    than features it is far above 0 for unrelated features as well: compare values over the same rows only.

    Memory: the three products of features, and a block of rows; never rows x rows.

    Raises:
        MethodError: The rows are not the same in number.

    >>> a = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    >>> cka(a, 3 * a.flip(1) + 5), cka(a, torch.tensor([[1.0], [-1.0], [1.0], [-1.0]]))
    (1.0, 0.0)
    """
    if len(a) != len(b) or not len(a):
        raise MethodError(f"Features of {len(a)} and of {len(b)} rows.", "Give features of the same rows, one or more.")
    ones = torch.ones(len(a), dtype=torch.float64)
    middle_a, middle_b = centre(a, ones), centre(b, ones)
    wide, broad = a.shape[1], b.shape[1]
    aa, bb, ab = (torch.zeros(shape, dtype=torch.float64) for shape in ((wide, wide), (broad, broad), (wide, broad)))
    for part in blocks(len(a), wide + broad):
        left, right = a[part].double() - middle_a, b[part].double() - middle_b
        aa += left.T @ left
        bb += right.T @ right
        ab += left.T @ right
    for square, middle in ((aa, middle_a), (bb, middle_b)):
        if float(square.trace()) <= CONSTANT * len(a) * float(middle.square().sum()):
            return 0.0
    return float(ab.square().sum() / (torch.linalg.norm(aa) * torch.linalg.norm(bb)))


def probe(
    train_features: Float[Tensor, "example feature"],
    train_target: Shaped[Tensor, "example ..."],
    test_features: Float[Tensor, "row feature"],
    test_target: Shaped[Tensor, "row ..."],
    classes: int | None,
) -> float:
    """Accuracy of a linear probe: a ridge head on the features of some rows, judged on others. Higher = the features tell more.

    The head is solved, so that it has neither seed nor learning rate; its penalty is the same on the features of every model, which
    are brought to one scale.

    Args:
        train_features: Of the rows that the head is solved on.
        train_target: Their class codes; values of a regression; 0 or 1 for each label.
        test_features: Of the rows that it is judged on.
        test_target: Theirs.
        classes: How many classes there are; None for values (then R2) or labels (then the share of right pairs of example and label).

    >>> x = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    >>> probe(x, torch.tensor([0, 0, 1, 1]), x + 0.1, torch.tensor([0, 0, 1, 1]), 2)
    1.0
    """
    if classes is not None:
        wanted = torch.full((len(train_target), classes), -1.0, dtype=torch.float64)
        wanted.scatter_(1, train_target[:, None], 1.0)
    else:
        wanted = train_target.double()[:, None] if train_target.ndim == 1 else 2 * train_target.double() - 1
    middle = train_features.double().mean(0)
    spread = (train_features.double() - middle).square().mean().sqrt().clamp(min=torch.finfo(torch.float32).tiny)
    weight, intercept = ridge((train_features.double() - middle) / spread, wanted, decay=DECAY)
    said = ((test_features.double() - middle) / spread) @ weight + intercept
    if classes is not None:
        return float((said.argmax(1) == test_target).double().mean())
    if test_target.ndim == 2:
        return float(((said > 0) == (test_target > 0.5)).double().mean())
    return float(1 - (said[:, 0] - test_target).square().mean() / test_target.double().var(correction=0))
