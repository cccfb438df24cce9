"""Do scores of one recorded training rank planted label errors? Gradients beside dynamics, neighbours, cleanlab and captum.

Labels of a tenth of the training examples are replaced by another class, drawn evenly. For each score: the AUROC of ranking the planted
examples first, with its interval (DeLong, over examples), and the seconds that it takes beyond the recorded training, evidence
included. The sign of a score is fixed before looking: that with which it should grow with the suspicion of a wrong label. Of VoG,
whose authors name no sign for labels, that of the paper (high = hard) is taken, and the other end is printed below the table.

    cleanlab    self-confidence (`get_label_quality_scores`) on our 5-fold probabilities; its seconds are those of the five trainings
    captum      self-influence by `TracInCPFast` (last layer) at the same checkpoints with the same learning rates, on the same encoded
                inputs; and our exact product over the same layer, which must say the same

    python benchmarks/label_noise.py                                        Fashion-MNIST, 6000 training examples, MLP
    python benchmarks/label_noise.py --model cnn --examples 2000 --captum /tmp/captum-src

captum goes into a folder of its own: `pip install --target /tmp/captum-src --no-deps captum`.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from cleanlab.rank import get_label_quality_scores
from memorisation import sprite
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import imprint
from imprint.gradients import squared_norms
from imprint.gradients.examples import examples_of, kept_checkpoints
from imprint.recording import Run
from imprint.recording.needs import OutOfFold, Target
from imprint.verifying.removal import detection

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
# Sign with which a score grows with the suspicion that the label is wrong.
SIGNS = {
    "self-influence": 1, "grand": 1, "gradient-norm": 1, "vog": 1, "el2n": 1, "aum": -1, "loss": 1, "forgetting": 1, "knn-shapley": -1,
}  # fmt: skip
LEVEL = 0.95
BLOCK = 1024


def fitted(options: argparse.Namespace, folder: Path) -> tuple[Run, np.ndarray]:
    """The recorded training on noisy labels, and which training examples are planted; test labels are the truth."""
    held = max(500, options.examples // 5)
    count = options.examples + held
    labels = np.load(SHARED / "images/fashion_mnist/labels.npz")
    truth = labels[labels.files[0]][:count].astype(int)
    rng = np.random.default_rng(options.seed)
    split = np.where(np.arange(count) < options.examples, "train", "test")
    planted = (rng.random(count) < options.noise) & (split == "train")
    given = np.where(planted, (truth + rng.integers(1, 10, count)) % 10, truth)
    pixels = sprite("images/fashion_mnist/train60k.webp")[:count].astype(np.float32) / 255
    images = options.model in ("cnn", "resnet")
    shape: Any = (1, 28, 28) if images else 784
    frame = pl.DataFrame({
        "pixels": pl.Series(pixels[:, None] if images else pixels.reshape(count, -1), dtype=pl.Array(pl.Float32, shape)),
        "label": [f"c{code}" for code in given], "split": pl.Series(split),
    })  # fmt: skip
    corpus = imprint.open(frame, target="label", split="split", store=folder / "store")
    learner = imprint.Learner(options.model, epochs=options.epochs, batch_size=64, seed=options.seed)
    run = imprint.fit(learner, corpus, folder / "run", progress=False)
    return run, planted[run.rows()]


def last_layer(run: Run) -> str:
    """The name of the last linear layer."""
    return [name for name, one in run.model().module.named_modules() if isinstance(one, nn.Linear)][-1]


def own_last_layer(run: Run) -> Tensor:
    """Our self-influence over the weights of the last layer, at all kept checkpoints; without its bias, which captum leaves out too."""
    total = torch.zeros(len(run))
    for name, rate in kept_checkpoints(run):
        for some, (layer,) in examples_of(run, run.rows(), name, layers=last_layer(run)).blocks(BLOCK):
            total[some] += rate * squared_norms([replace(layer, inputs=layer.inputs[..., :-1])])
    return total


def captum_last_layer(run: Run, folder: str) -> Tensor:
    """captum's self-influence over the last layer, at the same checkpoints."""
    if folder not in sys.path:
        sys.path.append(folder)  # behind what is installed
    from captum.influence import TracInCPFast

    inputs, target = examples_of(run, run.rows()).read(np.arange(len(run)))

    def load_checkpoint(module: nn.Module, kept: tuple[str, float]) -> float:
        name, rate = kept
        module.load_state_dict(run.model(name).module.state_dict())
        return rate

    tracer = TracInCPFast(
        run.model().module.eval(),
        last_layer(run),
        DataLoader(TensorDataset(inputs.float(), target), batch_size=BLOCK),
        kept_checkpoints(run),
        load_checkpoint,
        nn.CrossEntropyLoss(reduction="sum"),
    )
    return tracer.self_influence()


