"""Test sets with known errors: are they found, and at which prevalence of them does a ranking of models turn round?

The known errors are those of Northcutt, Athalye, Mueller 2021 (arXiv:2103.14749): five workers looked at each test example that some
algorithm suspected, and fewer than three chose the given label. Only the reviewed examples have a verdict: 275 of 10,000 CIFAR-10 test
images, 1,310 of 25,000 IMDB reviews.

1. Flagged errors. Our confident learning and cleanlab's, by each rule, on the authors' own out-of-sample probabilities. `precision` is
   measured among flagged examples that were reviewed; one that nobody looked at counts neither way. `recall` is of the known errors. The
   control flags as many reviewed examples at random. The reviewed examples were suspects of confident learning already, so recall flatters
   it and precision cannot be far from the share of errors among them; how scores rank them (AUROC, 0.5 = at random) says more.
2. Ranking. Accuracy by the prevalence of mislabelled examples, the prevalence at which each pair of models crosses, and the interval in
   which the two are not told apart (`imprint.cleaning.ranking_stability`). CIFAR-10: ResNet-20, -32 and -56 with published weights. IMDB:
   six text models trained here, on the 5,000 training reviews of the stored subset. An error whose right label the workers did not
   agree on is left out. The subset holds every reviewed test example, so it is brought back to the prevalence of the whole test set.

    python benchmarks/stability.py                 both sets, a few minutes
    python benchmarks/stability.py --only imdb
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import get_args

import numpy as np
import polars as pl
import torch
from label_audits import SHARED
from sklearn.metrics import roc_auc_score

import imprint
from imprint.cleaning import confidence_weighted_entropy, find_label_issues, normalized_margin, self_confidence
from imprint.cleaning.confident import Rule
from imprint.cleaning.stability import ranking_stability
from imprint.recording.needs import Outputs

# Workers that must choose a label for it to be the right one: three of five.
MAJORITY = 3
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MODELS = ["tfidf/linear", "tfidf/logistic", "tfidf/mlp", "wordllama/linear", "wordllama/mlp", "wordllama+tfidf/mlp"]


def flags(name: str, probabilities: np.ndarray, target: np.ndarray, looked: np.ndarray, errors: np.ndarray) -> None:
    """Print what confident learning flags, ours and cleanlab's, against the human verdicts.

    Args:
        name: Of the data set.
        probabilities: `[row, class]`, out of sample.
        target: Given labels.
        looked: Rows that were reviewed.
        errors: Those of them that are mislabelled.
    """
    from cleanlab.filter import find_label_issues as cleanlab_issues

    probabilities = probabilities.astype(np.float64).clip(
        0, 1
    )  # stored ones are off by rounding, which cleanlab refuses
    print(f"\n{name}: {len(target)} test examples, {len(looked)} reviewed, {len(errors)} of them mislabelled")
    print(
        f"  {'rule':22}{'by':10}{'flagged':>8}{'reviewed':>10}{'precision':>11}{'recall':>8}   at random: precision, recall"
    )
    for rule in get_args(Rule):
        found = {
            "imprint": find_label_issues(probabilities, target, rule),
            "cleanlab": cleanlab_issues(target, probabilities, filter_by=rule, n_jobs=1),
        }
        for who, flagged in found.items():
            hit, seen = int(flagged[errors].sum()), int(flagged[looked].sum())
            print(
                f"  {rule:22}{who:10}{int(flagged.sum()):8}{seen:10}{hit / max(1, seen):11.3f}{hit / len(errors):8.3f}"
                f"{len(errors) / len(looked):14.3f}{seen / len(looked):8.3f}"
            )
    wrong = np.isin(looked, errors)
    for score in (self_confidence, normalized_margin, confidence_weighted_entropy):
        quality = score(probabilities, target)[looked]
        print(
            f"  among the reviewed, {score.__name__} ranks a wrong label below a right one: {roc_auc_score(~wrong, quality):.3f}"
        )


def ranking(
    name: str,
    said: Mapping[str, np.ndarray],
    target: np.ndarray,
    right: np.ndarray,
    kept: np.ndarray,
    prevalence: float | None = None,
) -> None:
    """Print the stability of a ranking of models.

    Args:
        name: Of the data set.
        said: Model -> predicted classes.
        target: Given labels.
        right: Corrected labels.
        kept: Rows whose right label is known.
        prevalence: Of the whole test set, where these rows are only a sample.
    """
    found = ranking_stability(
        {model: (codes == target)[kept] for model, codes in said.items()},
        {model: (codes == right)[kept] for model, codes in said.items()},
        (target != right)[kept],
        prevalence=prevalence,
    )
    print(f"\n{name}: {found.clean} right and {found.errors} corrected labels, prevalence {found.prevalence:.2%}")
    print(f"  {'model':26}{'given':>8}{'corrected':>11}   on right labels   on errors: given, corrected")
    share = np.array([1 - found.prevalence, found.prevalence])
    for place, model in enumerate(found.models):
        given, corrected = found.shares[:, place]
        print(
            f"  {model:26}{given @ share:8.4f}{corrected @ share:11.4f}{given[0]:18.4f}{given[1]:19.4f}{corrected[1]:11.4f}"
        )
    print(f"  {'labels':11}{'leader':26}{'other':26}{'lead':>8}{'crossing':>10}   not told apart at   decided")
    for row in found.frame().iter_rows(named=True):
        turn = "none" if row["crossing"] is None else f"{row['crossing']:.1%}"
        zone = "nowhere" if row["low"] is None else f"{row['low']:.1%} to {row['high']:.1%}"
        print(
            f"  {row['labels']:11}{row['leader']:26}{row['other']:26}{row['lead']:8.4f}{turn:>10}   {zone:18}"
            f"  {'yes' if row['decided'] else 'no'}"
        )


def cifar10() -> None:
    """Three ResNets on the CIFAR-10 test images."""
    sys.path.insert(0, str(SHARED))
    from load import sprite
    from load_models import cifar_resnet

    stored = np.load(SHARED / "label_noise/label_errors/pyx_and_labels.npz")
    target = stored["cifar10_labels"].astype(np.int64)
    right, known, looked, errors = target.copy(), np.ones(len(target), bool), [], []
    with gzip.open(SHARED / "label_noise/label_errors/cifar10_mturk.json.gz", "rt") as file:
        reviewed = json.load(file)
    for one in reviewed:
        looked.append(one["id"])
        if one["mturk"]["given"] < MAJORITY:
            errors.append(one["id"])
            right[one["id"]] = one["our_guessed_label"]
            known[one["id"]] = one["mturk"]["guessed"] >= MAJORITY
    flags("CIFAR-10", stored["cifar10_pyx"], target, np.array(looked), np.array(errors))
    pixels = torch.from_numpy(sprite(str(SHARED / "images/cifar10/test10k.webp"))).permute(0, 3, 1, 2)
    mean, deviation = (torch.tensor(one).view(3, 1, 1) for one in (MEAN, DEVIATION))
    said = {}
    for depth in (20, 32, 56):
        model = cifar_resnet(depth)
        with torch.inference_mode():
            parts = [model((part.float() / 255 - mean) / deviation).argmax(1) for part in pixels.split(500)]
        said[f"ResNet-{depth}"] = torch.cat(parts).numpy()
    ranking("CIFAR-10", said, target, right, known)


def imdb(folder: Path) -> None:
    """Text models on the stored subset of IMDB, whose test reviews hold all that were reviewed."""
    sys.path.insert(0, str(SHARED))
    from load import jsonl

    stored = np.load(SHARED / "label_noise/label_errors/pyx_and_labels.npz")
    target = stored["imdb_labels"].astype(np.int64)
    rows = jsonl(str(SHARED / "text/imdb10k/imdb10k.jsonl.xz"))
    tested = [one for one in rows if one["split"] == "test"]
    given = np.array([one["label"] for one in tested])
    checked = np.array(["mturk" in one for one in tested])
    wrong = np.array(["mturk" in one and one["mturk"]["given"] < MAJORITY for one in tested])
    agreed = np.array(["mturk" in one and one["mturk"]["guessed"] >= MAJORITY for one in tested])
    there = np.array([one["le_index"] for one in tested])
    flags("IMDB", stored["imdb_pyx"], target, there[checked], there[wrong])

    frame = pl.DataFrame({name: [one[name] for one in rows] for name in ("text", "label", "split")})
    corpus = imprint.open(frame, target="label", inputs="text", split="split", store=folder / "store")
    said = {}
    for model in MODELS:
        run = imprint.fit(imprint.Learner(model), corpus, folder / model.replace("/", "-"), progress=False)
        logits = run.gather([Outputs("logits", split="test")])["logits"]
        said[model] = run.task.decode(run.task.predict(logits)).to_numpy()
    # Of the rightly labelled reviews all that were checked are here, and a share of the others: the same share of the checked is kept.
    share = (~checked).sum() / (len(target) - checked.sum())
    sampled = ~checked | (np.random.default_rng(0).random(len(tested)) < share)
    right = np.where(wrong & agreed, 1 - given, given)
    ranking("IMDB", said, given, right, np.where(wrong, agreed, sampled), wrong.sum() / len(target))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["cifar10", "imdb"])
    parser.add_argument("--folder", type=Path, help="Where the IMDB models are kept; a temporary folder by default.")
    arguments = parser.parse_args()
    if arguments.only != "imdb":
        cifar10()
    if arguments.only != "cifar10":
        with tempfile.TemporaryDirectory() as temporary:
            imdb(arguments.folder or Path(temporary))


if __name__ == "__main__":
    main()
