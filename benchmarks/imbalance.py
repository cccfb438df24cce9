"""Losses and heads for rare classes and wrong labels, on frozen features of real data, beside plain ones on the same examples.

Classes are thinned out to a long tail (the largest keeps all of its training examples, each next one fewer, the smallest 1/50) and labels
are turned to another class drawn by the classes' sizes; test examples are as they are. The figure is the mean recall of the classes
on them (balanced accuracy), with the standard deviation over seeds; each seed draws the tail, the noise and the weights anew.

    linear, mlp         cross-entropy                                    the plain ones
    ... reweighted      cross-entropy, every class counts the same       the usual remedy of a tail
    ... dice, adaptive  Li et al. 2020, arXiv:1911.02855                 alpha 0 and 0.01
    ... focal           Lin et al. 2017, arXiv:1708.02002
    logistic, rcal      solved; Zhang et al. 2023, arXiv:2211.10955      `imprint.fitting.recovery`
    nmtune              Chen et al. 2024, arXiv:2309.17002               `imprint.models.nmtune`

The last table is of label sets: every CLINC text has an intent and its domain as labels, of which a share is hidden in training.
Micro-F1 at a probability of one half, and mean average precision, which needs no threshold.

    python benchmarks/imbalance.py                         five seeds, some minutes
    python benchmarks/imbalance.py trec6 --seeds 2
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator
from dataclasses import replace

import polars as pl
import torch
from attribution import lines
from label_audits import SHARED
from sklearn.metrics import average_precision_score
from torch import Tensor

import imprint
from imprint.fitting import predict
from imprint.fitting.build import with_loss
from imprint.fleets import Member, Shared, share
from imprint.fleets.sequential import train_module

ENCODER = "wordllama"
SMALLEST = 1 / 50
NOISE = 0.3
HIDDEN = 0.5
ARMS: dict[str, tuple[str, str, bool]] = {  # head, loss, reweighted
    "linear": ("linear", "auto", False), "linear reweighted": ("linear", "auto", True), "linear dice": ("linear", "dice", False),
    "linear adaptive": ("linear", "adaptive-dice", False), "linear focal": ("linear", "focal", False),
    "mlp": ("mlp", "auto", False), "mlp reweighted": ("mlp", "auto", True), "mlp dice": ("mlp", "dice", False),
    "mlp adaptive": ("mlp", "adaptive-dice", False), "mlp focal": ("mlp", "focal", False), "nmtune": ("nmtune", "auto", False),
    "logistic": ("logistic", "auto", False), "logistic reweighted": ("logistic", "auto", True), "rcal": ("rcal", "auto", False),
}  # fmt: skip


def corpus(name: str) -> imprint.Corpus:
    """A text set with a test split."""
    rows = lines(f"text/{name}/{name}.jsonl.xz")
    frame = pl.DataFrame(
        {
            "text": [row["text"] for row in rows],
            "label": [f"c{row['label']}" for row in rows],
            "split": [row["split"] for row in rows],
        }
    )
    return imprint.open(
        frame.filter(pl.col("split").is_in(["train", "test"])), target="label", inputs="text", split="split"
    )


def thinned(target: Tensor, classes: int, random: torch.Generator) -> Tensor:
    """Places of the examples of a long tail; the order of the classes is drawn."""
    kept = []
    order = torch.randperm(classes, generator=random).tolist()
    for place, code in enumerate(order):
        places = (target == code).nonzero()[:, 0]
        count = max(2, round(len(places) * SMALLEST ** (place / (classes - 1))))
        kept.append(places[torch.randperm(len(places), generator=random)[:count]])
    return torch.cat(kept).sort().values


def turned(target: Tensor, classes: int, random: torch.Generator) -> Tensor:
    """The same labels, some of them another class, drawn by size."""
    sizes = torch.bincount(target, minlength=classes).double()
    sizes = sizes.expand(len(target), -1).scatter(1, target[:, None], 0.0)
    other = torch.multinomial(sizes, 1, generator=random)[:, 0]
    return torch.where(torch.rand(len(target), generator=random) < NOISE, other, target)


def conditions(shared: Shared, seed: int) -> Iterator[tuple[str, Member]]:
    """What members train on."""
    random = torch.Generator().manual_seed(seed)
    rows = shared.data.rows
    target, classes = shared.data.target[rows], shared.task.width
    tail = thinned(target, classes, random)
    yield "as it is", Member(seed, rows, target)
    yield "long tail", Member(seed, rows[tail], target[tail])
    yield "wrong labels", Member(seed, rows, turned(target, classes, random))
    yield "both", Member(seed, rows[tail], turned(target[tail], classes, random))


def outputs(shared: Shared, member: Member, rows: Tensor) -> Tensor:
    """What a member says of rows."""
    return predict(train_module(shared, member), shared.task, shared.data.inputs, rows)


def classes_table(name: str, seeds: int) -> None:
    """Balanced accuracy of every arm in every condition."""
    data = corpus(name)
    base = share(imprint.Learner(f"{ENCODER}/linear"), data)
    names = [name for name, _ in conditions(base, 0)]
    print(
        f"\n{name}: {len(base.data.rows)} training examples, {base.task.width} classes; balanced accuracy, {seeds} seeds"
    )
    print(f"  {'':22}" + "".join(f"{condition:>20}" for condition in names), flush=True)
    for arm, (head, loss, reweighted) in ARMS.items():
        learner = imprint.Learner(f"{ENCODER}/{head}", loss=loss).resolve(data)
        shared = Shared(learner, with_loss(base.task, learner), base.encoder, base.data)
        found: dict[str, list[float]] = {condition: [] for condition in names}
        for seed in range(seeds):
            for condition, member in conditions(shared, seed):
                said = outputs(shared, balanced(shared, member) if reweighted else member, shared.test)
                metrics = shared.task.metrics(said, shared.data.target[shared.test])
                found[condition].append(metrics["balanced_accuracy"])
        cells = "".join(f"{statistics.mean(one):11.4f} ± {spread(one):.4f}" for one in found.values())
        print(f"  {arm:22}{cells}", flush=True)


def balanced(shared: Shared, member: Member) -> Member:
    """The member with weights that let every class count the same."""
    target = torch.as_tensor(member.target)
    counts = torch.bincount(target, minlength=shared.task.width).clamp(min=1)
    return replace(member, weight=(1 / counts.float())[target])


def spread(values: list[float]) -> float:
    """Standard deviation; of one value 0."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def labels_table(seeds: int) -> None:
    """Losses for label sets of which a part is hidden."""
    rows = [
        row
        for row in lines("text/clinc150/clinc150_full.jsonl.xz")
        if not row["oos"] and row["split"] in ("train", "test")
    ]
    with (SHARED / "text/clinc150/domains.json").open() as file:
        domains = {intent: domain for domain, intents in json.load(file).items() for intent in intents}
    frame = pl.DataFrame(
        {
            "text": [row["text"] for row in rows],
            "labels": [[row["label"], f"domain {domains[row['label']]}"] for row in rows],
            "split": [row["split"] for row in rows],
        }
    )
    data = imprint.open(frame, target="labels", inputs="text", split="split")
    base = share(imprint.Learner(f"{ENCODER}/mlp"), data)
    train, test = base.data.rows, base.test
    true = base.data.target[test]
    print(
        f"\nclinc150: {len(train)} training examples, {base.task.width} labels, {HIDDEN:.0%} of them hidden; {seeds} seeds"
    )
    print(f"  {'loss':22}{'micro-F1':>18}{'mean average precision':>26}")
    for loss in ("auto", "focal", "dice", "adaptive-dice", "weak-negatives", "positive-unlabelled"):
        learner = imprint.Learner(f"{ENCODER}/mlp", loss=loss).resolve(data)
        shared = Shared(learner, with_loss(base.task, learner), base.encoder, base.data)
        measured = []
        for seed in range(seeds):
            random = torch.Generator().manual_seed(seed)
            target = base.data.target[train]
            shown = target * (torch.rand(target.shape, generator=random) >= HIDDEN)
            said = outputs(shared, Member(seed, train, shown), test)
            measured.append(
                (
                    base.task.metrics(said, true)["f1_micro"],
                    float(average_precision_score(true.numpy(), said.numpy(), average="macro")),
                )
            )
        cells = [f"{statistics.mean(one):.4f} ± {spread(list(one)):.4f}" for one in zip(*measured, strict=True)]
        print(f"  {loss:22}{cells[0]:>18}{cells[1]:>26}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "sets", nargs="*", default=["trec6", "banking77", "clinc150"], help="trec6, banking77, clinc150."
    )
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    for name in arguments.sets:
        if name == "clinc150":
            labels_table(arguments.seeds)
        else:
            classes_table(name, arguments.seeds)


if __name__ == "__main__":
    main()
