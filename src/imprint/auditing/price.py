"""What a job will take, before it is paid: seconds, memory and disk, from a short measured probe.

A few hundred examples are encoded, trained on and searched for issues on this machine; what grows with the data is then
extrapolated by how it grows. Encoding, training and prediction are linear in examples, the neighbour searches are a matrix product
whose operations are counted and divided by the rate that the probe measured.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import torch
from torch import Tensor

from imprint.cleaning import clean
from imprint.cleaning.near import WIDTH
from imprint.corpus import Corpus
from imprint.errors import MethodError, nearest
from imprint.fitting import Learner, predict, train
from imprint.fitting.build import build, encoder_for, fit_at_once, fit_task, has_epochs
from imprint.fitting.data import MEMORY_SHARE, Data, training_rows
from imprint.fitting.deletable import scheme
from imprint.fitting.memory import available_memory
from imprint.fitting.samplers import visits as visits_of
from imprint.fitting.sequenced import Sequencing
from imprint.models.encoder import MOST_FITTED_ROWS
from imprint.recording import fit
from imprint.recording.checkpoints import KEPT
from imprint.recording.curves import MOST as CURVE_ROWS

if TYPE_CHECKING:
    from imprint.fleets import Plan

CALLS = ("audit", "clean", "fit", "fleet", "verify")
# Examples of the probe: enough that fixed costs do not drown what grows, few enough to take seconds.
PROBE = 2000
# Training is timed for at least this long.
PROBE_SECONDS = 1.0
# The neighbour searches of `clean`: outliers and near duplicates.
SEARCHES = 2


@dataclass(frozen=True)
class Price:
    """What a job will take.

    Attributes:
        seconds: Wall-clock time on this machine, as free as it was during the probe.
        memory_bytes: Peak resident memory of the process.
        disk_bytes: What the results take.
        trainings: How many models are trained in all.
        basis: What was measured, and how it was extrapolated.
    """

    seconds: float
    memory_bytes: int
    disk_bytes: int
    trainings: int
    basis: str


@dataclass(frozen=True)
class Rates:
    """What the probe measured; rates are seconds per example unless said otherwise."""

    fit_encoder: float
    encode: float
    train: float
    predict: float
    bytes_per_example: int
    parameters: int


def price(
    call: str,
    learner: Learner,
    corpus: Corpus,
    *,
    seeds: int = 5,
    folds: int = 0,
    plan: Plan | str | None = None,
    **fleet: Any,
) -> Price:
    """Say what `fit`, `clean`, `verify`, `audit` or `fleet` of a corpus will take.

    Args:
        call: "fit", "clean" (after a fit), "verify", "audit" or "fleet".
        learner: What would be trained.
        corpus: On what.
        seeds: Trainings per arm of the verification.
        folds: Trainings of the cross-fitting.
        plan: Of the fleet.
        fleet: More of what `imprint.fleet` would be given: `executor`, `queries`, `keep`, `parameters`.

    Returns:
        The price. The benchmarks `benchmarks/price.py` and `benchmarks/fleet_price.py` hold it against what was paid.

    Raises:
        MethodError: Nothing of that name has a price.
        PlanError: The plan does not fit the corpus.
    """
    if call not in CALLS:
        raise MethodError(f"No price for '{call}'.", nearest(call, CALLS))
    if call == "fleet":
        from imprint.auditing.price_fleet import price_fleet

        return price_fleet(learner, corpus, plan, **fleet)
    resolved = learner.resolve(corpus)
    examples, training = len(corpus), len(training_rows(corpus))
    visits = visits_of(resolved.sampler, training) or training
    resolved = replace(resolved, sampler=None)  # what a visit costs does not depend on who is visited
    rates = probe(resolved, corpus)
    epochs = 1 if not has_epochs(resolved.model) else int(resolved.epochs or 1)
    held_out = min(CURVE_ROWS, examples - training)
    encode = rates.fit_encoder + rates.encode * examples
    once = rates.train * visits * epochs
    test = rates.predict * (examples - training)
    seconds = {
        "fit": encode + once + rates.predict * held_out * epochs,
        "cross-fit": folds * (once * max(0, folds - 1) / max(1, folds)) + rates.predict * training,
        "verify": 3 * seeds * (once + test),
        "clean": 0.0,
    }
    if call in ("clean", "audit"):
        seconds["clean"] = cleaning(resolved, corpus) + rates.predict * examples
    wanted = {"fit": ["fit"], "clean": ["clean", "cross-fit"], "verify": ["verify"], "audit": list(seconds)}[call]
    trainings = {"fit": 1, "clean": folds, "verify": 3 * seeds, "audit": 1 + folds + 3 * seeds}[call]
    inputs = rates.bytes_per_example * examples
    fits = inputs <= MEMORY_SHARE * available_memory()
    width = fit_task(resolved, corpus).width
    recorded = training * epochs * (2 * width + 8) if resolved.record != "none" else 0
    checkpoints = 4 * rates.parameters * (min(KEPT, epochs) + 1 + 4)
    basis = (
        f"encoding, training and searching {min(PROBE, examples):,} of {examples:,} examples; "
        f"{epochs} epoch{'s' if epochs != 1 else ''} of {visits:,} training examples at {1 / rates.train:,.0f} a second"
        + ("" if fits else "; encoded inputs stay on disk")
    )
    return Price(
        seconds=sum(seconds[name] for name in wanted),
        memory_bytes=psutil.Process().memory_info().rss
        + (inputs if fits else 0)
        + 16 * rates.parameters
        + training * width * 8
        + (examples * 4 * WIDTH * 2 if call in ("clean", "audit") else 0),
        disk_bytes=recorded + checkpoints + examples * (64 + 4 * width) + (0 if fits else inputs),
        trainings=trainings,
        basis=basis,
    )


def probe(learner: Learner, corpus: Corpus) -> Rates:
    """Encode, train and predict on some training examples, and time it."""
    rows = training_rows(corpus)
    chosen = np.sort(np.random.default_rng(0).choice(rows, min(PROBE, len(rows)), replace=False))
    encoder = encoder_for(corpus, learner)
    fitting, _ = timed(lambda: encoder.fit(corpus, chosen))
    # A corpus is read in order when it is encoded, so a run of neighbouring rows is what has to be timed.
    read = np.arange(min(PROBE, len(corpus)))
    frame_seconds, frame = timed(lambda: corpus.read(read))
    encode_seconds, _ = timed(lambda: encoder.encode(frame))
    inputs = encoder.encode(corpus.read(chosen))
    task = fit_task(learner, corpus)
    target = task.encode(corpus.target.gather(chosen))
    data = Data(inputs, target, None, {"train": torch.arange(len(chosen))})
    module, seconds = train_rate(learner, encoder, task, data)
    predicting, _ = timed(lambda: predict(module, task, inputs, torch.arange(len(chosen)), device=learner.device))
    return Rates(
        fit_encoder=fitting * min(len(rows), MOST_FITTED_ROWS) / len(chosen),
        encode=(frame_seconds + encode_seconds) / len(read),
        train=seconds,
        predict=predicting / len(chosen),
        bytes_per_example=math.prod(inputs.shape[1:]) * inputs.dtype.itemsize,
        parameters=sum(one.numel() for one in module.parameters()),
    )


def train_rate(learner: Learner, encoder: Any, task: Any, data: Data) -> tuple[torch.nn.Module, float]:
    """A trained module, and the seconds that training takes per example and epoch."""
    count = len(data.rows)
    plan = None if learner.deletable is None else scheme(learner.deletable)
    times = plan.cost if isinstance(plan, Sequencing) else 1.0  # shards and slices alone visit as many examples
    learner = replace(learner, deletable=None)
    if not has_epochs(learner.model):
        seconds, module = timed(lambda: fit_at_once(learner, encoder, task, data))
        return module, seconds / count
    # The probe's batches have the size of the real ones, also where the probe has fewer examples than a batch.
    size = int(learner.batch_size or 1)
    rows = torch.arange(count).repeat(math.ceil(2 * size / count))
    wide = replace(data, splits={"train": rows})
    train(build(learner, encoder, task), task, wide, replace(learner, epochs=1))  # the first steps pay for warming up
    module, epochs, spent = build(learner, encoder, task), 1, 0.0
    while spent < PROBE_SECONDS:
        spent, _ = timed(lambda: train(module, task, wide, replace(learner, epochs=epochs)))  # noqa: B023
        per_example = spent / (epochs * len(rows))
        epochs = max(2 * epochs, math.ceil(1.2 * PROBE_SECONDS / max(per_example * len(rows), 1e-6)))
    return module, times * per_example


def cleaning(learner: Learner, corpus: Corpus) -> float:
    """Seconds that `clean` takes: measured on a part of the corpus, and grown by how its parts grow."""
    ids = corpus.ids
    keep = np.random.default_rng(0).permutation(len(corpus))[:PROBE]
    part = corpus.drop(ids.gather(np.setdiff1d(np.arange(len(corpus)), keep))) if len(corpus) > PROBE else corpus
    with tempfile.TemporaryDirectory(prefix="imprint-price-") as folder:
        one = replace(learner, epochs=1) if learner.epochs else learner
        run = fit(one, part, Path(folder) / "run", progress=False)
        seconds, _ = timed(lambda: clean(run))
    linear = max(0.0, seconds - search(len(part))) * len(corpus) / len(part)
    return linear + search(len(corpus))


def search(examples: int) -> float:
    """Seconds of the neighbour searches: all pairs in at most `WIDTH` dimensions, at the measured rate of matrix products."""
    side = 1024
    factor: Tensor = torch.ones(side, WIDTH)
    factor @ factor.T
    seconds, _ = timed(lambda: [factor @ factor.T for _ in range(8)])
    return SEARCHES * examples**2 / (8 * side**2) * seconds


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds that a call takes, and what it gives."""
    began = time.perf_counter()
    value = call()
    return time.perf_counter() - began, value
