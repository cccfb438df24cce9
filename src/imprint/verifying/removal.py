"""What if the examples that an attribution names first had not been there? Retrain without them, beside removing others.

For each of some queries, the k examples with the highest scores are taken out of the training set and the model is trained again, from
several seeds. An attribution that knows what holds a prediction up makes its margin fall, and in the end turns it over. Removing any k
examples costs a model something, and removing those most similar to the query costs it more; so the same is done with k examples drawn
at random and with those that a control names.

The queries are drawn from those that the recorded model gets right, and only those count that models trained on everything get right as
well (their mean margin over the seeds is on the right side): what is wrong already cannot be turned over.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy import stats
from torch import Tensor

from imprint.errors import MethodError
from imprint.fitting import Progress, derive, silent
from imprint.fleets import Member, share
from imprint.recording import Run
from imprint.recording.evidence import derive_field
from imprint.recording.needs import Outputs
from imprint.tracing.datamodeling import drawn, percentiles
from imprint.tracing.factors import slices
from imprint.verifying.kept import Kept

# A margin above this is a right prediction; of a quantity the margin is minus the error, and right is half a standard deviation.
RIGHT = {"regression": -0.5}
# Models without k random examples, per seed. All queries are read off each of them.
RANDOM_SETS = 10
# An end of a 95 % interval then has about a thirtieth of its width as standard error.
RESAMPLES = 2000
# With fewer queries an interval over queries says nothing.
FEWEST_QUERIES = 5
BLOCK_QUERIES = 512

Measured = tuple[float, float, float]  # value, low, high


@dataclass(frozen=True)
class Removal:
    """What became of the queries.

    Attributes:
        queries: Which they are: places among the queries of the attribution.
        removed: How many examples were removed for each.
        drops: Name -> by how much the margin fell, mean over the seeds: `[query]`.
        flips: Name -> share of the sets of examples without which the prediction is wrong (mean margin over the seeds): `[query]`.
        trainings: How many models it took, those that were kept from earlier included.
        notes: What to know of it.
    """

    queries: Int[np.ndarray, " query"]
    removed: int
    drops: dict[str, Float[Tensor, " query"]]
    flips: dict[str, Float[Tensor, " query"]]
    trainings: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Without(Sequence[Member]):
    """Members of a fleet that lack some examples each; made when they are asked for.

    Attributes:
        rows: All training rows.
        target: Their encoded targets.
        lacking: Places among `rows` that a member lacks.
        seeds: Its seed.
    """

    rows: Int[np.ndarray, " example"]
    target: Tensor
    lacking: list[np.ndarray]
    seeds: list[int]

    def __len__(self) -> int:
        return len(self.seeds)

    @overload
    def __getitem__(self, number: int) -> Member: ...
    @overload
    def __getitem__(self, number: slice) -> list[Member]: ...
    def __getitem__(self, number: int | slice) -> Member | list[Member]:
        if isinstance(number, slice):
            return [self[one] for one in range(*number.indices(len(self)))]
        kept = np.ones(len(self.rows), dtype=bool)
        kept[self.lacking[number]] = False
        return Member(self.seeds[number], self.rows[kept], self.target[torch.from_numpy(kept)])


def remove(
    run: Run,
    rows: Int[np.ndarray, " query"],
    scores: Mapping[str, Any],
    removal: int | float,
    *,
    queries: int = 30,
    seeds: int = 3,
    path: str | Path | None = None,
    progress: Progress = silent,
) -> Removal:
    """Retrain without the examples that each of several attributions names first, and without as many at random.

    Args:
        run: What the attributions are about.
        rows: Rows of the corpus that the queries are.
        scores: Name -> scores of the training examples for these queries (`imprint.tracing.Factors` or its like).
        removal: How many examples are removed for a query; below 1 a share of the training set.
        queries: How many queries are asked about, drawn at random from those that the recorded model gets right.
        seeds: Trainings for each.
        path: Where finished trainings are kept, so that what was interrupted goes on; None for a folder in the run.
        progress: Told the trainings done.

    Raises:
        MethodError: There are too few queries that the model gets right, or the number makes no sense.
    """
    k = count(removal, len(run))
    if seeds < 1:
        raise MethodError(f"{seeds} trainings per query are none.", "Ask for 1 or more; 3 is usual.")
    right = RIGHT.get(run.task.name, 0.0)
    said = run.gather([Outputs("margin", split=None)])["margin"][torch.from_numpy(rows)]
    able = np.flatnonzero((said > right).numpy())
    random = np.random.default_rng(0)
    asked = np.sort(random.choice(able, min(queries, len(able)), replace=False)) if len(able) else able
    enough(len(asked), "the recorded model gets right")

    training = run.rows()
    own_seeds = [derive(run.learner.seed, "removal", number) for number in range(seeds)]
    named = {name: one.top(k)[0].examples[torch.from_numpy(asked)].numpy() for name, one in scores.items()}
    anything = [random.choice(len(training), k, replace=False) for _ in range(RANDOM_SETS)]
    lacking = [np.empty(0, dtype=np.int64), *anything, *(places for each in named.values() for places in each)]
    members = Without(training, run.target(), lacking * seeds, [seed for seed in own_seeds for _ in lacking])
    test = torch.from_numpy(rows[asked])
    shared = share(run)
    keep = Kept(run.path / "verify" if path is None else path, shared, test, run.fingerprint)
    target = shared.data.target[test]
    margin = torch.stack(
        [derive_field(run.task, "margin", outputs, target) for outputs in keep.train(members, progress)]
    ).double()
    # [arm, query], mean over seeds
    by_arm = margin.reshape(seeds, len(lacking), len(asked)).mean(0)
    before, after = by_arm[0], {"random": by_arm[1 : 1 + RANDOM_SETS]}
    for number, name in enumerate(named):
        own = by_arm[1 + RANDOM_SETS + number * len(asked) :][: len(asked)]
        after[name] = own.diagonal()[None]  # each query is read off the model without its own examples
    upheld = before > right
    enough(int(upheld.sum()), "models trained on everything get right")
    left_out = len(asked) - int(upheld.sum())
    return Removal(
        queries=asked[upheld.numpy()],
        removed=k,
        drops={name: (before - some).mean(0)[upheld] for name, some in after.items()},
        flips={name: (some <= right).double().mean(0)[upheld] for name, some in after.items()},
        trainings=len(members),
        notes=(
            f"{left_out} of {len(asked)} queries were left out of the removal: models trained on everything get them wrong.",
        )
        if left_out
        else (),
    )


def count(removal: int | float, examples: int) -> int:
    """How many examples are meant by a number, or by a share below 1.

    >>> count(20, 1000), count(0.05, 1000)
    (20, 50)
    """
    k = max(1, round(removal * examples)) if 0 < removal < 1 else int(removal)
    if k < 1 or (k != removal and removal >= 1) or 2 * k > examples:
        raise MethodError(
            f"removal={removal} cannot be removed from {examples:,} examples.",
            f"Give a whole number from 1 to {examples // 2:,}, or a share below 0.5.",
        )
    return k


def enough(queries: int, are: str) -> None:
    """Raise where there are too few queries."""
    if queries < FEWEST_QUERIES:
        raise MethodError(
            f"There are {queries} queries that {are}; a removal is measured on {FEWEST_QUERIES} or more.",
            "Trace more queries, such as a whole split.",
        )


def intervals(
    values: Mapping[str, Float[Tensor, " query"]], own: str, level: float, seed: int = 0
) -> tuple[dict[str, Measured], dict[str, Measured]]:
    """Means over queries with bootstrap intervals; and `own` less each of the others, on the same queries and resamples.

    The intervals are about other queries. What all queries share (the models trained on everything) cancels in the differences.
    """
    weight = drawn(len(values[own]), RESAMPLES, torch.Generator().manual_seed(seed)).double() / len(values[own])
    means = {name: (float(one.mean()), *percentiles(one.double() @ weight, level)) for name, one in values.items()}
    leads = {
        name: (float((values[own] - one).mean()), *percentiles((values[own] - one).double() @ weight, level))
        for name, one in values.items()
        if name != own
    }
    return means, leads


# --------------------------------------------------------------------------------------------------------- known wrong labels


def harm(found: Any) -> Float[Tensor, " example"]:
    """How much each example harms the queries: minus its mean score."""
    queries, examples = found.shape
    total = torch.zeros(examples, dtype=torch.float64)
    for some in slices(queries, BLOCK_QUERIES):
        total += found.scores(some).sum(0, dtype=torch.float64)
    return -total / queries


def detection(
    suspicion: Mapping[str, Float[Tensor, " example"]], known: Bool[Tensor, " example"], own: str, level: float
) -> tuple[dict[str, Measured], dict[str, Measured]]:
    """How well values tell known examples from the others: area under the ROC curve, and the lead of `own` over the others.

    Intervals are those of DeLong, DeLong and Clarke-Pearson 1988 (doi:10.2307/2531595), for other examples of both kinds; 0.5 is chance.

    Args:
        suspicion: Name -> values, higher = more suspect.
        known: True for the examples that are known to be wrong.
        own: Whose lead is asked for.
        level: Of the intervals.

    >>> values = {"a": torch.tensor([3.0, 2.0, 1.0, 0.0]), "b": torch.tensor([0.0, 1.0, 0.0, 1.0])}
    >>> means, leads = detection(values, torch.tensor([True, True, False, False]), "a", 0.95)
    >>> means["a"][0], means["b"][0], leads["b"][0]
    (1.0, 0.5, 0.5)
    """
    parts = {name: shares(one.double(), known) for name, one in suspicion.items()}
    reach = float(stats.norm.ppf(0.5 + level / 2))

    def measured(wrong: Tensor, fine: Tensor) -> Measured:
        value = float(wrong.mean())
        spread = (
            reach
            * sum(float(one.var(correction=1)) / len(one) if len(one) > 1 else 0.0 for one in (wrong, fine)) ** 0.5
        )
        return value, value - spread, value + spread

    means = {}
    for name, two in parts.items():
        value, low, high = measured(*two)
        means[name] = (value, max(0.0, low), min(1.0, high))
    leads = {
        name: measured(parts[own][0] - wrong, parts[own][1] - fine)
        for name, (wrong, fine) in parts.items()
        if name != own
    }
    return means, leads


def shares(values: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """For each known example the share of the others below it, for each other the share of the known above it; a tie is a half."""
    wrong, fine = values[known], values[~known]

    def below(many: Tensor, ask: Tensor) -> Tensor:
        ordered = many.sort().values
        left, right = torch.searchsorted(ordered, ask), torch.searchsorted(ordered, ask, right=True)
        return (left + right).double() / (2 * len(many))

    return below(fine, wrong), 1 - below(wrong, fine)


def places_of(run: Run, known: Iterable[str]) -> Bool[Tensor, " example"]:
    """True for the training examples with these ids.

    Raises:
        MethodError: None or all of them are of the training set.
    """
    names = {str(one) for one in known}
    found = torch.from_numpy(run.ids.is_in(list(names)).to_numpy().copy())
    if not bool(found.any()) or bool(found.all()):
        raise MethodError(
            f"{int(found.sum())} of the {len(names)} ids in `known` are among the {len(found):,} training examples.",
            "Give the ids of the training examples whose labels are known to be wrong.",
        )
    return found
