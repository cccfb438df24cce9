"""Which selection is worth what it costs? Every select method on real data, beside random and beside everything, in the manner of SELECT.

Identical models (encoder, settings, seeds, test examples) are trained on what each method chooses, for as many epochs as on everything, for
as many steps, and for as long (selecting counted, with the part of the recorded training that a method reads). Intervals are those of
`imprint.verifying.interval`, for new seeds and new test examples; a star marks a lead over random whose interval leaves zero out. Below the
tables it is said in words what of three papers holds here:

    RS2 (Okanovic et al. 2024, arXiv:2305.18424)     a fresh random subset per epoch beats fixed coresets in time to accuracy, their
                                                     selecting counted, at equal epochs
    EL2N (Paul et al. 2021, arXiv:2107.07075)        the half with the lowest EL2N can be left out without loss, at equal steps
    random above 10 % (Guo et al. 2022, arXiv:2204.08499; Okanovic et al.)    no fixed choice clearly beats random there, at equal steps

Everything is kept in `--folder`: the same command goes on with what is missing, and a command with more seeds, budgets or methods trains
the new ones alone. A seed, a budget and a regime cost about a training on `budget` (epochs) or on everything (steps, time) per method.

    python benchmarks/selection.py --folder ~/selection                                          five settings, all methods
    python benchmarks/selection.py fashion-mlp --folder /tmp/s --train 2000 --test 1000 --seeds 3 --budgets 0.1 0.5      smaller
    python benchmarks/selection.py text --folder /tmp/s --methods rs2 el2n-top k-center --regimes epochs --no-curves --pages /tmp/s
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl
import torch
from attribution import fashion_cnn, fashion_mlp, lines, shuffled, sprite, table, text
from label_audits import SHARED, png

import imprint
from imprint.answers import REGIMES, Comparison
from imprint.methods import lookup, registered
from imprint.recording import Run
from imprint.reporting import write_comparison
from imprint.verifying import crossed_interval

# An interval of a loss that reaches below this is not "no loss".
LOSS = -0.01
# Of the training examples, labelled as trusted to methods that learn from such.
TRUSTED = 0.05
SAID_SECONDS = 20.0


def cifar(count: int) -> tuple[pl.DataFrame, imprint.Learner]:
    """CIFAR-10: the first 10,000 training images, then test images; for a CNN, mirrored and shifted as it is trained."""
    labels = np.load(SHARED / "images/cifar10/labels.npz")
    codes = np.concatenate([labels["y_train_first10k"], labels["y_test"]])[:count]
    pixels = np.concatenate([sprite("images/cifar10/train_first10k.webp"), sprite("images/cifar10/test10k.webp")])[
        :count
    ]
    frame = pl.DataFrame({"image": [png(one) for one in pixels], "label": [f"c{code}" for code in codes]})
    return frame, imprint.Learner("cnn", epochs=12)


def banking(count: int) -> tuple[pl.DataFrame, imprint.Learner]:
    """Banking77: 77 intents of customers' questions."""
    rows = lines("text/banking77/banking77.jsonl.xz")
    frame = pl.DataFrame({"text": [row["text"] for row in rows], "label": [str(row["label"]) for row in rows]})
    return shuffled(frame, count), imprint.Learner("auto")


# Setting -> how it is read, and its training and test examples.
SETTINGS = {
    "fashion-mlp": (fashion_mlp, 10_000, 5_000),
    "cifar": (cifar, 10_000, 5_000),
    "text": (text, 4_000, 1_400),
    "table": (table, 10_000, 10_000),
    "banking": (banking, 8_000, 4_000),
    "fashion-cnn": (fashion_cnn, 5_000, 5_000),
}  # fmt: skip
USUAL = ("fashion-mlp", "cifar", "text", "table")
VALIDATION = 500


