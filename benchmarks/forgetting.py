"""Which methods forget? KLoM and membership attacks of every forget method, beside doing nothing and the oracle-to-oracle floor.

A request is some training examples of a recorded run. Kinds of requests:

    random-1, random-10    1 % and 10 % of the training examples, at random
    class                  all of a class (regression: a tenth of the target's range of values, by rank)
    subgroup               a cluster of the trained model's features within a class (regression: among all)
    mislabelled            5 % wrong labels, planted before the training; of these it is also measured whether what they displaced is back

Each method is tuned by the same number of trials on other examples than those of the request (`imprint.forgetting.searching`), and then
applied to `--models` models that were trained on everything, by other seeds. They are held against oracles, which never saw the examples.
"nothing" are the models before the method, "oracle" as many oracles: the floor. Settings found and verdicts are kept in `--folder`, so
the same command goes on where it was interrupted, and answers at once when all is there.

    python benchmarks/forgetting.py --folder runs/forgetting                                          all settings
    python benchmarks/forgetting.py fashion-mlp --train 2000 --sets 1 --folder /tmp/f                 small
    python benchmarks/forgetting.py fashion-mlp --kinds class --methods ssd scrub npo --folder /tmp/f
"""

from __future__ import annotations

import argparse
import json
import lzma
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from attribution import SHARED, fashion_cnn, fashion_mlp, shuffled, text
from selection import Said, cifar

import imprint
from imprint.answers import Forgetfulness
from imprint.clusters import kmeans
from imprint.errors import ImprintError
from imprint.fitting import generator
from imprint.fleets import share
from imprint.forgetting import searching
from imprint.forgetting.searching import search_settings
from imprint.methods import lookup, registered
from imprint.recording import Run
from imprint.recording.needs import Features
from imprint.verifying.forgetting import judge

TARGET = "label"
VALIDATION = 500
# Share of wrong labels that is planted; shares of random requests; clusters of a class; parts that a regression's target is cut into.
WRONG, CLUSTERS, PARTS = 0.05, 5, 10
RANDOM = {"random-1": 0.01, "random-10": 0.1}
KINDS = (*RANDOM, "class", "subgroup", "mislabelled")
ENDS = ("nothing", "oracle")
# What a method costs on one model, in trainings; assumed for the price, and measured for the tables.
ASSUMED = 0.25
SETS = ("forget", "retain", "held-out")


# ------------------------------------------------------------------------------------------------------------------- settings


def housing(count: int) -> tuple[pl.DataFrame, imprint.Learner]:
    """Prices of Californian houses by block, in units of 100,000 dollars."""
    with lzma.open(SHARED / "tabular/california_housing/housing.csv.xz") as file:
        frame = pl.read_csv(file.read())
    price = (pl.col("median_house_value") / 1e5).alias(TARGET)
    return shuffled(frame.with_columns(price).drop("median_house_value"), count), imprint.Learner("mlp")


# Setting -> how it is read, and its training and test examples.
SETTINGS = {
    "fashion-mlp": (fashion_mlp, 10_000, 5_000),
    "fashion-cnn": (fashion_cnn, 5_000, 5_000),
    "cifar": (cifar, 10_000, 5_000),
    "text": (text, 4_000, 1_400),
    "table": (housing, 10_000, 5_000),
}


@dataclass(frozen=True)
class Size:
    """How large a setting is.

    Attributes:
        train: Training examples; None as the setting has it.
        test: Test examples.
        epochs: Of a training.
    """

    train: int | None
    test: int | None
    epochs: int | None


@cache
def read(setting: str, size: Size) -> tuple[pl.DataFrame, imprint.Learner, int]:
    """Training examples, a validation split (settings are tuned on it) and test examples; the learner; how many are of training."""
    reader, most_train, most_test = SETTINGS[setting]
    train, test = size.train or most_train, size.test or most_test
    if setting == "cifar":  # test images stand behind the 10,000 training images
        frame, learner = reader(10_000 + VALIDATION + test)
        frame = pl.concat([frame[: min(train, 10_000)], frame[10_000:]])
    else:
        frame, learner = reader(train + VALIDATION + test)
    train = len(frame) - VALIDATION - test
    split = pl.Series(["train"] * train + ["validation"] * VALIDATION + ["test"] * test)
    return frame.with_columns(split=split), replace(learner, epochs=size.epochs or learner.epochs), train


