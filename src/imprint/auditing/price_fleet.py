"""What a fleet will take, before it is paid.

Inputs that are encoded within seconds are encoded; of larger ones a sample stands for all. The plan meets the real training set, so
that the number of members, their sizes and steps are known and not estimated. A few steps of a few members are then trained by the
executor that would train them all, and what a file of outcomes takes is measured by writing one.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import psutil
import torch
from jaxtyping import Int
from torch import Tensor

from imprint.auditing.price import Price, timed
from imprint.engine.connection import connected, ray_module
from imprint.errors import EvidenceError, PlanError
from imprint.fitting import Data, Fixed, Learner, Repeated, predict
from imprint.fitting.build import build, encoder_for, fit_task, has_epochs
from imprint.fitting.data import MEMORY_SHARE, training_rows
from imprint.fitting.memory import available_memory
from imprint.fleets import Finished, Member, Members, Plan, Sequential, Shared, share
from imprint.fleets.batched import Batched, alike_members, footprint, wave_size
from imprint.fleets.choosing import PRICE_SECONDS, priced, steady
from imprint.fleets.cluster import Cluster
from imprint.fleets.executing import Executor, resolve
from imprint.fleets.fleet import keeping, query_rows, test_places
from imprint.fleets.sending import tensors_of, threads_of
from imprint.fleets.solving import Heads, solvable
from imprint.fleets.store import Outcomes
from imprint.models import is_estimator
from imprint.models.encoder import MOST_FITTED_ROWS

if TYPE_CHECKING:
    from imprint.corpus import Corpus

# Rows that are encoded to learn what a row takes.
PROBE = 2000
# Inputs are encoded whole for a price if that takes no longer, and they no more memory, than this; else as many rows as that allows.
ENCODE_SECONDS = 3.0
HELD_BYTES = 256 * 2**20
# Neighbouring rows of a sample: stores are fast at reading runs.
RUN = 250
# Bytes of outcomes that are written to measure what writing takes.
WRITTEN_BYTES = 32 * 2**20
# Bytes of the files of a fleet beside what grows with members or examples, and per member of its table and metrics.
MANIFEST_BYTES, TABLE_BYTES = 8192, 32


@dataclass(frozen=True)
class Stand:
    """What the measurements are made on: the encoded training set, or a sample of it that stands for all.

    Attributes:
        real: With targets and splits of all rows; its inputs are those of `probe`.
        probe: What members are trained on for a moment.
        members: The members on `probe`.
        encode: Seconds that sharing the corpus takes.
        held: Rows of the corpus that are encoded; None for all.
    """

    real: Shared
    probe: Shared
    encode: float
    held: Int[np.ndarray, " held"] | None

    @property
    def rows(self) -> int:
        """Rows of the corpus."""
        return len(self.real.data.target)


def price_fleet(
    learner: Learner,
    corpus: Corpus,
    plan: Plan | str | None,
    *,
    executor: str | Executor = "auto",
    queries: Sequence[int] | np.ndarray | Tensor | str | None = None,
    keep: str = "auto",
    parameters: bool = False,
) -> Price:
    """Say what `imprint.fleet` with these arguments will take.

    Args:
        learner: What would be trained.
        corpus: On what.
        plan: Who the members are, or its text.
        executor: As for `imprint.fleet`.
        queries: Rows whose outcomes are kept, a split's name, or None for every row.
        keep: "logits", "summary" or "auto".
        parameters: Whether trained parameters are kept.

    Raises:
        PlanError: There is no plan, or it does not fit the corpus.
        EvidenceError: The executor cannot train these members.
    """
    if plan is None:
        raise PlanError("The price of a fleet needs a plan.", "Write imprint.price('fleet', ..., plan=subsets(256)).")
    plan = Plan.parse(plan) if isinstance(plan, str) else plan
    resolved = learner.resolve(corpus)
    if isinstance(resolved.sampler, Fixed):  # speaks of rows that a measurement does not have
        share = min(1.0, len(resolved.sampler.order) / max(1, len(training_rows(corpus))))
        resolved = replace(resolved, sampler=Repeated(share))
    asked = query_rows(resolved, corpus, queries)
    stand = stand_for(resolved, corpus)
    binding, members = timed(lambda: plan.bind(stand.real, corpus))
    numbers = range(len(members))
    starting, (chosen, why) = timed(lambda: chosen_for(executor, stand, members, numbers, len(asked)))
    if executor != "auto":
        starting += first_use(chosen, stand)
    training, others = trained(chosen, stand, members, numbers, len(asked))
    wave = together(chosen, stand, members, numbers, len(asked))
    kept = keeping(keep, len(members), len(asked), stand.real.task.width)
    writing, written = outcomes(stand.real, asked, kept, wave, len(members))
    stored = parameter_bytes(stand.real) if parameters else 0
    inputs = stand.rows * row_bytes(stand.probe)
    fits = inputs <= MEMORY_SHARE * available_memory() or stand.held is None
    parts = {
        "encoding": stand.encode,
        "the plan": binding,
        "starting": starting,
        "training": training,
        "writing": writing,
    }
    named = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in parts.items() if seconds >= 0.05)
    return Price(
        seconds=sum(parts.values()),
        memory_bytes=psutil.Process().memory_info().rss
        + (inputs if fits and stand.held is not None else 0)
        + working(chosen, stand, members, asked, wave)
        + others,
        disk_bytes=MANIFEST_BYTES
        + members.weights.nbytes
        + 8 * (len(members.rows) + len(asked))
        + stand.real.data.target[: len(asked)].nbytes
        + members.table.estimated_size()
        + TABLE_BYTES * len(members)
        + written
        + stored * len(members)
        + (0 if fits else inputs),
        trainings=len(members),
        basis=f"executor {chosen.name}: {why}; {described(stand, members, resolved)}; {named}",
    )


# ------------------------------------------------------------------------------------------------------------ what is measured on


def stand_for(learner: Learner, corpus: Corpus) -> Stand:
    """Encode the corpus if that is soon done, else a sample of its training rows."""
    rows, total = training_rows(corpus), len(corpus)
    few = in_runs(rows, PROBE)
    cold, _ = timed(lambda: encoder_for(corpus, learner).fit(corpus, few[: -(-len(few) // 4)]))
    quarter, _ = timed(lambda: encoder_for(corpus, learner).fit(corpus, few[: -(-len(few) // 4)]))
    fitting, encoder = timed(lambda: encoder_for(corpus, learner).fit(corpus, few))
    grows = max(0.0, fitting - quarter) / max(1, len(few) - -(-len(few) // 4))
    fitting += grows * max(0, min(len(rows), MOST_FITTED_ROWS) - len(few))
    first, inputs = timed(lambda: encoder.encode(corpus.read(few)))
    each, size = first / len(few), inputs.nbytes / len(few)
    start = max(0.0, cold - quarter)  # what the first use in a process costs: packages, weights of an encoder
    if fitting + each * total <= ENCODE_SECONDS and size * total <= HELD_BYTES:
        took, shared = timed(lambda: share(learner, corpus))
        return Stand(shared, shared, start + took, None)
    held = in_runs(rows, max(len(few), int(min(ENCODE_SECONDS / each, HELD_BYTES / size))))
    parts = [held[begin : begin + PROBE] for begin in range(0, len(held), PROBE)]
    longer, pieces = timed(lambda: [encoder.encode(corpus.read(part)) for part in parts])
    task = fit_task(learner, corpus)
    splits = {name: torch.from_numpy(np.asarray(corpus.rows(name), dtype=np.int64)) for name in corpus.splits}
    splits["train"] = torch.from_numpy(np.asarray(rows, dtype=np.int64))
    weight = None if corpus.weights is None else torch.from_numpy(np.array(corpus.weights, dtype=np.float32))
    real = Shared(learner, task, encoder, Data(torch.cat(pieces), task.encode(corpus.target), weight, splits))
    return Stand(real, sampled(real, held), start + fitting + longer / len(held) * total, held)


def in_runs(rows: Int[np.ndarray, " row"], count: int) -> Int[np.ndarray, " sampled"]:
    """About `count` of the rows, ascending, in runs of neighbours that are spread over all."""
    if len(rows) <= count:
        return rows
    runs = max(1, round(count / RUN))
    begins = np.linspace(0, len(rows) - RUN, runs).astype(np.int64) if len(rows) > RUN else np.array([0])
    return rows[np.unique(begins[:, None] + np.arange(min(RUN, len(rows))))]


def sampled(real: Shared, held: Int[np.ndarray, " held"], share: float = 1.0) -> Shared:
    """A training set of the rows that are held (or a share of them).

    Networks train on as many rows as there really are, each a held one: a step reads as much, an epoch is as long. What is fitted at once
    is fitted on the held rows alone, and its price is grown.
    """
    count = max(1, int(len(held) * share))
    there = torch.from_numpy(held[:count])
    rows = torch.arange(count)
    if has_epochs(real.learner.model):
        rows = real.data.rows % count
    weight = None if real.data.weight is None else real.data.weight[there]
    return replace(real, data=Data(real.data.inputs[:count], real.data.target[there], weight, {"train": rows}))


class Sampled(Sequence[Member]):
    """Members on the rows that are held.

    Args:
        members: On all rows.
        place: Where each row of the corpus is held; -1 where it is not.
    """

    def __init__(self, members: Sequence[Member], place: Int[Tensor, " row"]) -> None:
        self.members, self.place = members, place

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, number: int) -> Member:  # type: ignore[override]
        member = self.members[number]
        if member.rows is None:
            return member
        places = self.place[torch.as_tensor(member.rows)]
        kept = places >= 0
        if not bool(kept.any()):  # a member of a few examples, none of which is held
            return replace(member, rows=torch.zeros(1, dtype=torch.int64), target=None, weight=None)
        weight = None if member.weight is None else member.weight[kept]
        return replace(member, rows=places[kept], weight=weight)


def on_probe(stand: Stand, members: Sequence[Member], count: int | None = None) -> Sequence[Member]:
    """The members as they are trained for the measurements, on the first `count` of the rows that are held."""
    if stand.held is None:
        return members
    count = len(stand.held) if count is None else count
    if has_epochs(stand.real.learner.model):
        return Sampled(members, torch.arange(stand.rows) % count)
    place = torch.full((stand.rows,), -1)
    place[torch.from_numpy(stand.held[:count])] = torch.arange(count)
    return Sampled(members, place)


# ------------------------------------------------------------------------------------------------------------------------ seconds


def chosen_for(
    executor: str | Executor, stand: Stand, members: Members, numbers: Sequence[int], queries: int
) -> tuple[Executor, str]:
    """The executor that would train the members, and why."""
    chosen, why = resolve(executor, stand.probe, on_probe(stand, members), numbers, at_most(stand, queries))
    reason = chosen.why_not(stand.probe)
    if reason is not None:
        raise EvidenceError(
            f"The executor '{chosen.name}' cannot train these members: {reason}.",
            "Use executor='sequential', which trains any model, or 'auto'.",
        )
    return chosen, why


def first_use(executor: Executor, stand: Stand) -> float:
    """Seconds more that the first use of an executor takes in this process; choosing one pays them too."""
    alone = not isinstance(executor, Cluster) and getattr(executor, "processes", 1) == 1
    if not alone or not has_epochs(stand.real.learner.model):
        return 0.0
    cold, warm = (started(executor, stand, [Member()])[0] for _ in range(2))
    return max(0.0, cold - warm)


def at_most(stand: Stand, queries: int) -> int:
    """Queries that can be predicted at once: those of a network are measured on some, those of others on all."""
    return queries if has_epochs(stand.real.learner.model) else min(queries, len(stand.probe.data.target))


def trained(
    executor: Executor, stand: Stand, members: Members, numbers: Sequence[int], queries: int
) -> tuple[float, int]:
    """Seconds of training and prediction, and the bytes that processes beside this one take."""
    if isinstance(executor, Cluster):
        return on_cluster(executor, stand, members, numbers, queries)
    if isinstance(executor, Sequential) and executor.processes > 1:
        count = min(executor.processes, len(numbers))
        starting, taken = started(executor, stand, [Member(seed=seed) for seed in range(count)])
        with threads(threads_of(executor.processes)):
            return starting + one_by_one(Sequential(), stand, members, numbers, queries) / count, taken
    return one_by_one(executor, stand, members, numbers, queries), 0


def one_by_one(executor: Executor, stand: Stand, members: Members, numbers: Sequence[int], queries: int) -> float:
    """Seconds in this process."""
    groups = sum(1 for _ in alike_members(stand.real, members, numbers))
    probe = PRICE_SECONDS / groups
    if stand.held is None or has_epochs(stand.real.learner.model):
        return priced(executor, stand.probe, on_probe(stand, members), numbers, queries, probe)
    # Fitted at once on a sample: what grows with the rows is told from what does not by two sizes.
    sizes = [max(1, len(stand.held) // 2), len(stand.held)]
    half, whole = (
        priced(
            executor,
            sampled(stand.real, stand.held[:size]),
            on_probe(stand, members, size),
            numbers,
            min(size, max(1, queries * size // stand.rows)),
            probe,
        )
        for size in sizes
    )
    return whole + max(0.0, whole - half) / (sizes[1] - sizes[0]) * (len(stand.real.data.rows) - sizes[1])


def on_cluster(
    executor: Cluster, stand: Stand, members: Members, numbers: Sequence[int], queries: int
) -> tuple[float, int]:
    """As many tasks at a time as the cluster has CPUs, each as fast as it would be here."""
    ray = ray_module()

    def tasks() -> int:
        return max(1, int(ray.cluster_resources().get("CPU", 0)) // executor.cpus)

    size = sum(tensor.nbytes for tensor in tensors_of(stand.probe.data).values())

    def start() -> tuple[int, tuple[float, int]]:
        with connected(executor.address, size):
            count = min(len(numbers), tasks())
            return count, started(executor, stand, [Member(seed=seed) for seed in range(count)])

    starting, (count, (_, taken)) = timed(start)
    named: dict[str, Executor] = {"batched": Batched(), "sequential": Sequential()}
    inner = named[executor.inner] if executor.inner in named else steady(stand.probe)
    with threads(executor.cpus):
        alone = one_by_one(inner, stand, members, numbers, queries)
    return starting + alone / count, taken


def started(executor: Executor, stand: Stand, members: Sequence[Member]) -> tuple[float, int]:
    """Seconds until processes have each trained something very small, and the bytes that they take together."""
    rows = torch.arange(min(2, len(stand.probe.data.target)))
    small = [replace(one, rows=rows, settings={"epochs": 1, "sampler": None}) for one in members]
    taken = 0

    def run() -> None:
        nonlocal taken
        for _ in executor.run(stand.probe, small, range(len(small)), rows[:1]):
            held = [child.memory_info().rss for child in psutil.Process().children(recursive=True)]
            taken = max(taken, sum(held))

    return timed(run)[0], taken


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Another number of threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def outcomes(real: Shared, queries: Int[np.ndarray, " query"], keep: str, wave: int, members: int) -> tuple[float, int]:
    """Seconds and bytes of the outcomes of all members: measured by writing those of one wave (or a part of it)."""
    width: tuple[int, ...] = (real.task.width,)
    if not is_estimator(real.learner.model):
        module = build(real.learner, real.encoder, real.task)
        width = predict(module, real.task, real.data.inputs, torch.arange(1)).shape[1:]
    each = 4 * math.prod(width)
    part = queries[: max(1, WRITTEN_BYTES // each)]
    count = max(1, min(wave, members, WRITTEN_BYTES // (each * len(part))))
    finished = Finished(list(range(count)), torch.randn(count, len(part), *width), [0.0] * count)
    test = test_places(real, part)
    with tempfile.TemporaryDirectory(prefix="imprint-price-") as folder:
        store = Outcomes(Path(folder), real.task, keep, real.data.target[torch.from_numpy(part)])
        store.write(finished, test)  # the first call pays for warming up
        seconds, _ = timed(lambda: store.write(finished, test))
        size = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
    files = members / count * len(queries) / len(part)
    return seconds * files, int(size * files)


# ------------------------------------------------------------------------------------------------------------------------- memory


def together(executor: Executor, stand: Stand, members: Members, numbers: Sequence[int], queries: int) -> int:
    """Members whose outcomes are in memory, and written, together."""
    if executor.name != "batched":
        return 1
    if solvable(stand.probe):
        return min(len(numbers), heads(stand, queries).wave)
    memory = executor.memory if isinstance(executor, Batched) else None
    own = on_probe(stand, members)
    waves = [
        min(len(alike), wave_size(stand.probe, learner, queries, memory))
        for learner, alike in alike_members(stand.probe, own, numbers)
    ]
    return max(waves)


def heads(stand: Stand, queries: int) -> Heads:
    """The solver's own account of what its members take."""
    return Heads(stand.probe, torch.arange(at_most(stand, queries)))


