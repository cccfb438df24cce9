"""Inner products of per-example gradients, from their factors.

For one layer, with the inputs `a` and output gradients `g` of example e and `b`, `h` of example f,

    <gradient[e], gradient[f]> = sum over positions t, u of (a[t] . b[u]) (g[t] . h[u]).

With one position that is an elementwise product of two small matrix products, and costs `in + out` multiplications a pair. With several
positions it costs `t u (in + out)`, or, with the gradients written out, `in out` a pair and `t in out` an example: what is cheaper is
done. Gradients are written out some rows (of `in`) at a time, so that what is held never depends on the number of examples. Embeddings
are joined by their token codes, which takes no matrix of the size of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from imprint.gradients.layer import LayerGradient

# Numbers of written-out gradients, or of products of positions, at a time: 64 MiB of float32.
BLOCK_NUMBERS = 2**24
# Reading and writing a number of a matrix of position products costs about this many multiplications of a matrix product.
TOUCH = 16


def full(layer: LayerGradient) -> Float[Tensor, "example in out"] | Float[Tensor, "example parameter"]:
    """The gradient itself: for small things, and for tests. "affine" and "other" give `[example, parameter]`.

    >>> full(LayerGradient("head", "linear", torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[3.0], [1.0]]]).mT))
    tensor([[[3., 1.],
             [6., 2.]]])
    """
    if layer.kind == "affine" or (layer.kind == "other" and layer.inputs.shape[2] == 1):
        return (layer.inputs * layer.outputs).sum(1)
    return rows(layer, 0, layer.shape[0])


def rows(layer: LayerGradient, begin: int, end: int) -> Float[Tensor, "example row out"]:
    """Some rows (of the axis `in`) of the gradient of each example."""
    if layer.kind != "embedding":
        return layer.inputs[:, :, begin:end].mT @ layer.outputs
    examples, _, out = layer.outputs.shape
    inside = (layer.inputs >= begin) & (layer.inputs < end)
    example, place = inside.nonzero(as_tuple=True)
    found = layer.outputs.new_zeros(examples * (end - begin), out)
    found.index_add_(0, example * (end - begin) + layer.inputs[example, place] - begin, layer.outputs[example, place])
    found = found.view(examples, end - begin, out)
    if layer.tied is not None:
        found += layer.tied.outputs[:, :, begin:end].mT @ layer.tied.inputs
    return found


def squared_norms(layers: Sequence[LayerGradient]) -> Float[Tensor, " example"]:
    """Squared L2 norm of the gradient of each example over these layers, without the gradient.

    >>> layer = LayerGradient("head", "linear", torch.tensor([[[3.0, 4.0]]]), torch.tensor([[[2.0]]]))
    >>> squared_norms([layer])
    tensor([100.])
    """
    return torch.stack([_squared_norm(layer) for layer in layers]).sum(0)


def products(
    queries: Sequence[LayerGradient], examples: Sequence[LayerGradient], block: int = BLOCK_NUMBERS
) -> Float[Tensor, "query example"]:
    """Exact inner products of the gradients of queries with those of examples, summed over the layers.

    Args:
        queries: The layers' gradients of some examples.
        examples: Those of others, of the same layers in the same order.
        block: Numbers of gradients in memory at a time.

    Raises:
        ValueError: The layers are not the same.

    >>> layer = LayerGradient("head", "linear", torch.tensor([[[1.0]], [[2.0]]]), torch.tensor([[[3.0]], [[5.0]]]))
    >>> products([layer], [layer])
    tensor([[  9.,  30.],
            [ 30., 100.]])
    """
    if [layer.name for layer in queries] != [layer.name for layer in examples]:
        raise ValueError(
            f"Gradients of the layers {[layer.name for layer in queries]} and {[layer.name for layer in examples]} cannot be multiplied."
        )
    found: Tensor | None = None
    for left, right in zip(queries, examples, strict=True):
        one = _products(left, right, block)
        found = one if found is None else found.add_(one)
    assert found is not None
    return found


def _products(left: LayerGradient, right: LayerGradient, block: int) -> Tensor:
    """Inner products of one layer's gradients."""
    if left.kind != "embedding" and right.kind != "embedding" and left.shape == right.shape:
        if left.positions == right.positions == 1:
            outputs = left.outputs[:, 0] @ right.outputs[:, 0].T
            if left.shape[0] == 1:
                return outputs.mul_(left.inputs[:, 0]).mul_(right.inputs[:, 0].T)
            return outputs.mul_(left.inputs[:, 0] @ right.inputs[:, 0].T)
        if _pairs_cost(left, right) < _rows_cost(left, right):
            return _by_pairs(left, right, block)
    if left.kind == right.kind == "embedding" and left.tied is None:
        return _by_codes(left, right, block)
    return _by_rows(left, right, block)