def fitted(setting: str, size: Size, folder: Path, planted: int | None = None) -> tuple[Run, dict[str, Any]]:
    """The recorded run of a setting; and of planted wrong labels, by id, the right ones.

    Args:
        setting: Its name.
        size: How large.
        folder: Where runs are kept.
        planted: Number of the batch of wrong labels to plant; None for none.
    """
    frame, learner, train = read(setting, size)
    parts = (setting, size.train, size.test, size.epochs, None if planted is None else f"wrong{planted}")
    folder = folder / "-".join(str(part) for part in parts if part is not None)
    right: dict[int, Any] = {}
    if planted is not None:
        frame, right = with_wrong(frame, train, planted)
    corpus = imprint.open(frame, target=TARGET, split="split", store=folder / "store")
    run = imprint.fit(learner, corpus, folder / "run", progress=False)
    if len(run) != train:
        raise SystemExit(f"{train - len(run)} training examples of {setting} were set aside.")
    return run, {run.ids[place]: value for place, value in right.items()}


def with_wrong(frame: pl.DataFrame, train: int, number: int) -> tuple[pl.DataFrame, dict[int, Any]]:
    """The frame with wrong targets in some training examples, and what they were: another class at random, or each other's values."""
    random = np.random.default_rng([number, 5])
    rows = np.sort(random.choice(train, round(WRONG * train), replace=False))
    targets = frame[TARGET].to_list()
    right = {int(row): targets[row] for row in rows}
    if frame[TARGET].dtype.is_float():
        wrong = dict(zip(right, np.roll(list(right.values()), 1).tolist(), strict=True))
    else:
        classes = frame[TARGET].unique().sort().to_list()
        steps = random.integers(1, len(classes), len(rows))
        wrong = {
            row: classes[(classes.index(value) + int(step)) % len(classes)]
            for (row, value), step in zip(right.items(), steps, strict=True)
        }
    for row, value in wrong.items():
        targets[row] = value
    return frame.with_columns(pl.Series(TARGET, targets, dtype=frame[TARGET].dtype)), right


# ------------------------------------------------------------------------------------------------------------------- requests


def request(run: Run, kind: str, number: int, right: Mapping[str, Any]) -> np.ndarray:
    """Places of the examples to forget, ascending: another set for each number."""
    random = np.random.default_rng([number, KINDS.index(kind)])
    if kind in RANDOM:
        return np.sort(random.choice(len(run), max(2, round(RANDOM[kind] * len(run))), replace=False))
    if kind == "mislabelled":
        return np.flatnonzero(run.ids.is_in(list(right)).to_numpy())
    groups = classes_of(run)
    order = np.random.default_rng(0).permutation(int(groups.max()) + 1)
    if kind == "class":
        return np.flatnonzero(groups == order[number % len(order)])
    # From the other end, so that subgroup and class of a number are of different classes.
    own = np.flatnonzero(groups == order[-1 - number % len(order)])
    own = np.arange(len(run)) if run.task.name == "regression" else own
    count = CLUSTERS * (PARTS if run.task.name == "regression" else 1)
    features = run.gather([Features()])["features"][torch.from_numpy(own)]
    cluster = kmeans(features, count, generator(number, "subgroup"))[0].numpy()
    sizes = np.bincount(cluster, minlength=count)
    # Of a middling size: an outlying handful or half a class would be another kind of request.
    return own[cluster == np.abs(sizes - len(own) / count).argmin()]


def classes_of(run: Run) -> np.ndarray:
    """The class of each training example; of a regression the tenth of the targets that it is in, by rank."""
    target = run.target().numpy()
    return target.argsort().argsort() * PARTS // len(target) if run.task.name == "regression" else target


