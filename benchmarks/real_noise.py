"""Is a model better for cleaning labels that people really gave wrong? Test accuracy of raw, cleaned and corrected training sets.

Training labels are those that one person (or a vote) gave, test labels are the truth. For each seed a training is recorded, labels
are judged, and identical models (same encoder, settings and seed) are trained on

    raw            the labels as given
    trajectory     ours, from the recorded training alone: what it suggests to drop is dropped, what to relabel is relabelled
    folds          ours, confident learning on 5-fold probabilities (the same learner): the same edits
    cleanlab       as `CleanLearning` does: what `cleanlab.filter.find_label_issues` flags on the same probabilities is dropped
    random         as many edits as `trajectory`, of the same kinds, on random examples (relabelled to the recorded model's prediction)
    oracle-drop    every wrong label is dropped
    oracle         every wrong label is corrected

Beside them stand sets with planted errors (10 % or 30 % of the training and validation labels, drawn evenly), where nobody knows which
examples people find hard: what is gained on the ones must not be lost on the others.

Sets: CIFAR-10N (10,000 images of the training set with the labels of one group of people; a small network on the features of an
ImageNet network that saw no CIFAR labels, or `--pixels` and a CNN) and Wikipedia comments, each with the vote of one random worker
(truth: the majority of the others). Intervals are for new seeds and new test examples (`imprint.verifying.interval`). Finished trainings
are kept in `--folder`: the same command goes on, and one with more seeds trains the new ones alone.

    python benchmarks/real_noise.py --folder ~/real-noise                                 all sets, 5 seeds
    python benchmarks/real_noise.py cifar10n-worse --folder /tmp/n --train 2000 --test 2000 --seeds 2       small
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import torch
from label_audits import SHARED, adult, cifar, text, uniform_flips, wiki

import imprint
from imprint.errors import MethodError
from imprint.fleets import Member, share
from imprint.models import encoder_for
from imprint.recording import Run
from imprint.recording.needs import OutOfFold, Target
from imprint.verifying.edits import Edits, plan
from imprint.verifying.interval import crossed_interval
from imprint.verifying.kept import Kept

ARMS = ("raw", "trajectory", "folds", "cleanlab", "random", "oracle-drop", "oracle")
Labelled = tuple[pl.DataFrame, np.ndarray, np.ndarray, np.ndarray]


def images(kind: str) -> Callable[[], Labelled]:
    """CIFAR-10N with one of its sets of labels."""
    return lambda: cifar(kind)


def toxicity() -> Labelled:
    """Wikipedia comments; every tenth of the training examples would be a validation split elsewhere, and is trained on here."""
    frame, given, truth, split = wiki()
    return frame, given, truth, np.where(split == "valid", "train", split)


def questions(name: str, rate: float) -> Callable[[], Labelled]:
    """A set of short texts with planted errors."""
    return lambda: text(f"text/{name}/{name}.jsonl.xz", rate)


def incomes() -> Labelled:
    """Adult income with 30 % planted errors."""
    frame, _, truth, split = adult()
    return frame, uniform_flips(truth, 2, 0.3), truth, split


SETS: dict[str, tuple[str, Callable[[], Labelled]]] = {
    "cifar10n-worse": ("image", images("wor")),
    "cifar10n-random1": ("image", images("random_label1")),
    "cifar10n-aggre": ("image", images("aggre")),
    "wiki-toxicity": ("text", toxicity),
    "trec6-10%": ("text", questions("trec6", 0.1)),
    "trec6-30%": ("text", questions("trec6", 0.3)),
    "banking77-10%": ("text", questions("banking77", 0.1)),
    "banking77-30%": ("text", questions("banking77", 0.3)),
    "adult-30%": ("table", incomes),
}


def features(frame: pl.DataFrame, path: Path) -> np.ndarray:
    """What a frozen ImageNet network says of the images, computed once."""
    if not path.exists():
        told = frame.with_columns(label=pl.Series(["a", "b"] * len(frame))[: len(frame)])
        corpus = imprint.open(told, target="label", store=path.parent / "images")
        encoder = encoder_for(corpus, "efficientnet-lite0/mlp")
        encoder.fit(corpus, corpus.rows())
        parts = [encoder.encode(part).numpy() for _, part in corpus.batches(columns=["image"], size=256)]
        scratch = path.with_suffix(".partial.npy")
        np.save(scratch, np.concatenate(parts))
        scratch.rename(path)
    return np.load(path)


def opened(name: str, options: argparse.Namespace) -> tuple[imprint.Corpus, np.ndarray, str]:
    """The corpus with noisy training labels and true test labels, which of its rows are wrong, and the model."""
    kind, read = SETS[name]
    frame, given, truth, split = read()
    if kind == "image":
        split = np.where(split == "valid", "train", split)
    rng = np.random.default_rng(0)
    chosen = [
        rng.permutation(np.flatnonzero(split == part))[:count]
        for part, count in (
            ("train", options.train),
            ("valid", options.train and options.train // 9),
            ("test", options.test),
        )
    ]
    kept = np.sort(np.concatenate(chosen))
    frame, given, truth, split = frame[kept], given[kept], truth[kept], split[kept]
    model = "auto"
    if kind == "image":
        model = "cnn" if options.pixels else "mlp"
        if not options.pixels:  # all sets of labels are of the same images
            path = options.folder / f"efficientnet-{len(chosen[0])}-{len(chosen[-1])}.npy"
            vectors = features(frame, path)
            frame = pl.DataFrame({"features": pl.Series(vectors, dtype=pl.Array(pl.Float32, vectors.shape[1]))})
    target = np.where(split == "test", truth, given)
    frame = frame.with_columns(
        pl.Series("label", [f"c{code}" for code in target]), pl.Series("truth", [f"c{code}" for code in truth])
    )
    corpus = imprint.open(
        frame.drop("truth").with_columns(pl.Series("split", split)),
        target="label",
        split="split",
        store=options.folder / "store",
    )
    return corpus, frame["truth"].to_numpy(), model


def edits_of(run: Run, truth: np.ndarray) -> tuple[dict[str, Edits], dict[str, float]]:
    """The edits of each arm, and how good what is flagged is."""
    from cleanlab.filter import find_label_issues

    rows = run.rows()
    true = run.task.encode(pl.Series(truth[rows]))
    wrong = (true != run.target()).numpy()
    none = (rows[:0], true[:0])
    trajectory = imprint.clean(run, "trajectory")
    run.collect([OutOfFold("probabilities")])
    folds = imprint.clean(run, "confident-learning")
    values = run.gather([OutOfFold("probabilities"), Target()])
    probabilities = values["probabilities"].double().numpy()
    probabilities /= probabilities.sum(1, keepdims=True)
    issues = find_label_issues(values["target"].numpy(), probabilities, n_jobs=1)
    arms, facts = {"raw": Edits(rows[:0], *none)}, {"noise": float(wrong.mean())}
    for name, findings in (("trajectory", trajectory), ("folds", folds)):
        try:
            arms[name], random = plan(run, findings.frame())
        except MethodError:  # nothing to drop or relabel
            arms[name], random = arms["raw"], arms["raw"]
        if name == "trajectory":
            arms["random"] = random
        flagged = run.ids.is_in(findings.frame()["id"].to_list()).to_numpy()
        facts |= quality(name, flagged, wrong)
        relabelled = np.searchsorted(rows, arms[name].relabel)
        if len(relabelled):
            facts[f"{name} right relabels"] = float((arms[name].target == true[relabelled]).float().mean())
    facts |= quality("cleanlab", issues, wrong)
    arms["cleanlab"] = Edits(rows[issues], *none)
    arms["oracle-drop"] = Edits(rows[wrong], *none)
    arms["oracle"] = Edits(rows[:0], rows[wrong], true[torch.from_numpy(wrong)])
    return arms, facts


def quality(name: str, flagged: np.ndarray, wrong: np.ndarray) -> dict[str, float]:
    """Precision and recall of what is flagged."""
    hits = float((flagged & wrong).sum())
    return {f"{name} precision": hits / max(flagged.sum(), 1), f"{name} recall": hits / max(wrong.sum(), 1)}


def measure(name: str, options: argparse.Namespace) -> dict:
    """All figures of one set."""
    corpus, truth, model = opened(name, options)
    folder = options.folder / f"{name}-{corpus.fingerprint}-{model}"
    credit: dict[str, list[torch.Tensor]] = {arm: [] for arm in ARMS}
    facts: list[dict[str, float]] = []
    shared = None
    for seed in range(options.seeds):
        began = time.perf_counter()
        run = imprint.fit(imprint.Learner(model, seed=seed), corpus, folder / f"run-{seed}", progress=False)
        arms, found = edits_of(run, truth)
        shared = share(run) if shared is None else shared
        test = torch.from_numpy(run.rows("test"))
        rows, target = run.rows(), run.target()
        members: list[Member] = [arms[arm].member(seed, rows, target) for arm in ARMS]
        outputs = Kept(folder / "trainings", shared, test, run.fingerprint).train(members)
        for arm, said in zip(ARMS, outputs, strict=True):
            credit[arm].append(run.task.credit(said, shared.data.target[test]))
        facts.append(found | {"edits": float(len(arms["trajectory"]))})
        print(f"{name}: seed {seed} took {time.perf_counter() - began:.0f} s", flush=True)
    stacked = {arm: torch.stack(values) for arm, values in credit.items()}
    names = sorted({key for one in facts for key in one})
    return {
        "set": name, "model": model, "training": len(corpus.rows("train")), "test": len(corpus.rows("test")), "seeds": options.seeds,
        "facts": {key: float(np.mean([one[key] for one in facts if key in one])) for key in names},
        "accuracy": {arm: float(values.double().mean()) for arm, values in stacked.items()},
        "lead": {arm: crossed_interval(values - stacked["raw"]) for arm, values in stacked.items() if arm != "raw"},
        "over cleanlab": {
            arm: crossed_interval(stacked[arm] - stacked["cleanlab"]) for arm in ("trajectory", "folds", "random")
        },
    }  # fmt: skip


def show(row: dict) -> None:
    """The table of one set."""
    facts = row["facts"]
    print(
        f"\n{row['set']}: {row['training']:,} training examples, {facts['noise']:.1%} wrong labels, {row['test']:,} test examples, model "
        f"{row['model']}, {row['seeds']} seeds\n"
    )
    print(
        "| training set | flagged: precision | recall | test accuracy | less raw (95 %) | less cleanlab (95 %) |\n|---|---|---|---|---|---|"
    )
    for arm in ARMS:
        precision, recall = facts.get(f"{arm} precision"), facts.get(f"{arm} recall")
        marks = ("" if precision is None else f"{precision:.3f}", "" if recall is None else f"{recall:.3f}")
        leads = [
            "" if found is None else "{:+.4f} ({:+.4f} to {:+.4f})".format(found[0], *found[1])
            for found in (row["lead"].get(arm), row["over cleanlab"].get(arm))
        ]
        print(f"| {arm} | {marks[0]} | {marks[1]} | {row['accuracy'][arm]:.4f} | {leads[0]} | {leads[1]} |")
    right = ", ".join(f"{key} {value:.3f}" for key, value in facts.items() if key.endswith("relabels"))
    print(f"\n{right}; {facts['edits']:.0f} edits of the trajectory.", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", metavar="SET", help=f"of {', '.join(SETS)}; default: all")
    parser.add_argument("--folder", type=Path, required=True, help="where trainings are kept")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--train", type=int, help="training examples; default: all")
    parser.add_argument("--test", type=int, help="test examples; default: all")
    parser.add_argument("--pixels", action="store_true", help="a CNN on the images instead of frozen features")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    if not SHARED.exists():
        parser.error(f"no data at {SHARED}")
    rows = []
    for name in options.sets or SETS:
        rows.append(measure(name, options))
        show(rows[-1])
        if options.json:
            options.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
