"""Label findings against known truth, on images, text and tables, beside cleanlab on the same probabilities.

For each set: AUROC of the ranking, precision and recall of what is flagged, and what it cost, for

    trajectory       the recorded training; no further training
    out-of-fold      our confident learning on 5-fold probabilities
    cleanlab         `get_label_quality_scores` (self-confidence, normalized margin) and `find_label_issues` on the same probabilities

and the verdict: test accuracy before and after the suggested label edits, over seeds, with its interval and random control.
Training labels and the validation split carry the noise; the test split carries the truth.

    python benchmarks/label_audits.py                     all sets
    python benchmarks/label_audits.py wiki adult --seeds 3
"""

from __future__ import annotations

import argparse
import io
import json
import lzma
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score

import imprint
from imprint.cleaning import label_quality
from imprint.recording.needs import OutOfFold, Target

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
# Confusable pairs of Fashion-MNIST: shirt and top, pullover and coat, sandal, sneaker and boot, trousers and dress.
PAIRS = {0: 6, 6: 0, 2: 4, 4: 2, 5: 7, 7: 9, 9: 7, 1: 3, 3: 1, 8: 0}


def png(image: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def sprite(path: str) -> np.ndarray:
    sys.path.insert(0, str(SHARED))
    import load

    return load.sprite(str(SHARED / path))


def lines(path: str) -> list[dict]:
    sys.path.insert(0, str(SHARED))
    import load

    return load.jsonl(str(SHARED / path))


def parts(count: int, test: float, seed: int = 0) -> np.ndarray:
    """Random splits: 10 % validation, `test` test, the rest training."""
    draw = np.random.default_rng(seed).random(count)
    return np.where(draw < test, "test", np.where(draw < test + 0.1 * (1 - test), "valid", "train"))


def uniform_flips(labels: np.ndarray, classes: int, rate: float) -> np.ndarray:
    rng = np.random.default_rng(1)
    return np.where(rng.random(len(labels)) < rate, (labels + rng.integers(1, classes, len(labels))) % classes, labels)


def cifar(kind: str) -> tuple:
    """CIFAR-10N: one of five human label sets of 10k training images; the test images carry the official labels."""
    noisy = np.load(SHARED / "label_noise/cifar10n/cifar10n.npz")
    key = next(name for name in noisy.files if kind in name)
    clean, given = noisy["clean_label"][:10000].astype(int), noisy[key][:10000].astype(int)
    labels = np.load(SHARED / "images/cifar10/labels.npz")
    test_labels = next(labels[name] for name in labels.files if "test" in name).astype(int)
    images = np.concatenate([sprite("images/cifar10/train_first10k.webp"), sprite("images/cifar10/test10k.webp")])
    split = np.r_[parts(10000, 0.0), np.full(10000, "test")]
    return (
        pl.DataFrame({"image": [png(image) for image in images]}),
        np.r_[given, test_labels],
        np.r_[clean, test_labels],
        split,
    )


def fashion(flips: str) -> tuple:
    """Fashion-MNIST, 20k images; 10 % of the labels flipped evenly, or 16 % to the class that is most alike."""
    labels = np.load(SHARED / "images/fashion_mnist/labels.npz")
    truth = labels[labels.files[0]][:20000].astype(int)
    rng = np.random.default_rng(1)
    pair = np.array([PAIRS[label] for label in truth])
    given = uniform_flips(truth, 10, 0.1) if flips == "random" else np.where(rng.random(len(truth)) < 0.16, pair, truth)
    images = sprite("images/fashion_mnist/train60k.webp")[:20000]
    return pl.DataFrame({"image": [png(image) for image in images]}), given, truth, parts(len(truth), 0.25)


def wiki() -> tuple:
    """Wikipedia comments: the label is the vote of one worker, drawn at random; the truth is the majority of the others."""
    rng = np.random.default_rng(0)
    texts, given, truth = [], [], []
    for row in lines("text/wiki_toxicity_votes/wiki_toxicity_12k.jsonl.xz"):
        votes = np.array([vote[1] for vote in row["votes"]])
        one = rng.integers(len(votes))
        rest = np.delete(votes, one).mean()
        if rest != 0.5:
            texts.append(row["text"])
            given.append(int(votes[one]))
            truth.append(int(rest > 0.5))
    return pl.DataFrame({"text": texts}), np.array(given), np.array(truth), parts(len(truth), 0.25)


def text(path: str, rate: float = 0.1) -> tuple:
    """A text set with labels flipped evenly."""
    rows = lines(path)
    names = sorted({str(row["label"]) for row in rows})
    truth = np.array([names.index(str(row["label"])) for row in rows])
    frame = pl.DataFrame({"text": [row["text"] for row in rows]})
    return frame, uniform_flips(truth, len(names), rate), truth, parts(len(truth), 0.25)


def adult() -> tuple:
    """Adult income, 20k rows; 10 % of the labels flipped."""
    with lzma.open(SHARED / "tabular/adult/adult.csv.xz") as file:
        frame = pl.read_csv(file.read())[:20000]
    truth = frame["income"].str.contains(">50K").cast(pl.Int64).to_numpy()
    return frame.drop("income", "split"), uniform_flips(truth, 2, 0.1), truth, parts(len(truth), 0.25)


SETS: dict[str, tuple[str, Callable[[], tuple]]] = {
    "cifar10n-aggre": ("image", lambda: cifar("aggre")),
    "cifar10n-worst": ("image", lambda: cifar("wor")),
    "fashion-random": ("image", lambda: fashion("random")),
    "fashion-pair": ("image", lambda: fashion("pair")),
    "wiki-toxicity": ("text", wiki),
    "banking77-random": ("text", lambda: text("text/banking77/banking77.jsonl.xz")),
    "trec6-random": ("text", lambda: text("text/trec6/trec6.jsonl.xz")),
    "adult-random": ("table", adult),
}


def measure(name: str, seeds: int, both: bool, folder: Path) -> dict:
    """All figures of one set."""
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    frame, given, truth, split = SETS[name][1]()
    target = np.where(split == "test", truth, given)
    frame = frame.with_columns(pl.Series("label", [f"c{code:03d}" for code in target]), pl.Series("split", split))
    corpus = imprint.open(frame, target="label", split="split", store=folder / "store")
    began = time.perf_counter()
    run = imprint.fit(imprint.Learner(), corpus, folder / name, progress=False)
    fit_seconds = time.perf_counter() - began
    wrong = (given != truth)[run.rows()]

    began = time.perf_counter()
    trust = label_quality(run, "trajectory").frame()["trajectory"].to_numpy()
    findings = imprint.clean(run, ["trajectory"])
    own_seconds = time.perf_counter() - began
    flagged = run.ids.is_in(findings.frame()["id"].to_list()).to_numpy()

    began = time.perf_counter()
    run.collect([OutOfFold("probabilities")])
    fold_seconds = time.perf_counter() - began
    values = run.gather([OutOfFold("probabilities"), Target()])
    probabilities, labels = values["probabilities"].double().numpy(), values["target"].numpy()
    probabilities /= probabilities.sum(1, keepdims=True)
    crossed = imprint.clean(run, ["confident-learning"])
    peer = find_label_issues(labels, probabilities, n_jobs=1)
    ranks = {
        "trajectory": trust,
        "out-of-fold self-confidence (ours = cleanlab)": get_label_quality_scores(labels, probabilities),
        "out-of-fold normalized margin (cleanlab)": get_label_quality_scores(
            labels, probabilities, method="normalized_margin"
        ),
    }
    flags = {
        "trajectory": flagged,
        "confident-learning": run.ids.is_in(crossed.frame()["id"].to_list()).to_numpy(),
        "cleanlab": peer,
    }
    verdicts = {}
    if seeds:
        answers = {"trajectory": findings} | ({"confident-learning": crossed} if both else {})
        for label, answer in answers.items():
            verdict = imprint.verify(answer, run, seeds=seeds, progress=lambda *_: None)
            verdicts[label] = {
                "effect": verdict.effect, "interval": verdict.interval, "before": float(np.mean(verdict.before)),
                "after": float(np.mean(verdict.after)), "random": float(np.mean(verdict.controls["random"])),
                "edits": verdict.edits, "seconds": verdict.cost["seconds"],
            }  # fmt: skip
    return {
        "set": name, "training": len(wrong), "noise": float(wrong.mean()), "test_accuracy": run.metrics("test")["accuracy"],
        "auroc": {key: float(roc_auc_score(~wrong, value)) for key, value in ranks.items()},
        "flags": {
            key: {"precision": float(wrong[value].mean()), "recall": float(value[wrong].mean()), "count": int(value.sum())}
            for key, value in flags.items()
            if value.any()
        },
        "seconds": {"fit and record": fit_seconds, "trajectory": own_seconds, "5 folds": fold_seconds},
        "verdict": verdicts,
    }  # fmt: skip


def show(row: dict) -> None:
    auroc, seconds = row["auroc"], row["seconds"]
    print(
        f"\n{row['set']}: {row['training']} training examples, {row['noise']:.1%} wrong labels; test accuracy {row['test_accuracy']:.4f}"
    )
    best = max(value for key, value in auroc.items() if key != "trajectory")
    for key, value in auroc.items():
        print(f"  AUROC {value:.4f}  {key}")
    print(f"  trajectory less the best 5-fold ranking: {auroc['trajectory'] - best:+.4f}")
    for key, value in row["flags"].items():
        print(f"  {key:20} flags {value['count']:6}  precision {value['precision']:.3f}  recall {value['recall']:.3f}")
    print("  seconds: " + ", ".join(f"{key} {value:.1f}" for key, value in seconds.items()))
    ratio = (seconds["fit and record"] + seconds["trajectory"]) / seconds["5 folds"]
    print(
        f"  beyond the recorded training the trajectory takes {seconds['trajectory'] / seconds['5 folds']:.3f} of the 5 folds' time;"
    )
    print(f"  with that training, its encoder and its record, {ratio:.2f}")
    for key, value in row["verdict"].items():
        low, high = value["interval"]
        print(
            f"  edits of {key} {value['edits']}: accuracy {value['before']:.4f} -> {value['after']:.4f}, effect {value['effect']:+.4f} "
            f"[{low:+.4f}, {high:+.4f}], random edits {value['random'] - value['before']:+.4f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", metavar="SET", help=f"of {', '.join(SETS)}; default: all")
    parser.add_argument("--seeds", type=int, default=5, help="trainings per arm of the verdict; 0 leaves it out")
    parser.add_argument("--both", action="store_true", help="also the verdict on the edits of confident learning")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in options.sets or SETS:
            rows.append(measure(name, options.seeds, options.both, Path(folder)))
            show(rows[-1])
            if options.json:
                options.json.write_text(json.dumps({"threads": torch.get_num_threads(), "sets": rows}, indent=2))


if __name__ == "__main__":
    main()