def fitted(setting: str, train: int | None, test: int | None, folder: Path, epochs: int | None) -> Run:
    """The recorded run of a setting: training examples, then a validation split (what targeted methods aim at), then test examples."""
    read, most_train, most_test = SETTINGS[setting]
    train, test = train or most_train, test or most_test
    if setting == "cifar":  # test images stand behind the 10,000 training images
        frame, learner = read(10_000 + VALIDATION + test)
        frame = pl.concat([frame[:train], frame[10_000:]])
    else:
        frame, learner = read(train + VALIDATION + test)
    train = len(frame) - VALIDATION - test
    split = pl.Series(["train"] * train + ["validation"] * VALIDATION + ["test"] * test)
    corpus = imprint.open(frame.with_columns(split=split), target="label", split="split", store=folder / "store")
    learner = imprint.Learner(learner.model, epochs=epochs or learner.epochs, batch_size=learner.batch_size)
    return imprint.fit(learner, corpus, folder / "run", progress=False)


class Said:
    """Says how far a long job is, on standard error, now and then."""

    def __init__(self, about: str) -> None:
        self.about, self.began, self.last = about, time.perf_counter(), 0.0

    def __call__(self, label: str, done: int, total: int, facts: Mapping[str, str] | None = None) -> None:
        now = time.perf_counter()
        if now - self.last < SAID_SECONDS and done < total:
            return
        self.last = now
        more = " ".join((facts or {}).values())
        print(
            f"{self.about}: {label} {done:,}/{total:,} {more} after {now - self.began:.0f} s",
            file=sys.stderr,
            flush=True,
        )


# ------------------------------------------------------------------------------------------------------------------------- the tables


def measure(setting: str, options: argparse.Namespace) -> None:
    """The tables of one setting, and what of the papers holds there."""
    folder = options.folder / "-".join(
        str(part) for part in (setting, options.train, options.test, options.epochs) if part
    )
    run = fitted(setting, options.train, options.test, folder, options.epochs)
    ids = run.ids.sample(max(1, round(TRUSTED * len(run))), seed=0).to_list()
    asked = {"trusted": ids, "recorded": True, "progress": Said(setting)}
    methods = options.methods or serving(run)
    with warnings.catch_warnings():  # what a method has to say of itself, the table says better
        warnings.simplefilter("ignore")
        followed = None
        if options.curves:  # at equal epochs, where a curve costs a share of a training
            followed = imprint.compare(run, methods, options.budgets, options.seeds, ["epochs"], curves=True, **asked)
        found = imprint.compare(run, methods, options.budgets, options.seeds, options.regimes, **asked)
    print(
        f"\n## {setting}\n\n{len(run):,} training and {found.examples:,} test examples; {run.learner.model}, "
        f"{sum(one.numel() for one in run.model().module.parameters()):,} parameters, {run.learner.epochs} epochs of "
        f"{found.full_steps // int(run.learner.epochs or 1):,} steps, {found.full_seconds:.1f} s alone on {run.learner.device} "
        f"({torch.get_num_threads()} threads); {len(found.seeds)} seeds, {found.cost['trainings']:.0f} trainings\n\n{found.summary()}"
    )
    for budget in found.budgets:
        print_budget(found, budget)
    print("\n" + "\n".join(f"- {line}" for line in claims(found, followed)))
    for note in found.notes:
        print(f"\n{note}")
    if options.pages:
        for name, one in (("", found), ("-time", followed)):
            if one is not None:
                print(f"\nPage: {write_comparison(options.pages / f'{setting}{name}.html', one)}")
    sys.stdout.flush()


def serving(run: Run) -> list[str]:
    """All select methods that serve a run and need no trainings of their own."""
    return [one.name for one in registered("select") if one.serves(run) and not one.trainings]