def _pairs_cost(left: LayerGradient, right: LayerGradient) -> int:
    """Multiplications of the products of all positions."""
    return len(left) * left.positions * len(right) * right.positions * (sum(left.shape) + TOUCH)


def _rows_cost(left: LayerGradient, right: LayerGradient) -> int:
    """Multiplications of the written-out gradients and their products."""
    written = len(left) * left.positions + len(right) * right.positions
    return (written + len(left) * len(right)) * left.parameters


def _by_pairs(left: LayerGradient, right: LayerGradient, block: int) -> Tensor:
    """Products of all positions with all positions, some examples at a time."""
    found = left.outputs.new_empty(len(left), len(right))
    times = right.positions
    step = max(1, block // (len(left) * left.positions * times))
    a, g = left.inputs.flatten(0, 1), left.outputs.flatten(0, 1)
    for begin in range(0, len(right), step):
        some = right[begin : begin + step]
        pairs = (a @ some.inputs.flatten(0, 1).T).mul_(g @ some.outputs.flatten(0, 1).T)
        found[:, begin : begin + step] = pairs.view(len(left), left.positions, -1, times).sum((1, 3))
    return found


def _by_rows(left: LayerGradient, right: LayerGradient, block: int) -> Tensor:
    """Gradients written out, some rows of some examples at a time. One side may be at hand itself (`kind="other"`)."""
    height, width = left.shape if left.kind != "other" else right.shape
    if left.parameters != right.parameters:
        raise ValueError(f"{left.name} has gradients of {left.shape} and {right.shape}.")
    found = left.outputs.new_zeros(len(left), len(right))
    tall = min(height, max(1, block // (width * max(len(left), 1))))
    wide = max(1, block // (width * tall))
    for begin in range(0, height, tall):
        end = min(begin + tall, height)
        mine = _flat_rows(left, begin, end, width)
        for start in range(0, len(right), wide):
            some = slice(start, start + wide)
            found[:, some] += mine @ _flat_rows(right[some], begin, end, width).T
    return found


def _flat_rows(layer: LayerGradient, begin: int, end: int, width: int) -> Float[Tensor, "example number"]:
    if layer.kind in ("affine", "other") and layer.shape[0] == 1 and layer.positions == 1:
        return layer.inputs[:, 0] * layer.outputs[:, 0, begin * width : end * width]
    return rows(layer, begin, end).flatten(1)


# ---------------------------------------------------------------------------------------------------------------- embeddings


def merged(layer: LayerGradient) -> tuple[Int[Tensor, " entry"], Int[Tensor, " entry"], Float[Tensor, "entry out"]]:
    """An embedding's gradient without its zero rows: (example, code, row), by example and code."""
    examples = torch.arange(len(layer), device=layer.inputs.device)[:, None]
    keys, place = torch.unique((examples * layer.codes + layer.inputs).flatten(), return_inverse=True)
    found = layer.outputs.new_zeros(len(keys), layer.shape[1])
    found.index_add_(0, place, layer.outputs.flatten(0, 1))
    return keys // layer.codes, keys % layer.codes, found


def _by_codes(left: LayerGradient, right: LayerGradient, block: int) -> Tensor:
    """Only examples that share a token have products: for each token, those that have it on one side with those on the other.

    Tokens with about as many examples (the same power of two) on both sides are computed together, padded with empty rows.
    """
    example, code, row = merged(left)
    other_example, other_code, other_row = merged(right)
    common = torch.unique(code)
    common = common[torch.isin(common, torch.unique(other_code))]
    found = left.outputs.new_zeros(len(left) * len(right) + 1)  # the last place takes the products of padding
    if len(common):
        mine, theirs = _Postings(common, example, code, row), _Postings(common, other_example, other_code, other_row)
        for tokens in _alike(mine.counts, theirs.counts):
            width, height = int(mine.counts[tokens].max()), int(theirs.counts[tokens].max())
            step = max(1, block // (width * height + (width + height) * row.shape[1]))
            for some in torch.split(tokens, step):
                first, there = mine.padded(some, width)
                second, their = theirs.padded(some, height)
                place = there[:, :, None] * len(right) + their[:, None, :]
                place[(there < 0)[:, :, None] | (their < 0)[:, None, :]] = len(found) - 1
                found.index_add_(0, place.flatten(), (first @ second.mT).flatten())
    return found[:-1].view(len(left), len(right))


class _Postings:
    """For each token its examples, with their rows."""

    def __init__(self, common: Tensor, example: Tensor, code: Tensor, row: Tensor) -> None:
        token = torch.searchsorted(common, code).clamp(max=len(common) - 1)
        kept = (common[token] == code).nonzero()[:, 0]
        order = kept[token[kept].argsort(stable=True)]
        self.example, self.row, self.order = example, row, order
        self.counts = torch.bincount(token[kept], minlength=len(common))
        self.starts = self.counts.cumsum(0) - self.counts

    def padded(self, tokens: Tensor, width: int) -> tuple[Float[Tensor, "token place out"], Int[Tensor, "token place"]]:
        """Rows and examples of some tokens; rows beyond a token's last are zero, their example is -1."""
        place = torch.arange(width, device=tokens.device)
        there = place < self.counts[tokens][:, None]
        entry = self.order[(self.starts[tokens][:, None] + place).clamp(max=len(self.order) - 1)]
        return self.row[entry] * there[..., None], torch.where(there, self.example[entry], -1)


def _alike(mine: Tensor, theirs: Tensor) -> Iterator[Tensor]:
    """Tokens grouped by the powers of two that their numbers of examples are below."""
    size = torch.frexp(mine.double()).exponent * 64 + torch.frexp(theirs.double()).exponent
    for one in torch.unique(size):
        yield (size == one).nonzero()[:, 0]


# --------------------------------------------------------------------------------------------------------------------- norms


def _squared_norm(layer: LayerGradient) -> Float[Tensor, " example"]:
    if layer.kind == "embedding":
        example, _, row = merged(layer)
        found = row.new_zeros(len(layer)).index_add_(0, example, row.square().sum(1))
        if layer.tied is not None:
            head = layer.tied
            # The head's gradient at the tokens that went in: [example, position of the head, position of the embedding].
            there = head.outputs.gather(2, layer.inputs[:, None].expand(-1, head.positions, -1))
            crossed = ((head.inputs @ layer.outputs.mT) * there).sum((1, 2))
            found = found + 2 * crossed + _squared_norm(head)
        return found
    if layer.positions == 1:
        return layer.inputs[:, 0].square().sum(1) * layer.outputs[:, 0].square().sum(1)
    # By pairs of positions, or by the gradient: an example at a time, as its pairs are with itself.
    if layer.positions * (sum(layer.shape) + TOUCH) < layer.parameters:
        step = max(1, BLOCK_NUMBERS // layer.positions**2)
        return torch.cat([_pairs_norm(layer[begin : begin + step]) for begin in range(0, len(layer), step)])
    height, width = layer.shape
    found = layer.outputs.new_zeros(len(layer))
    tall = min(height, max(1, BLOCK_NUMBERS // (width * max(len(layer), 1))))
    for begin in range(0, height, tall):
        found += rows(layer, begin, min(begin + tall, height)).square().sum((1, 2))
    return found


def _pairs_norm(layer: LayerGradient) -> Float[Tensor, " example"]:
    return ((layer.inputs @ layer.inputs.mT) * (layer.outputs @ layer.outputs.mT)).sum((1, 2))
