"""What forgetting by selective synaptic dampening costs, and what a fleet of oracles costs, beside training again in the same process.

    python benchmarks/forget_speed.py                             dampening on an MLP and a CNN, and oracles
    python benchmarks/forget_speed.py dampening --models mlp --train 2000 --repeats 1
    python benchmarks/forget_speed.py oracles --all               all sequential trainings, and not a few scaled up

Dampening needs the diagonal Fisher matrix of all training examples, and that of the forgotten ones. With the former recorded (the run
keeps it: an earlier request, or `run.collect`, left it there) only the latter is computed. Two ratios, in each round with other examples:

    method   seconds of the method on encoded examples in memory, by those of the training loop alone, which records nothing
    verb     seconds of `imprint.forget(..., method="ssd")` on a run opened from disk, by those of `method="retrain"`: with encoding,
             checkpoints and all that a child's folder holds

Oracles: models that never saw the examples, each with its logits of every row, by the fleet that all verdicts share; beside as many
trainings one after the other: of the loop alone, and by `imprint.forget(..., method="retrain")`. "arithmetic" is the ratio that would be
left if the multiplications of the trainings ran as fast as a product of 1024 x 1024 matrices and nothing else took any time.

Targets are printed with what was found: a ratio is a median over rounds [least, greatest].
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
import torch
from attribution import fashion_cnn, fashion_mlp
from fleets import digits, matmul_rate, network

import imprint
from imprint.fitting import predict
from imprint.forgetting import prepare
from imprint.forgetting.controls import trained
from imprint.forgetting.dampening import ssd
from imprint.recording import Run, load
from imprint.recording.needs import Curvature

FISHER = Curvature(approximation="diagonal", fisher="empirical")
WITH, WITHOUT, FLEET = 0.05, 0.15, 0.2
MODELS = {"mlp": fashion_mlp, "cnn": fashion_cnn}
TEST = 1000
# Models in a fleet of oracles, and how many are trained one after the other where not all are.
ORACLES, FEW = 64, 4


@dataclass(frozen=True)
class Ratio:
    """Ratios of several rounds.

    >>> str(Ratio((0.5, 0.1, 0.2)))
    '0.200 [0.100, 0.500]'
    """

    rounds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)

    def __str__(self) -> str:
        return f"{self.median:.3f} [{min(self.rounds):.3f}, {max(self.rounds):.3f}]"

    def against(self, target: float) -> str:
        """With the target, and whether it was met."""
        return f"{self} (asked {target:g}: {'yes' if self.median <= target else 'NO'})"


def seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def fitted(model: str, train: int, epochs: int, folder: Path) -> Run:
    """A recorded run on Fashion-MNIST."""
    frame, learner = MODELS[model](train + TEST)
    return recorded(frame, replace(learner, epochs=epochs), train, folder)


def recorded(frame: pl.DataFrame, learner: imprint.Learner, train: int, folder: Path) -> Run:
    """A recorded run whose last rows are the test split."""
    split = pl.Series(["train"] * train + ["test"] * (len(frame) - train))
    corpus = imprint.open(frame.with_columns(split=split), target="label", split="split", store=folder / "store")
    return imprint.fit(learner, corpus, folder / "run", progress=False)


def unrecorded(run: Run) -> None:
    """Forget the recorded Fisher."""
    (run.path / "evidence" / f"{FISHER.store}.safetensors").unlink(missing_ok=True)


def some(run: Run, share: float, round_: int) -> np.ndarray:
    """Places of training examples, other ones in each round, ascending."""
    return np.sort(np.random.default_rng(round_).choice(len(run), max(1, round(share * len(run))), replace=False))


# ----------------------------------------------------------------------------------------------------------------------- dampening


def dampening(options: argparse.Namespace) -> None:
    """The table of dampening."""
    print("\n## Selective synaptic dampening, by retraining\n")
    print(
        "| model | forgotten | method, Fisher recorded | method, not recorded | verb, recorded | verb, not recorded "
        "| training loop, s | verb retrain, s | recording the Fisher, s |\n|---|---|---|---|---|---|---|---|---|"
    )
    missed = []
    for model in options.models:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            run = fitted(model, options.train, options.epochs, folder)
            ssd(prepare(run, some(run, 0.01, 0)))  # the first call pays for warming up
            for share in options.shares:
                rounds = [one_round(run, some(run, share, number), folder) for number in range(options.repeats)]
                columns = {key: [one[key] for one in rounds] for key in rounds[0]}
                cells = []
                for kind, base in (("method", "loop"), ("verb", "retrain")):
                    for how, target in (("with", WITH), ("without", WITHOUT)):
                        pairs = zip(columns[f"{kind} {how}"], columns[base], strict=True)
                        ratio = Ratio(tuple(mine / theirs for mine, theirs in pairs))
                        cells.append(ratio.against(target))
                        if ratio.median > target:
                            missed.append(f"{model}, {share:.0%}, {kind} {how}")
                cells += [f"{statistics.median(columns[one]):.2f}" for one in ("loop", "retrain", "record")]
                print(f"| {model} | {share:.0%} | {' | '.join(cells)} |", flush=True)
    print(f"\n{options.train:,} training examples, {options.epochs} epochs, {options.repeats} rounds.")
    print(f"Missed: {'; '.join(missed) or 'none'}.", flush=True)


def one_round(run: Run, places: np.ndarray, folder: Path) -> dict[str, float]:
    """Seconds of everything in one round."""
    data = prepare(run, places).data
    found: dict[str, float] = {}

    def method() -> float:
        job = prepare(run, places, data=data)
        return seconds(lambda: ssd(job))

    def verb(name: str) -> float:
        opened, path = load(run.path), folder / f"child-{name}"
        ids = opened.ids.gather(places).to_list()
        return seconds(lambda: imprint.forget(opened, ids, method=name, path=path, resume=False, progress=False))

    unrecorded(run)
    found["method without"] = method()
    found["verb without"] = verb("ssd")
    unrecorded(run)
    found["record"] = seconds(lambda: run.collect([FISHER]))
    found["method with"] = method()
    found["verb with"] = verb("ssd")
    job = prepare(run, places, data=data)
    found["loop"] = seconds(lambda: trained(job, run.learner))
    found["retrain"] = verb("retrain")
    return found


# ------------------------------------------------------------------------------------------------------------------------- oracles


def fashion_run(options: argparse.Namespace, folder: Path) -> Run:
    return fitted("mlp", options.train, options.epochs, folder)


def digits_run(options: argparse.Namespace, folder: Path) -> Run:
    """Handwritten digits of 64 pixels."""
    values, label = digits()
    pixels = pl.Series(values, dtype=pl.Array(pl.Float32, values.shape[1]))
    learner = imprint.Learner(network(64, 64, 10), epochs=options.epochs, batch_size=32)
    return recorded(pl.DataFrame({"pixels": pixels, "label": [f"c{code}" for code in label]}), learner, 1500, folder)


CASES = {"digits, 64-64-10, batches of 32": digits_run, "Fashion-MNIST, 784-256-256-10 with dropout": fashion_run}


def fleets(options: argparse.Namespace) -> None:
    """The table of oracles."""
    from imprint.forgetting.oracles import oracles

    print(f"\n## {options.oracles} oracles, by as many trainings one after the other\n")
    print(
        "| data and model | by the loop | by the verb | arithmetic | oracles, s | loop, s | verb retrain, s | one after the other |\n"
        "|---|---|---|---|---|---|---|---|"
    )
    for name, make in CASES.items():
        if not any(word in name.lower() for word in options.cases):
            continue
        few = options.oracles if options.all else min(FEW, options.oracles)
        rounds: list[tuple[float, float, float, float]] = []
        for number in range(options.repeats):
            with tempfile.TemporaryDirectory() as folder:
                run = make(options, Path(folder))
                places = some(run, 0.01, number)
                each = sequential(run, places, few)
                verb = recorded_retrain(run, places, Path(folder) / "child")
                least = arithmetic(run, len(run) - len(places)) / matmul_rate()
                fleet = seconds(lambda run=run, places=places: oracles(run, places, options.oracles))
                rounds.append((fleet, each * options.oracles, verb * options.oracles, least * options.oracles))
        loops, verbs = (Ratio(tuple(one[0] / one[column] for one in rounds)) for column in (1, 2))
        bound = Ratio(tuple(one[3] / one[1] for one in rounds))
        medians = [f"{statistics.median(one[column] for one in rounds):.2f}" for column in (0, 1, 2)]
        how = f"{'all' if few == options.oracles else f'{few}, scaled up'}; verb: 1, scaled up"
        cells = [loops.against(FLEET), verbs.against(FLEET), f"{bound.median:.3f}", *medians, how]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def arithmetic(run: Run, examples: int) -> float:
    """Operations of a training of linear layers: 6 for each weight, example and epoch; in the first layer 4: inputs need no gradient."""
    sizes = [one.numel() for one in run.model().module.parameters() if one.dim() == 2]
    return (6 * sum(sizes) - 2 * sizes[0]) * examples * int(run.learner.epochs or 1)


def recorded_retrain(run: Run, places: np.ndarray, path: Path) -> float:
    """Seconds of a retraining by the verb, recorded as any run is."""
    ids = run.ids.gather(places).to_list()
    return seconds(lambda: imprint.forget(run, ids, method="retrain", path=path, progress=False))


def sequential(run: Run, places: np.ndarray, count: int) -> float:
    """Mean seconds of a training without these examples and its outputs on every row, as the method `retrain` trains."""
    job = prepare(run, places)
    rows = torch.arange(len(job.data.target))
    trained(job, replace(run.learner, seed=10_000, epochs=1))  # the first call pays for warming up
    spent = []
    for number in range(count):
        began = time.perf_counter()
        module = trained(job, replace(run.learner, seed=20_000 + number))
        predict(module, run.task, job.data.inputs[rows], device=str(job.device))
        spent.append(time.perf_counter() - began)
    return statistics.mean(spent)


def main(arguments: Sequence[str] | None = None) -> None:
    parts = {"dampening": dampening, "oracles": fleets}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(parts)}; both where none is named")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS), help="of dampening")
    parser.add_argument("--cases", nargs="+", default=["digits", "fashion"], help="of oracles: words in their names")
    parser.add_argument("--shares", nargs="+", type=float, default=[0.01, 0.1], help="of the examples, to forget")
    parser.add_argument("--train", type=int, default=10_000, help="training examples of Fashion-MNIST")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=3, help="rounds, each with other forgotten examples")
    parser.add_argument("--oracles", type=int, default=ORACLES)
    parser.add_argument("--all", action="store_true", help="train all of the sequential ones, too")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.parts if name not in parts]
    if unknown:
        parser.error(f"no part {unknown[0]!r}; there are {', '.join(parts)}")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    for name in options.parts or parts:
        parts[name](options)


if __name__ == "__main__":
    main()
