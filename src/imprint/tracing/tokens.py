"""Which words of a training example help a query, and which words of a query make its prediction: for models that read words.

Both are integrated gradients (Sundararajan, Taly, Yan 2017, arXiv:1703.01365). Let the embedding of word t count u[t], from 0 (a blank
word in its place) to 1. A quantity S of the text is then a function of u, and each word is given what it moved as all fade in together:

    score[t] = integral over a in 0..1 of dS/du[t] at u = a,          sum over words = S(text) - S(text with its words blank)

Of a query, S is its own margin. Of an example, S is what a gradient step on it does for the query's loss, with the error that the model
makes on the example held fixed:

    S(u) = r . d/ds outputs(u; weights + s * gradient of query) at s = 0,   r = d loss / d outputs of the whole text;   S(1) = gradient-dot

Were the error to move too, a word that the model knows well would count as harmful, since a text that is understood teaches little.
`STEPS` points stand for the integral: sums hold to about a hundredth.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from imprint.errors import MethodError
from imprint.evidence import named_rows
from imprint.gradients import direction
from imprint.gradients.capture import log_odds
from imprint.gradients.token_scores import Direction
from imprint.models.encoder import slices
from imprint.models.transformer import Transformer
from imprint.tasks import Batch

if TYPE_CHECKING:
    from imprint.recording import Run

Rows = Sequence[int] | np.ndarray
# Points of the integral, at the middles of equal parts; and words at a time, over all points and texts.
STEPS = 32
MOST_WORDS = 4096


def tokens(run: Run, query: str, example: str | None = None, checkpoint: str | int = "last") -> pl.DataFrame:
    """Scores of the words of a training example for a query, or of the query's own words.

    Args:
        run: A run whose model reads words: `Learner("transformer")`.
        query: Its id.
        example: Id of the example; None for the query itself.
        checkpoint: "last", "first", "best", an epoch, or a checkpoint's name.

    Returns:
        `word, start, end, score`: one row per word that the model has read, in their order; `start` and `end` count characters of the text
        (its columns joined by line breaks). Positive = makes training on the example help the query; of the query itself: speaks for its
        label. Scores add up to S of the text less S of the text with its words blank, for the S of this module: an example's
        `gradient-dot`, the query's margin.

    Raises:
        MethodError: The model reads no words.
        IdError: The query or the example is not of the run's corpus.
    """
    (asked,) = named_rows(run, [query])
    words = Words(run, checkpoint)
    if example is None:
        return words.table([asked], [words.of_query(asked)])[0]
    rows = named_rows(run, [example], "examples")
    return words.table(rows, words.of_examples(asked, rows))[0]


def reads_words(run: Run) -> bool:
    """Whether the words of a run's texts have scores: its model is a transformer on words."""
    return getattr(run.encoder, "name", "") == "tokens" and run.learner.model == "tokens/transformer"


