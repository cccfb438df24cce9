"""Fleets as evidence of a run: what a method's needs name is trained once and kept in `RUN/fleets/STORE`.

The queries of such a fleet are all rows of the corpus, so that it answers what is asked of it later: of training examples
(memorisation), of held-out ones (the metric of a subset, datamodels), in whichever field. A fleet that was interrupted goes on with the
members that are missing when it is asked for again.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from imprint.engine import LOCAL, Engine
from imprint.fitting import Progress, silent
from imprint.fleets.executing import executor_on
from imprint.fleets.fleet import Fleet, fleet
from imprint.fleets.plan import Plan, bootstrap, subsets
from imprint.recording.collect import COLLECTORS, SOURCES, Source
from imprint.recording.held_out import held_out
from imprint.recording.needs import BagCounts, Bags, FleetNeed, Membership, Need, Subsets, Utility
from imprint.tasks import Classification, Regression

if TYPE_CHECKING:
    from imprint.recording import Run

# Bytes of logits that are read at a time.
BLOCK_BYTES = 2**28


def plan_of(need: Need) -> Plan:
    """The plan of the fleet that a need is read from."""
    assert isinstance(need, FleetNeed)
    if need.kind == "subsets":
        return subsets(need.members, getattr(need, "fraction", 0.5), independent=True)
    return bootstrap(need.members)


def collect_fleets(run: Run, needs: Sequence[Need], progress: Progress = silent, engine: Engine = LOCAL) -> None:
    """Train the fleets that needs are read from, or the members of them that are missing."""
    # Of several classes the margin and the loss tell all that methods ask of many members; of other tasks they do not, and outputs
    # are as narrow as a summary or nearly so.
    keep = "auto" if isinstance(run.task, Classification) else "logits"
    for need in needs:
        fleet(
            run, plan=plan_of(need), path=_folder(run, need), executor=executor_on(engine), keep=keep, progress=progress
        )


def credit(run: Run, members: Fleet, rows: np.ndarray, whole: bool = True) -> Float[Tensor, "member example"]:
    """What each example adds to the headline metric of each member, float64.

    Args:
        run: Whose fleet it is.
        members: The fleet.
        rows: The examples.
        whole: Whether the metric is that of these examples together, so that the squared error of a quantity is taken in units of
            their variance; else in units of the task's own, which blocks of examples share.
    """
    if isinstance(run.task, Classification) and members.manifest["keep"] == "summary":
        return (members.outcomes("margin", rows=rows) > 0).double()
    target = run.target(None)[torch.from_numpy(rows)]
    if isinstance(run.task, Regression) and not whole:
        return 1 - 2 * members.outcomes("loss", rows=rows).double()
    found = torch.empty(len(members), len(rows), dtype=torch.float64)
    step = max(1, BLOCK_BYTES // (4 * max(1, len(rows)) * run.task.width))
    for begin in range(0, len(found), step):
        numbers = np.arange(begin, min(begin + step, len(found)))
        for number, outputs in zip(numbers, members.outcomes("logits", members=numbers, rows=rows), strict=True):
            found[number] = run.task.credit(outputs, target)
    return found


def _folder(run: Run, need: Need) -> Path:
    return run.path / "fleets" / str(need.store)


def fleet_of(run: Run, need: Need) -> Fleet:
    """The fleet that a need of a run is read from; it must have been collected."""
    return Fleet.load(_folder(run, need))


def _has(run: Run, need: Need) -> bool:
    return (_folder(run, need) / "manifest.json").exists() and bool(fleet_of(run, need).done.all())


def _check(run: Run, need: Need) -> None:
    if isinstance(need, Utility):
        held_out(run)


def _value(run: Run, need: Need, block: slice) -> Any:
    """What `Run.gather` gives for a need of subsets or bags."""
    members = fleet_of(run, need)
    if isinstance(need, Membership):
        return members.weights.included(examples=block)
    if isinstance(need, BagCounts):
        return members.weights.dense(examples=block).long()
    if isinstance(need, Utility):
        return credit(run, members, held_out(run)[1]).mean(1)
    assert isinstance(need, Subsets | Bags)
    rows = run.rows(need.split)[block]
    if need.field == "credit":
        return credit(run, members, rows, whole=False)
    return members.outcomes(need.field, rows=rows)


def _spent(run: Run, need: Need) -> tuple[int, str]:
    members = fleet_of(run, need)
    seconds = members.metrics()["seconds"].sum()
    return len(
        members
    ), f"{need.store}: {len(members)} models in {seconds:.3g} s, {members.manifest['executor']['why']}."


for _kind in ("subsets", "bags"):
    COLLECTORS[_kind] = collect_fleets
    SOURCES[_kind] = Source(_has, _check, _value, _spent)