# --------------------------------------------------------------------------------------------------------------------- verdicts


class Kept:
    """Lines of JSON in a file, each about a key; the last one about a key counts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self.lines: dict[str, dict[str, Any]] = {}
        for line in path.read_text().splitlines() if path.exists() else ():
            try:
                one = json.loads(line)
            except json.JSONDecodeError:  # cut short by a kill
                continue
            self.lines[json.dumps(one["key"], sort_keys=True)] = one

    def __call__(self, key: Mapping[str, Any]) -> dict[str, Any] | None:
        return self.lines.get(json.dumps(key, sort_keys=True))

    def write(self, key: Mapping[str, Any], about: Mapping[str, Any]) -> dict[str, Any]:
        """Append a line."""
        one = json.loads(json.dumps({"key": key, **about}))
        with self.path.open("a") as file:
            file.write(json.dumps(one) + "\n")
        self.lines[json.dumps(key, sort_keys=True)] = one
        return one


@dataclass
class Measured:
    """The verdicts on one setting, made where they are not kept yet.

    Attributes:
        setting: Its name.
        options: Of the command.
    """

    setting: str
    options: argparse.Namespace

    def __post_init__(self) -> None:
        self.size = Size(self.options.train, self.options.test, self.options.epochs)
        self.folder: Path = self.options.folder
        self.searches = Kept(self.folder / "searches.jsonl")
        self.verdicts = Kept(self.folder / "verdicts.jsonl")
        self.said = Said(self.setting)

    @cached_property
    def run(self) -> Run:
        """The run without planted labels."""
        return fitted(self.setting, self.size, self.folder)[0]

    def of(self, kind: str, number: int) -> tuple[Run, np.ndarray, dict[str, Any]]:
        """Run, request and right targets of a request."""
        run, right = self.run, dict[str, Any]()
        if kind == "mislabelled":
            run, right = fitted(self.setting, self.size, self.folder, number)
        run.data = run.data or share(run).data  # encoded once for all that is asked of it
        return run, request(run, kind, number, right), right

    def methods(self) -> list[str]:
        """The methods that are asked for, or all that serve."""
        names = self.options.methods or [one.name for one in registered("forget") if one.serves(self.run)]
        return [name for name in names if name not in ENDS]

    def key(self, kind: str, number: int, method: str, *more: str) -> dict[str, Any]:
        """What a line is about."""
        about = {"setting": self.setting, **vars(self.size), "kind": kind, "set": number, "method": method}
        return about | {name: getattr(self.options, name) for name in ("search", "members", *more)}

    def verdict_key(self, kind: str, number: int, method: str) -> dict[str, Any]:
        return self.key(kind, number, method, "models", "oracles", "shadows", "full")

    def lines(self, kind: str, number: int) -> dict[str, dict[str, Any]]:
        """Method -> what became of it, for one request; also "nothing" and "oracle"."""
        keys = {name: self.verdict_key(kind, number, name) for name in (*self.methods(), *ENDS)}
        missing = [name for name, key in keys.items() if name not in ENDS and self.verdicts(key) is None]
        if missing:
            self.judged(kind, number, missing, keys)
        return {name: found for name, key in keys.items() if (found := self.verdicts(key)) is not None}

    def judged(self, kind: str, number: int, missing: Sequence[str], keys: Mapping[str, dict[str, Any]]) -> None:
        """Tune the missing methods, hold them against oracles, and keep what was found."""
        run, places, right = self.of(kind, number)
        self.said.about = f"{self.setting}, {kind} {number}"
        tuned: dict[str, dict[str, Any]] = {}
        for name in missing:
            found = self.tuned(run, places, kind, number, name)
            if "failed" in found:
                self.verdicts.write(keys[name], {"failed": found["failed"]})
            else:
                tuned[name] = found
        if not tuned:
            return
        options, began = self.options, time.perf_counter()
        try:
            found = judge(
                run, places, {name: (name, one["settings"]) for name, one in tuned.items()}, oracles=options.oracles,
                models=options.models, shadows=options.shadows, relearn=options.full, representation=options.full,
                clean=right or None, corrective=False, progress=self.said,
            )  # fmt: skip
        except ImprintError as error:  # none of them serves
            for name in tuned:
                self.verdicts.write(keys[name], {"failed": error.problem})
            return
        seconds = time.perf_counter() - began
        for name in tuned:
            if name in found.methods:
                self.verdicts.write(
                    keys[name], line(found, name, len(places)) | {"tuned": tuned[name], "judging": seconds}
                )
            else:
                why = next((one for one in found.notes if one.startswith(f"{name} was left out: ")), "left out")
                self.verdicts.write(keys[name], {"failed": why.removeprefix(f"{name} was left out: ")})
        for name in ENDS:
            self.verdicts.write(keys[name], line(found, name, len(places)))

    def tuned(self, run: Run, places: np.ndarray, kind: str, number: int, name: str) -> dict[str, Any]:
        """The settings of a method that a search on other examples found."""
        given = {"members": self.options.members} if name == "datamodel-matching" else {}
        key = self.key(kind, number, name)
        if (found := self.searches(key)) is not None:
            return found
        if not self.options.search:
            return {"settings": given, "words": "not tuned", "seconds": 0.0}
        self.said.about = f"{self.setting}, {kind} {number}, {name}"
        try:
            one = lookup("forget", name)
            tried = search_settings(run, places, one, given, self.options.search, data=run.data, progress=self.said)
        except ImprintError as error:
            return self.searches.write(key, {"failed": error.problem})
        about = {"settings": {**given, **tried.chosen}, "words": tried.words, "seconds": tried.seconds}
        return self.searches.write(key, about | {"trials": tried.spec()["trials"]})


def line(found: Forgetfulness, arm: str, count: int) -> dict[str, Any]:
    """What is kept of an arm: its rows of the table, and what follows from them."""
    rows = found.table.filter(pl.col("arm") == arm).drop("arm")
    sets = [name for name in SETS if found.row(arm, found.main, name) is not None]
    about: dict[str, Any] = {
        "count": count, "seconds": found.seconds.get(arm), "main": found.main, "rows": rows.to_dicts(),
        "near": {name: found.near(arm, found.main, name) for name in sets}, "told": found.told_apart(arm),
    }  # fmt: skip
    if arm not in ENDS:
        about["beats"] = found.beats_nothing(arm)
        about["hides"] = [name for name in ("lira-auroc", "rmia-auroc") if weaker(found, arm, name)]
        about["said"] = [one for one in found.conclusions if f" {arm} " in one]
    return about


def weaker(found: Forgetfulness, arm: str, attack: str) -> bool:
    """Whether an attack that finds the examples in models that know them clearly finds fewer of them after a method."""
    own, before = found.row(arm, attack), found.row("nothing", attack)
    if own is None or before is None or found.near("nothing", attack):
        return False
    high = found.table.filter((pl.col("arm") == arm) & (pl.col("measure") == attack))["change_high"][0]
    return high is not None and high < 0


# ----------------------------------------------------------------------------------------------------------------------- price


def print_price(one: Measured) -> None:
    """What is left to pay, in trainings: of the setting's run, one after the other."""
    options, names = one.options, one.methods()
    left = {
        (kind, number): [name for name in names if one.verdicts(one.verdict_key(kind, number, name)) is None]
        for kind in options.kinds
        for number in range(options.sets)
    }
    open_ = {key: some for key, some in left.items() if some}
    alone = float(one.run.curves()["seconds"].max())  # since the beginning of the training
    runs = len({number if kind == "mislabelled" else -1 for kind, number in open_})
    members = options.members if any("datamodel-matching" in some for some in open_.values()) else 0
    shared = runs * (1 + max(options.models, searching.MODELS) + members)
    each = options.oracles + options.shadows + (searching.ORACLES if options.search else 0)
    applied = sum(
        (searching.MODELS + 1) * min(options.search, trials(name)) + options.models
        for some in open_.values()
        for name in some
        if name != "retrain"
    )
    retrained = sum(options.models for some in open_.values() if "retrain" in some)
    total = shared + each * len(open_) + retrained
    print(
        f"{len(open_)} of {len(left)} requests are open: {total:,} trainings, {applied:,} times a method on a model. A recorded training "
        f"took {alone:.1f} s; one after the other, a method at {ASSUMED:g} trainings, that is "
        f"{duration((total + ASSUMED * applied) * alone)}, and less where trainings are stacked.\n",
        flush=True,
    )