def measure(options: argparse.Namespace, folder: Path) -> None:
    """The table."""
    began = time.perf_counter()
    run, planted = fitted(options, folder)
    fit = time.perf_counter() - began
    print(
        f"Fashion-MNIST: {len(planted):,} training examples, {planted.mean():.1%} planted label errors; {run.learner.model}, "
        f"{options.epochs} epochs, test accuracy {run.metrics('test')['accuracy']:.3f}; recorded training {fit:.1f} s; "
        f"{torch.get_num_threads()} threads\n",
        flush=True,
    )
    suspicion: dict[str, Tensor] = {}
    seconds: dict[str, float] = {}

    def add(name: str, values: Tensor, began: float) -> None:
        suspicion[name], seconds[name] = values.double(), time.perf_counter() - began

    for name, sign in SIGNS.items():
        for store in (run.path / "evidence").glob("gradient-norms-*"):
            shutil.rmtree(store)  # each score pays for all of its evidence, whichever was asked for first
        began = time.perf_counter()
        scores = imprint.score(run, [name], progress=False).frame()[name].to_torch()
        add(name, sign * scores, began)
    began = time.perf_counter()
    run.collect([OutOfFold("probabilities")])
    values = run.gather([OutOfFold("probabilities"), Target()])
    probabilities = values["probabilities"].double()
    probabilities /= probabilities.sum(1, keepdim=True)
    quality = get_label_quality_scores(values["target"].numpy(), probabilities.numpy(), method="self_confidence")
    add("cleanlab, out of fold", -torch.from_numpy(quality), began)
    began = time.perf_counter()
    add("self-influence, last layer", own_last_layer(run), began)
    notes = []
    if options.captum:
        began = time.perf_counter()
        add("captum TracInCPFast", captum_last_layer(run, options.captum), began)
        ours, theirs = suspicion["self-influence, last layer"], suspicion["captum TracInCPFast"]
        off = float((ours - theirs).norm() / theirs.norm())
        notes.append(f"captum and our last layer: relative difference {off:.1e}.")
    else:
        notes.append("captum was left out: --captum FOLDER says where it is.")
    found, leads = detection(suspicion, torch.from_numpy(planted), "self-influence", LEVEL)
    print("| score | AUROC of planted errors | 95 % | self-influence leads by | seconds |\n|---|---|---|---|---|")
    for name in sorted(found, key=lambda one: -found[one][0]):
        value, low, high = found[name]
        lead = "" if name not in leads else "{:+.4f} ({:+.4f} to {:+.4f})".format(*leads[name])
        print(f"| {name} | {value:.4f} | {low:.4f} to {high:.4f} | {lead} | {seconds[name]:.2f} |")
    print(f"\nVoG from its other end: {1 - found['vog'][0]:.4f}. " + " ".join(notes))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=6000, help="training examples")
    parser.add_argument("--noise", type=float, default=0.1, help="share of planted label errors")
    parser.add_argument("--model", choices=("mlp", "cnn", "resnet", "linear"), default="mlp")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--captum", help="a folder that captum was installed into")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(options, Path(folder))


if __name__ == "__main__":
    main()