def working(executor: Executor, stand: Stand, members: Members, queries: Int[np.ndarray, " query"], wave: int) -> int:
    """Bytes that training takes beside the inputs: a wave, or one member."""
    if executor.name == "batched" and solvable(stand.probe):
        solver = heads(stand, len(queries))
        # The inputs in two types and, while moments are summed, once more; those of the queries.
        shared = (8 + 4 + 8) * solver.count * solver.width + 4 * len(queries) * solver.width
        held = min(wave, solver.together) * solver.member_bytes
        return int((held + shared) * stand.rows / len(stand.probe.data.target))
    if not has_epochs(stand.real.learner.model):
        # A scikit-learn estimator reads a member's rows as one matrix, and most make another one of float64.
        return 3 * int(members.weights.counts().max()) * 4 * math.prod(stand.probe.data.shape)
    kinds = alike_members(stand.probe, on_probe(stand, members), range(len(members)))
    return wave * max(footprint(stand.probe, one, len(queries)).whole for one, _ in kinds)


def parameter_bytes(shared: Shared) -> int:
    """Bytes of the parameters of one member."""
    module = build(shared.learner, shared.encoder, shared.task)
    return sum(one.nbytes for one in module.state_dict().values())


def row_bytes(shared: Shared) -> int:
    """Bytes of one encoded row."""
    return math.prod(shared.data.shape) * shared.data.inputs.dtype.itemsize


def described(stand: Stand, members: Members, learner: Learner) -> str:
    """What was measured on, in words."""
    counts = members.weights.counts()
    held = "" if stand.held is None else f", measured on {len(stand.held):,} of {stand.rows:,} rows"
    passes = f" in {learner.epochs} epochs" if has_epochs(learner.model) else ""
    return f"{len(members):,} members of about {int(np.median(counts)):,} examples{passes}{held}"