def trials(name: str) -> int:
    """How many settings of a method there are to try."""
    return (
        int(np.prod([len(one) for one in lookup("forget", name).search.values()]))
        if lookup("forget", name).search
        else 0
    )


def duration(seconds: float) -> str:
    """In a unit that suits.

    >>> duration(90), duration(7200)
    ('90 s', '2.0 h')
    """
    return (
        f"{seconds:.0f} s"
        if seconds < 600
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )


# ---------------------------------------------------------------------------------------------------------------------- tables


def measure(setting: str, options: argparse.Namespace) -> None:
    """The tables of one setting, and what follows."""
    began = time.perf_counter()
    one = Measured(setting, options)
    run = one.run
    print(
        f"\n## {setting}\n\n{len(run):,} training and {len(run.rows('test')):,} test examples; {run.learner.model}, "
        f"{sum(p.numel() for p in run.model().module.parameters()):,} parameters, {run.learner.epochs} epochs, test {run.task.headline} "
        f"{run.metrics('test')[run.task.headline]:.3f}; {options.models} models of each arm, {options.oracles - options.models} oracles to "
        f"judge by, {options.shadows} shadow models; each method tuned by at most {options.search} trials; {options.sets} requests of each "
        f"kind; {torch.get_num_threads()} threads\n",
        flush=True,
    )
    print_price(one)
    found: dict[str, list[dict[str, dict[str, Any]]]] = {}
    for kind in options.kinds:
        found[kind] = [one.lines(kind, number) for number in range(options.sets)]
        print_kind(kind, found[kind], run.task.headline)
    for sentence in overall(found):
        print(f"- {sentence}")
    print(f"\n{setting} took {duration(time.perf_counter() - began)} this time.", flush=True)