def print_budget(found: Comparison, budget: float) -> None:
    """One budget: every method in every regime, the best of the main regime first."""
    metric = found.metric
    own = found.summary_frame().filter((pl.col("budget") == budget) | (pl.col("method") == "full"))
    cells = {(one["method"], one["regime"]): one for one in own.iter_rows(named=True)}
    heads = "".join(f" {regime}: {metric} | over random | 95 % |" for regime in found.regimes)
    tail = f" over all | {found.worst and 'worst ' + found.worst} | ECE | steps | selecting, s | of the recorded training, s |"
    print(f"\n### {100 * budget:g} %\n\n| method |{heads}{tail}\n|{'---|' * (7 + 3 * len(found.regimes))}")
    names = dict.fromkeys(name for name, _ in cells)
    for name in sorted(names, key=lambda one: -(cells[one, found.main][metric] or -9.0)):
        row = [name]
        for regime in found.regimes:
            one = cells[name, regime]
            row += [number(one[metric], "{:.4f}"), number(one["over_random"], "{:+.4f}"), between(one, "over_random")]
        one = cells[name, found.main]
        worst, ece = number(one["worst_group"], "{:.3f}"), number(one["ece"], "{:.3f}")
        row += [f"{number(one['over_full'], '{:+.4f}')} {between(one, 'over_full')}", worst, ece, f"{one['steps']:.0f}"]
        print(
            f"| {' | '.join([*row, number(one['select_seconds'], '{:.3g}'), number(one['recorded_seconds'], '{:.3g}')])} |"
        )


