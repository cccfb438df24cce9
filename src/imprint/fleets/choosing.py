"""Which executor, by a short measured price.

A few steps of a few members are trained both ways on this machine, and what a step of a member costs decides: stacking wins by far where
members are small, and loses where a layer of one member already fills the machine (convolutions on a CPU). The same measurement prices a
fleet before it is paid.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from imprint.fitting import silent
from imprint.fitting.build import build, has_epochs
from imprint.fitting.loop import batch_bounds
from imprint.fleets.batched import Batched, alike_members, visits_in, wave_size
from imprint.fleets.executing import Executor
from imprint.fleets.member import Member
from imprint.fleets.sequential import Sequential
from imprint.fleets.shared import Shared
from imprint.fleets.solving import price_solved, solvable

# Seconds that one measurement takes at least: for a choice, and for a price; and the steps that it begins with.
CHOICE_SECONDS, PRICE_SECONDS = 0.1, 1.0
PROBE_STEPS = 4
MOST_STEPS = 512
# Member-rows whose prediction is timed.
PROBE_QUERIES = 4096
# A few members are stacked first: where a step of theirs takes this much longer than alone, more members will not turn it.
FEW, HOPELESS = 4, 1.5
# Seconds below which the measurement of a faster way would cost more than it saves.
WORTH_MEASURING = 1.0


@dataclass(frozen=True)
class Choice:
    """An executor, and why this one.

    Attributes:
        executor: What trains the members.
        why: In words, with the measured figures.
        seconds: What all members will take with it, for their training and their outputs; None where there was nothing to choose
            from, and so nothing was measured.
    """

    executor: Executor
    why: str
    seconds: float | None = None


@dataclass(frozen=True)
class Cost:
    """What a member costs with one executor, in seconds: per step of its training, per query, and once."""

    step: float
    query: float
    once: float

    def of(self, steps: int, queries: int, members: int) -> float:
        """Seconds for members that take so many steps in all and predict so many queries each."""
        return self.step * steps + members * (self.query * queries + self.once)


# (executor, settings, members side by side to a power of two) -> cost
Costs = dict[tuple[str, str, int], Cost]


def choose(
    shared: Shared,
    members: Sequence[Member],
    numbers: Sequence[int],
    queries: int | None = None,
    probe: float = CHOICE_SECONDS,
) -> Choice:
    """The executor that should be the fastest for these members.

    Args:
        shared: What they have in common.
        members: The members.
        numbers: Which of them are to be trained.
        queries: How many rows each predicts; None for all rows.
        probe: Seconds that each measurement takes at least.
    """
    asked = len(shared.data.target) if queries is None else queries
    if solvable(shared):
        return Choice(Batched(), "solved together: what members have in common is summed once")
    reason = Batched().why_not(shared)
    sequential = Sequential()
    if reason is not None:
        return Choice(sequential, f"one after the other: {reason}")
    costs: Costs = {}
    alone = priced(sequential, shared, members, numbers, asked, probe, costs)
    if alone < WORTH_MEASURING:
        return Choice(
            sequential, f"one after the other: all of it takes {alone:.2g} s, which is not worth measuring", alone
        )
    _, alike = next(alike_members(shared, members, numbers))
    first, few = members[alike[0]], min(FEW, len(alike))
    step = next(iter(costs.values())).step
    together = measured(Batched(), shared, first, few, asked, probe).step
    if together > HOPELESS * step:
        return Choice(sequential, f"one after the other: measured {_ratio(together, step)} as fast as stacked", alone)
    stacked = priced(Batched(), shared, members, numbers, asked, probe, costs)
    if stacked < alone:
        return Choice(Batched(), f"stacked: measured {_ratio(alone, stacked)} as fast as one after the other", stacked)
    return Choice(sequential, f"one after the other: measured {_ratio(stacked, alone)} as fast as stacked", alone)


def steady(shared: Shared) -> Executor:
    """The executor that should be the fastest, by a rule: the same on every call, so that the same question gets bitwise the same answer.

    Stacked wherever it can be, but for convolutions on a CPU: there, one member's fill the machine already.
    """
    if Batched().why_not(shared) is not None:
        return Sequential()
    module = build(shared.learner, shared.encoder, shared.task)
    convolves = any(isinstance(one, nn.modules.conv._ConvNd) for one in module.modules())
    on_cpu = torch.device(shared.learner.device).type == "cpu"
    return Sequential() if on_cpu and convolves else Batched()


def priced(
    executor: Executor,
    shared: Shared,
    members: Sequence[Member],
    numbers: Sequence[int],
    queries: int,
    probe: float = PRICE_SECONDS,
    costs: Costs | None = None,
) -> float:
    """Seconds that these members will take with an executor: measured on a few steps, for each kind of member.

    What a step costs depends on the settings and, roughly, on how many stand side by side: what is in `costs` is not measured again.
    """
    known = {} if costs is None else costs
    if executor.name == "batched" and solvable(shared):
        return price_solved(shared, members, numbers, queries)
    total = 0.0
    for learner, alike in alike_members(shared, members, numbers):
        first = members[alike[0]]
        if not (has_epochs(learner.model) and learner.epochs):
            total += len(alike) * _whole(executor, shared, members, alike[0], queries)
            continue
        side = 1 if executor.name == "sequential" else min(len(alike), wave_size(shared, learner, queries))
        settings = [(name, value) for name, value in first.settings.items() if name != "sampler"]
        kind = (executor.name, repr(sorted(settings, key=str)), side.bit_length())
        if kind not in known:
            known[kind] = measured(executor, shared, first, side, queries, probe)
        cost = known[kind]
        batch = int(learner.batch_size or 1)
        size = len(shared.data.rows) if first.rows is None else len(first.rows)
        visits = visits_in(first.settings.get("sampler", learner.sampler), size)
        steps = (len(batch_bounds(visits, batch)) - 1) * int(learner.epochs)
        total += cost.of(steps * len(alike), queries, len(alike))
    return total


def measured(executor: Executor, shared: Shared, member: Member, side: int, queries: int, probe: float) -> Cost:
    """What a step, a query and the beginning of a member cost, with `side` members trained side by side."""
    learner = member.learner(shared.learner)
    batch = int(learner.batch_size or 1)
    rows = shared.data.rows if member.rows is None else torch.as_tensor(member.rows)
    copies = [_short(member, rows, batch, 1, seed) for seed in range(side)]
    few = torch.arange(min(queries, max(64, PROBE_QUERIES // side), len(shared.data.target)))
    _timed(executor, shared, copies, few[:1])  # the first call pays for warming up
    once = _timed(executor, shared, copies, few[:1])
    predicted = _timed(executor, shared, copies, few)
    steps, spent = PROBE_STEPS, 0.0
    while True:
        longer = [_short(member, rows, batch, steps, seed) for seed in range(side)]
        spent = _timed(executor, shared, longer, few[:1])
        if spent - once >= probe or steps >= MOST_STEPS:
            break
        steps = min(MOST_STEPS, max(2 * steps, math.ceil(steps * 1.3 * probe / max(1e-6, spent - once))))
    step = max(1e-9, spent - once) / max(1, steps - 1) / side
    query = max(0.0, predicted - once) / max(1, len(few) - 1) / side
    return Cost(step, query, max(0.0, once / side - step))


def _short(member: Member, rows: torch.Tensor, batch: int, steps: int, seed: int) -> Member:
    """A member that takes this many steps: some of its rows, over and over, for one epoch, whatever its sampler."""
    wanted = steps * min(batch, len(rows))
    chosen = rows.repeat(math.ceil(wanted / len(rows)))[:wanted]
    return Member(seed=seed, rows=chosen, settings={**member.settings, "epochs": 1, "sampler": None})


def _timed(executor: Executor, shared: Shared, members: Sequence[Member], queries: torch.Tensor) -> float:
    began = time.perf_counter()
    for _ in executor.run(shared, members, range(len(members)), queries, progress=silent):
        pass
    return time.perf_counter() - began


def _whole(executor: Executor, shared: Shared, members: Sequence[Member], number: int, queries: int) -> float:
    """Seconds of one member that has no steps to count, trained whole."""
    began = time.perf_counter()
    for _ in executor.run(shared, members, [number], torch.arange(queries), progress=silent):
        pass
    return time.perf_counter() - began


def _ratio(slower: float, faster: float) -> str:
    times = slower / max(faster, 1e-9)
    return f"{times:.1f} times" if times < 10 else f"{times:.0f} times"