def print_kind(kind: str, sets: list[dict[str, dict[str, Any]]], headline: str) -> None:
    """One kind of request: every arm, the nearest to the oracles on the forgotten examples first; then what follows."""
    usable = [lines for lines in sets if "nothing" in lines]
    failed = {name: one["failed"] for lines in sets for name, one in lines.items() if "failed" in one}
    counts = ", ".join(f"{lines['nothing']['count']:,}" for lines in usable)
    spread = "the mean of the sets [least, greatest]" if len(usable) > 1 else "with its 95 % interval"
    print(f"\n### {kind}\n\n{counts or 'No'} examples to forget; {spread}.\n")
    if usable:
        main = usable[0]["nothing"]["main"]
        columns = table_columns(main, headline, usable)
        print(
            f"| arm | {' | '.join(columns)} | time by retraining | better than nothing: KLoM, attack | told from oracles |"
        )
        print(f"|{'---|' * (len(columns) + 4)}")
        names = dict.fromkeys(n for lines in usable for n in lines if "rows" in lines[n])
        for name in sorted(names, key=lambda one: (one != "oracle", mean(usable, one, main, "forget") or 0.0)):
            cells = [shown(usable, name, parts) for parts in columns.values()]
            price = [
                lines[name]["seconds"] / lines["retrain"]["seconds"]
                for lines in usable
                if name not in (*ENDS, "retrain") and all("rows" in lines.get(one, {}) for one in (name, "retrain"))
            ]
            own = [lines[name] for lines in usable if "rows" in lines.get(name, {})]
            cells.append(f"{statistics.mean(price):.2g}" if price else "")
            better = [sum(bool(one[by]) for one in own) for by in ("beats", "hides") if name not in ENDS]
            cells.append(f"{better[0]}, {better[1]} of {len(own)}" if better else "")
            cells.append("" if name == "oracle" else f"{sum(told(one) for one in own)} of {len(own)}")
            print(f"| {name} | {' | '.join(cells)} |")
        print("\n" + "\n".join(f"- {sentence}" for sentence in claims(usable)))
    for name, why in failed.items():
        print(f"- {name} was not applied: {why}")
    sys.stdout.flush()


