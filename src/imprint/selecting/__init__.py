"""select: which examples should a model be trained on, under a budget?

`select(source, budget, method)` asks a recorded run (or, for methods that need no training, a corpus) for a selection. The functions
exported beside it are the bare methods on tensors.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import torch

from imprint.answers import Selection
from imprint.corpus import Corpus
from imprint.engine import LOCAL, Engine, engine_of
from imprint.errors import MethodError
from imprint.evidence import Named
from imprint.fitting import Progress, Sampler, SamplerState, generator, reporter
from imprint.methods import check_serves, lookup, needs_of
from imprint.recording.collect import spent
from imprint.recording.needs import Features
from imprint.selecting.clusters import cluster_balance
from imprint.selecting.compression import zip_fit
from imprint.selecting.diversity import dynamic_diversity
from imprint.selecting.evidence import Asked, gather, serves_corpus, target_rows, value
from imprint.selecting.experts import adapt_experts
from imprint.selecting.facility import facility_location
from imprint.selecting.filtering import dfn, dfn_domain
from imprint.selecting.herding import herding
from imprint.selecting.kcenter import k_center, k_center_class
from imprint.selecting.metadata import metadata_balance
from imprint.selecting.moving import gradient_norm_proportional, loss_proportional, saa
from imprint.selecting.picks import Picks, picked
from imprint.selecting.random import random, stratified
from imprint.selecting.repeated import rs2, rs2_replace
from imprint.selecting.scored import coverage, easiest, hardest
from imprint.selecting.targeting import less, less_adam
from imprint.selecting.transport import got_d
from imprint.selecting.untrained import Untrained

if TYPE_CHECKING:
    from imprint.recording import Run

__all__ = [
    "Picks", "adapt_experts", "cluster_balance", "coverage", "dfn", "dfn_domain", "dynamic_diversity", "easiest",
    "facility_location", "got_d", "gradient_norm_proportional", "hardest", "herding", "k_center", "k_center_class",
    "less", "less_adam", "loss_proportional", "metadata_balance", "random", "rs2", "rs2_replace", "saa", "select", "serves_corpus",
    "stratified", "target_rows", "zip_fit",
]  # fmt: skip

# Classes that a note names.
MOST_NAMED = 5


def select(
    source: Run | Corpus,
    budget: float = 0.5,
    method: str = "random",
    *,
    target: Named | None = None,
    trusted: Sequence[str] | None = None,
    entries: Sequence[str] | None = None,
    seed: int = 0,
    members: int | None = None,
    progress: Progress | bool | None = None,
    engine: str | Engine = LOCAL,
) -> Selection:
    """Choose the training examples to train on, under a budget.

    What the method reads is collected first, where the run lacks it.

    Args:
        source: A recorded run; or a corpus, for methods that need no training.
        budget: A share of the training examples in (0, 1], or how many (an int).
        method: Name of a select method (`imprint methods --verb select` lists them).
        target: The examples to be good at, for methods that aim at some: a split's name, a part of the corpus, ids, rows, or another
            corpus with the same columns. None for the validation split, or half of the held-out examples where there is none.
        trusted: Ids of training examples whose labels and contents are trusted, for methods that learn from such.
        entries: What to balance by, for methods that do; None for the words of the texts, or the classes.
        seed: Of the choice, where it is random.
        members: Trainings of the fleet, for methods that read one; None as the method declares.
        progress: Told what is collected; None shows a bar if standard error is a terminal, False nothing.
        engine: Where gradients are taken and fleets are trained: "local", "ray" (a cluster of our own on this machine), or
            `imprint.engine.Engine("ray", address)`.

    Returns:
        `frame()`: id, position, rank (1 = the most wanted), weight, value. `corpus.apply(selection)` is the corpus with only these
        training examples; `selection.sampler()` goes into `Learner(sampler=...)`; `imprint.verify` says what the choice is worth.

    Raises:
        MethodError: The method is unknown or does not serve the task or data, the budget is none, or it takes a run.
        IdError: A target or trusted example is not of the corpus.
    """
    began = time.perf_counter()
    one = lookup("select", method)
    if members is not None:
        if not one.members:
            raise MethodError(f"members={members}, but '{method}' asks no fleet.", "Leave it out.")
        one = one.with_members(members)
    about: Any = Untrained(source) if isinstance(source, Corpus) else source
    check_serves([one], about)
    asked = Asked(about, one, picked(budget, len(about)), target, trusted, entries, seed)
    with reporter(progress) as told:  # type: ignore[arg-type]
        found = one.function(**gather(asked, told, engine_of(engine)))
    sampling: dict[str, Any] = {}
    if hasattr(found, "epoch"):
        sampling, found = found.spec(), first_epoch(asked, found)
    else:
        found = found.checked(asked.budget, len(about))
    trainings, notes = (0, about.notes) if isinstance(about, Untrained) else spent(about, needs_of([one]))
    return Selection(
        verb="select",
        methods=(one.name,),
        source={one.name: one.source},
        higher={one.name: one.higher},
        run={"path": "" if isinstance(about, Untrained) else str(about.path), "corpus": about.fingerprint},
        cost={"seconds": time.perf_counter() - began, "trainings": trainings},
        table=chosen(about, found),
        notes=tuple(note for note in (found.note, asked.note, "" if sampling else bare(about, found), *notes) if note),
        budget=asked.budget,
        examples=len(about),
        seed=seed,
        asked=said(asked, members),
        sampling=sampling,
    )


def bare(about: Any, picks: Picks) -> str:
    """Which classes have examples, and none of them was chosen: a model will not know them."""
    if about.task.name != "classification":
        return ""
    target = about.target()
    left = torch.bincount(target[picks.order], minlength=about.task.width) == 0
    gone = [str(about.task.classes[code]) for code in target.unique().tolist() if left[code]]
    more = ", ..." if len(gone) > MOST_NAMED else ""
    return f"no example was chosen of {len(gone)} classes: {', '.join(gone[:MOST_NAMED])}{more}" if gone else ""


def chosen(about: Any, picks: Picks) -> pl.DataFrame:
    """The table of a selection: the chosen examples by rank, then the others, which have none."""
    order = picks.order.numpy()
    rest = np.setdiff1d(np.arange(len(about)), order)
    place = np.concatenate([order, rest])
    ranks = pl.Series("rank", np.arange(1, len(order) + 1, dtype=np.int64)).extend_constant(None, len(rest))
    weights = torch.ones(len(order)) if picks.weights is None else picks.weights.float()
    values = pl.repeat(None, len(place), dtype=pl.Float32, eager=True).alias("value")
    if picks.value is not None:
        values = pl.Series("value", picks.value.float().numpy()[place]).fill_nan(None)
    return (
        about.examples.select("id", "position")[about.rows()[place]]
        .with_columns(pl.Series("place", place.astype(np.int64)), ranks)
        .with_columns(pl.Series("weight", weights.numpy()).extend_constant(None, len(rest)), values)
    )


def first_epoch(asked: Asked, sampler: Sampler) -> Picks:
    """What a policy that chooses anew would visit first, before it has seen a loss."""
    about, size = asked.source, len(asked.source)
    unseen = torch.full((size,), torch.nan)
    epochs = 1 if isinstance(about, Untrained) else max(1, int(about.learner.epochs or 1))
    state = SamplerState(
        1, epochs, size, generator(asked.seed, "shuffle", 1), loss=unseen, bound=unseen.clone(),
        features=lambda: value(asked, Features()), seed=asked.seed,
    )  # fmt: skip
    visits, weights = sampler.epoch(state)
    return Picks(
        visits, weights, note=f"{asked.method.name} chooses anew in each epoch; frame() shows the visits of the first"
    )


def said(asked: Asked, members: int | None) -> dict[str, Any]:
    """What the user said, as JSON, so that the same can be asked again; a target of another corpus is named by its fingerprint."""
    target: Any = asked.target
    if isinstance(target, Corpus):
        target = target.ids.to_list() if asked.elsewhere is None else {"corpus": target.fingerprint}
    elif target is not None and not isinstance(target, str):
        target = np.asarray(target).tolist()
    found = {"target": target, "members": members}
    for name, given in (("trusted", asked.trusted), ("entries", asked.entries)):
        found[name] = None if given is None else list(map(str, given))
    return {name: value for name, value in found.items() if value is not None}