def number(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


def between(one: Mapping[str, float | None], name: str) -> str:
    """An interval, starred where it leaves zero out."""
    low, high = one[f"{name}_low"], one[f"{name}_high"]
    if low is None or high is None:
        return ""
    return f"{low:+.4f} to {high:+.4f}{' *' if low > 0 or high < 0 else ''}"


# ------------------------------------------------------------------------------------------------------------------------- the claims


def claims(found: Comparison, followed: Comparison | None) -> list[str]:
    """What of the papers holds here, in words; nothing where what it is about was not compared."""
    said = []
    if followed is not None and "rs2" in followed.methods and fixed_of(followed):
        said += [rs2(followed, budget) for budget in followed.budgets]
    if "el2n-top" in found.methods and "steps" in found.regimes:
        said += [half(found, budget) for budget in found.budgets if 0.45 <= budget <= 0.55]
    if "steps" in found.regimes and fixed_of(found):
        said += [strong(found, budget) for budget in found.budgets if budget > 0.1 or budget == found.budgets[-1]]
    return said


def fixed_of(found: Comparison) -> list[str]:
    """Methods that choose once and for all, but for random."""
    table = found.summary_frame().filter(~pl.col("anew") & ~pl.col("method").is_in(["random", "full"]))
    return table["method"].unique(maintain_order=True).to_list()


def rs2(found: Comparison, budget: float) -> str:
    """Does RS2 get to where a fixed coreset ends, sooner than the coreset gets there? Curves are means over the seeds, as in the paper."""
    metric = found.metric
    curves = found.curves.filter((pl.col("budget") == budget) & (pl.col("regime") == "epochs"))
    means = curves.group_by("method", "epoch").agg(pl.col("seconds", metric).mean()).sort("method", "epoch")

    def reached(name: str, value: float) -> float | None:
        return means.filter((pl.col("method") == name) & (pl.col(metric) >= value - 1e-9))["seconds"].min()  # type: ignore[return-value]

    ends = found.frame().filter((pl.col("budget") == budget) & (pl.col("regime") == "epochs"))
    fixed = fixed_of(found)
    sooner, ratios, better = [], [], []
    for name in fixed:
        own = ends.filter(pl.col("method") == name)[metric]
        target = float(own.mean())  # type: ignore[arg-type]
        its, ours = reached(name, target), reached("rs2", target)
        if its is not None and ours is not None and ours < its:
            sooner.append(name)
            ratios.append(its / ours)
        difference = torch.tensor((ends.filter(pl.col("method") == "rs2")[metric] - own).to_list())[:, None]
        if crossed_interval(difference, found.level)[1][0] > 0:
            better.append(name)
    others = [name for name in fixed if name not in sooner]
    speed = f", in a median of 1/{statistics.median(ratios):.1f} of their time" if ratios else ""
    verdict = "holds" if not others else "holds for most" if len(sooner) > len(others) else "does NOT hold"
    return (
        f"RS2 beats fixed coresets in time to accuracy, at {100 * budget:g} %: {verdict}. It reaches where they end sooner than they do "
        f"for {len(sooner)} of {len(fixed)}{speed}; its final {metric} is clearly higher than that of {len(better)} (over new seeds)"
        f"{'; not sooner than ' + ', '.join(others) if others else ''}."
    )


def half(found: Comparison, budget: float) -> str:
    """Can the examples with the lowest EL2N be left out without loss?"""
    own = found.summary_frame().filter(
        (pl.col("method") == "el2n-top") & (pl.col("budget") == budget) & (pl.col("regime") == "steps")
    )
    value, low, high = own.select("over_full", "over_full_low", "over_full_high").row(0)
    lead = own.select("over_random", "over_random_low", "over_random_high").row(0)
    verdict = "does NOT hold" if high < 0 else "holds" if low > LOSS else "is undecided"
    return (
        f"{100 * (1 - budget):g} % can be left out by EL2N without loss: {verdict}. {value:+.4f} to everything ({low:+.4f} to "
        f"{high:+.4f}), {lead[0]:+.4f} to random ({lead[1]:+.4f} to {lead[2]:+.4f})."
    )


def strong(found: Comparison, budget: float) -> str:
    """Does any fixed choice clearly beat random?"""
    table = found.summary_frame().filter(
        (pl.col("regime") == "steps") & (pl.col("budget") == budget) & pl.col("over_random").is_not_null()
    )
    fixed = [name for name in fixed_of(found) if name in table["method"].to_list()]
    ahead, behind = found.clear("steps", budget)
    winners = [name for name in ahead if name in fixed]
    losers = [name for name in behind if name in fixed]
    verdict = "holds" if not winners else f"does NOT hold for {', '.join(winners)}"
    best = table.filter(pl.col("method").is_in(fixed)).sort("over_random", descending=True)
    chance = len(fixed) * (1 - found.level) / 2
    words = (
        f" ({chance:.1f} would be either by chance); the best is {best['method'][0]} ({best['over_random'][0]:+.4f})"
        if len(best)
        else ""
    )
    others = [name for name in ahead if name not in fixed]
    return (
        f"Random is strong at {100 * budget:g} %: {verdict}. Of {len(fixed)} fixed choices {len(winners)} are clearly ahead of it and "
        f"{len(losers)} clearly behind{words}; of those that choose anew, ahead: {', '.join(others) or 'none'}."
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", help=f"of {', '.join(SETTINGS)}; {', '.join(USUAL)} where none is named")
    parser.add_argument("--folder", type=Path, required=True, help="where runs, choices and trainings are kept")
    parser.add_argument("--methods", nargs="+", help="select methods; all that serve where none is named")
    parser.add_argument(
        "--budgets", nargs="+", type=float, default=[0.05, 0.1, 0.3, 0.5], help="shares of the training examples"
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--regimes", nargs="+", choices=list(REGIMES), default=list(REGIMES))
    parser.add_argument("--train", type=int, help="training examples, by setting where not given")
    parser.add_argument("--test", type=int, help="test examples, by setting where not given")
    parser.add_argument("--epochs", type=int, help="of a training on everything, by setting where not given")
    parser.add_argument(
        "--no-curves", dest="curves", action="store_false", help="do not follow trainings: no time to accuracy"
    )
    parser.add_argument("--pages", type=Path, help="also write a page per setting into this folder")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.settings if name not in SETTINGS]
    if unknown:
        parser.error(f"no setting {unknown[0]!r}; there are {', '.join(SETTINGS)}")
    for name in options.methods or ():
        lookup("select", name)
    for setting in options.settings or USUAL:
        measure(setting, options)


if __name__ == "__main__":
    main()