def table_columns(main: str, headline: str, sets: list[dict[str, dict[str, Any]]]) -> dict[str, list[tuple[str, str]]]:
    """Heading -> the (measure, set) that are in the cell, those that were measured."""
    asked = {
        **{f"{main} {name}, 95th": [(main, name), (f"{main}-95", name)] for name in SETS},
        "LiRA AUROC": [("lira-auroc", "forget")],
        "RMIA AUROC": [("rmia-auroc", "forget")],
        "LiRA, RMIA TPR at 1 %": [("lira-tpr-1", "forget"), ("rmia-tpr-1", "forget")],
        f"{headline} forget": [(headline, "forget")],
        f"{headline} held-out": [(headline, "held-out")],
        "recovery": [("recovery", "forget")],
        "relearn": [("relearn", "forget")],
        "CKA to oracles": [("cka-oracle", "held-out")],
    }
    there = {(row["measure"], row["set"]) for lines in sets for row in lines["nothing"]["rows"]}
    there |= {("cka-oracle", "held-out")} & there
    return {heading: kept for heading, parts in asked.items() if (kept := [part for part in parts if part in there])}


def values(sets: list[dict[str, dict[str, Any]]], arm: str, measure: str, name: str) -> Iterator[dict[str, Any]]:
    """Rows of a measure of an arm, one for each set where it was measured."""
    for lines in sets:
        for row in lines.get(arm, {}).get("rows", ()):
            if row["measure"] == measure and row["set"] == name:
                yield row


def mean(sets: list[dict[str, dict[str, Any]]], arm: str, measure: str, name: str) -> float | None:
    found = [row["value"] for row in values(sets, arm, measure, name)]
    return statistics.mean(found) if found else None


def shown(sets: list[dict[str, dict[str, Any]]], arm: str, parts: list[tuple[str, str]]) -> str:
    """A cell: each part's mean over sets; of the first one also its spread."""
    cells = []
    for number, (measure, name) in enumerate(parts):
        rows = list(values(sets, arm, measure, name))
        if not rows:
            continue
        form = "{:.2f}" if measure.startswith(("klom", "relearn")) else "{:.3f}"
        said = form.format(statistics.mean(row["value"] for row in rows))
        if not number and (len(parts) == 1 or measure == "klom"):
            ends = (
                (rows[0]["low"], rows[0]["high"])
                if len(rows) == 1
                else (min(row["value"] for row in rows), max(row["value"] for row in rows))
            )
            said += f" [{form.format(ends[0])}, {form.format(ends[1])}]" if None not in ends else ""
        cells.append(said)
    return "; ".join(cells)


def told(one: Mapping[str, Any]) -> bool:
    """Whether anything tells an arm from the oracles: KLoM on some set, or another measure on the forgotten examples."""
    return bool(one["told"]) or not all(one["near"].values())


def better(one: Mapping[str, Any]) -> bool:
    """Whether an arm clearly does more than nothing: KLoM on the forgotten examples is lower, or an attack finds fewer of them.

    A model that is far from the oracles for another reason is attacked with less success, too: the attack counts only where KLoM is
    not clearly higher.
    """
    moved = [row["change_low"] for row in one["rows"] if (row["measure"], row["set"]) == (one["main"], "forget")]
    farther = any(low is not None and low > 0 for low in moved)
    return bool(one["beats"] or (one["hides"] and not farther))


# What became of a request, in words -> whether it did more than nothing, whether it is told from oracles.
ENDINGS = {
    "At the floor: better than doing nothing, and told from oracles by nothing, on no set": (True, False),
    "Better than doing nothing, by KLoM or an attack, but still told from oracles": (True, True),
    "NO better than doing nothing, and told from oracles": (False, True),
    "NO better than doing nothing, though not told from oracles (more models may decide)": (False, False),
}