class Words:
    """Scores of the words of a run's texts; see `tokens`.

    Args:
        run: The run.
        checkpoint: Of the model.

    Raises:
        MethodError: The model reads no words.
    """

    def __init__(self, run: Run, checkpoint: str | int = "last") -> None:
        if not reads_words(run):
            raise MethodError(
                f"The model of {run.path} reads no words: its encoder turns a text into one vector.",
                "Fit a model that does: model='transformer' on a corpus of texts.",
            )
        model = run.model(checkpoint)
        assert isinstance(model.module, Transformer)
        self.run, self.device = run, torch.device(model.device)
        self.module = model.module.to(self.device)
        self.weights: Direction = {name: one.detach() for name, one in self.module.named_parameters()}

    def of_query(self, row: int) -> Float[Tensor, " position"]:
        """What each word of a query does for its own margin."""
        codes, target = self._read([row])
        many = Batch(codes.repeat(STEPS, 1), target.repeat_interleave(STEPS, 0))

        def margin(faded: Tensor) -> Tensor:
            return log_odds(self.run.task, self._outputs(self.weights, many.inputs, faded), many).sum()

        return integrated(grad(margin), codes)[0].cpu()

    def of_examples(self, query: int, rows: Rows) -> list[Float[Tensor, " position"]]:
        """What each word of some examples does for a query: see the module."""
        towards = direction(self.module, [self._read([query])], lambda model, pair: self._losses(model(pair[0]), *pair))
        most = max(1, MOST_WORDS // (STEPS * int(self.run.encoder.shape[0])))
        return [one for some in slices(len(rows), most) for one in self._of_some(towards, rows[some]).cpu()]

    def _of_some(self, towards: Direction, rows: Rows) -> Float[Tensor, "text position"]:
        codes, target = self._read(rows)
        outputs = self.module(codes).detach().requires_grad_()
        (error,) = torch.autograd.grad(self._losses(outputs, codes, target).sum(), outputs)
        many, error = codes.repeat(STEPS, 1), error.repeat(STEPS, *[1] * (error.dim() - 1))

        def weighed(weights: Direction, faded: Tensor) -> Tensor:
            return (error * self._outputs(weights, many, faded)).sum()

        def slope(faded: Tensor) -> Tensor:
            return jvp(lambda weights: grad(weighed, argnums=1)(weights, faded), (self.weights,), (towards,))[1]

        return integrated(slope, codes)

    def table(self, rows: Rows, scores: Sequence[Float[Tensor, " position"]]) -> list[pl.DataFrame]:
        """Scores beside the words that they are of: `word, start, end, score` of each row."""
        ascending, place = np.unique(rows, return_inverse=True)
        spans = self.run.encoder.spans(self.run.corpus.read(ascending))
        found = []
        for own, values in zip((spans[number] for number in place), scores, strict=True):
            table = pl.DataFrame(own, schema={"word": pl.String, "start": pl.Int64, "end": pl.Int64}, orient="row")
            found.append(table.with_columns(score=pl.Series(values[: len(own)].numpy(), dtype=pl.Float32)))
        return found

    def _outputs(self, weights: Direction, codes: Tensor, faded: Float[Tensor, "text position"]) -> Tensor:
        """What the model says of texts whose words' embeddings count so much."""

        def apply(layer: nn.Module, inputs: Tensor) -> Tensor:
            return layer(inputs) * faded[..., None] if layer is self.module.tokens else layer(inputs)

        return functional_call(self.module, weights, (codes, apply))

    def _losses(self, outputs: Tensor, codes: Tensor, target: Tensor) -> Float[Tensor, " text"]:
        return self.run.task.loss(outputs, Batch(codes, target))

    def _read(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Codes and targets of some rows."""
        ascending, place = np.unique(rows, return_inverse=True)
        codes = self.run.encoder.encode(self.run.corpus.read(ascending))[torch.from_numpy(place)]
        target = self.run.target(None)[torch.from_numpy(ascending)][torch.from_numpy(place)]
        return codes.to(self.device), target.to(self.device)


def integrated(
    slope: Callable[[Float[Tensor, "many position"]], Float[Tensor, "many position"]],
    codes: Int64[Tensor, "text position"],
) -> Float[Tensor, "text position"]:
    """What each word moves as all fade in.

    Args:
        slope: The gradient of a sum over texts with respect to how much their words count; called with `STEPS` times all texts.
        codes: Of the texts.

    >>> integrated(lambda faded: 2 * faded * torch.tensor([3.0, 1.0]), torch.tensor([[5, 6]]))  # of 3 u1^2 + u2^2
    tensor([[3., 1.]])
    """
    points = (torch.arange(STEPS, device=codes.device) + 0.5) / STEPS
    # The other kernels of attention have no rule for forward-mode differentiation.
    with sdpa_kernel(SDPBackend.MATH):
        slopes = slope(points[:, None, None].expand(STEPS, *codes.shape).flatten(0, 1))
    return torch.unflatten(slopes, 0, (STEPS, -1)).mean(0)