def endings(cases: Sequence[dict[str, dict[str, Any]]]) -> Iterator[str]:
    """How often each method ended in which way, of the requests that left a trace; each method is in one way for each request."""
    own: dict[str, list[tuple[bool, bool]]] = {}
    for lines in cases:
        for name, one in lines.items():
            if "rows" in one and name not in ENDS:
                own.setdefault(name, []).append((better(one), told(one)))
    for words, ending in ENDINGS.items():
        counts = {name: some.count(ending) for name, some in own.items() if ending in some}
        order = sorted(counts, key=lambda one: -counts[one] / len(own[one]))
        yield f"{words}: {', '.join(f'{name} {counts[name]} of {len(own[name])}' for name in order) or 'none'}."


def with_trace(sets: Sequence[dict[str, dict[str, Any]]]) -> list[dict[str, dict[str, Any]]]:
    """The requests whose examples tell models that know them from oracles."""
    return [lines for lines in sets if lines["nothing"]["told"]]


def claims(sets: list[dict[str, dict[str, Any]]]) -> Iterator[str]:
    """What of a kind of request follows from the intervals."""
    left = with_trace(sets)
    by = sorted({name for lines in left for name in lines["nothing"]["told"]})
    yield (
        f"Models that know the examples are told from oracles in {len(left)} of {len(sets)} sets"
        + (f", by {', '.join(by)}." if by else ".")
        + (
            ""
            if len(left) == len(sets)
            else " Where they are not, there is no trace, and no method can show that it removed one."
        )
    )
    if left:
        yield from endings(left)


def overall(found: Mapping[str, list[dict[str, dict[str, Any]]]]) -> Iterator[str]:
    """What of a setting follows over all kinds of requests."""
    cases = with_trace([lines for sets in found.values() for lines in sets if "nothing" in lines])
    if not cases or len(found) < 2:
        return
    print("\n### All kinds\n")
    yield f"{len(cases)} requests left a trace. What became of them:"
    yield from endings(cases)
    own: dict[str, list[bool]] = {}
    for lines in cases:
        for name, one in lines.items():
            if "rows" in one and name not in ENDS:
                own.setdefault(name, []).append(better(one))
    yield f"NO better than doing nothing, whatever the request: {', '.join(n for n in own if not any(own[n])) or 'none'}."


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", help=f"of {', '.join(SETTINGS)}; all where none is named")
    parser.add_argument("--folder", type=Path, required=True, help="where runs, settings found and verdicts are kept")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="of requests")
    parser.add_argument("--methods", nargs="+", help="forget methods; all that serve where none is named")
    parser.add_argument("--sets", type=int, default=3, help="requests of each kind")
    parser.add_argument(
        "--search", type=int, default=4, help="settings that are tried of each method; 0 takes the defaults"
    )
    parser.add_argument("--models", type=int, default=4, help="models of each arm")
    parser.add_argument(
        "--oracles", type=int, default=16, help="models trained without the examples, those of the arm among them"
    )
    parser.add_argument("--shadows", type=int, default=16, help="models that attacks learn from")
    parser.add_argument("--members", type=int, default=64, help="trainings that datamodels are fitted to")
    parser.add_argument(
        "--full", action="store_true", help="also how soon examples are learned again, and what features are like"
    )
    parser.add_argument("--train", type=int, help="training examples, by setting where not given")
    parser.add_argument("--test", type=int, help="test examples, by setting where not given")
    parser.add_argument("--epochs", type=int, help="of a training, by setting where not given")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.settings if name not in SETTINGS]
    if unknown:
        parser.error(f"no setting {unknown[0]!r}; there are {', '.join(SETTINGS)}")
    for name in options.methods or ():
        lookup("forget", name)
    for setting in options.settings or SETTINGS:
        measure(setting, options)


if __name__ == "__main__":
    main()
