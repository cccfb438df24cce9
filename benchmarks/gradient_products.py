"""Exact gradient products and TRAK beside dattri, and projected gradients beside a training epoch.

`products`: a 784-256-10 network on Fashion-MNIST, 5,000 training examples x 200 queries. Exact gradient products at one checkpoint and
TRAK at 512 numbers, each from the trained model to the full matrix of scores, beside dattri's `TracInAttributor` (no projection) and
`TRAKAttributor`; how far the exact ones differ, and the linear datamodeling score of all of them and of the embedding control on models
trained on random halves. dattri is looked for in the environment, or in the folder that `--dattri` names (an unpacked wheel).

`text`: a GPT-style model (4 layers, about 10 million parameters) on documents of 256 tokens: seconds of one training epoch, of gradients
projected to 512 numbers by each kind of projection, and of exact gradient norms, with the memory that each adds; twice, for half and for
all of the documents, as memory must not grow with their number.

    python benchmarks/gradient_products.py products --dattri /tmp/dattri-src
    python benchmarks/gradient_products.py text --documents 256
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import psutil
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import imprint
from imprint.gradients import Capture, Projection, squared_norms
from imprint.tasks import Batch, Classification
from imprint.tracing import Factors, factors_of
from imprint.tracing.datamodeling import percentiles, resampled, spearman
from imprint.tracing.judges import held_out

DATA = Path(__file__).parents[2] / "shared/data"


def network(shape: tuple[int, ...], width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(shape[0], 256), nn.ReLU(), nn.Linear(256, width))


@contextmanager
def memory() -> Iterator[Callable[[], float]]:
    """MiB that the block adds to the process at its height, sampled every 5 ms."""
    process, stop = psutil.Process(), threading.Event()
    before = highest = process.memory_info().rss

    def watch() -> None:
        nonlocal highest
        while not stop.wait(0.005):
            highest = max(highest, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield lambda: (highest - before) / 2**20
    finally:
        stop.set()
        watcher.join()


def report(name: str, seconds: list[float], rest: str = "") -> None:
    print(f"{name:34s} {np.median(seconds):9.3f} s  ({min(seconds):.3f} to {max(seconds):.3f})  {rest}", flush=True)


# ------------------------------------------------------------------------------------------------------------------ products


def run_of(folder: Path, examples: int, queries: int) -> imprint.Run:
    sys.path.insert(0, str(DATA))
    from load import sprite

    count = examples + queries
    pixels = sprite(str(DATA / "images/fashion_mnist/train60k.webp"))[:count].reshape(count, -1)
    labels = np.load(DATA / "images/fashion_mnist/labels.npz")["y_train"][:count]
    frame = pl.DataFrame(
        {
            "x": pl.Series((pixels / 255).astype(np.float32)),
            "label": labels.astype(np.int64),
            "split": ["train"] * examples + ["test"] * queries,
        }
    )
    corpus = imprint.open(frame, target="label", split="split", task="classification", store=folder / "store")
    return imprint.fit(imprint.Learner(network, epochs=10, batch_size=64), corpus, folder / "run", progress=False)


def timed(run: imprint.Run, method: str, repeats: int) -> tuple[Factors, list[float]]:
    """A method's scores, its evidence collected afresh each time."""
    one, rows, seconds = imprint.methods.lookup("trace", method), run.rows("test"), []
    for _ in range(repeats):
        for path in (run.path / "evidence").glob("gradients-*"):
            for file in sorted(path.rglob("*"), reverse=True):
                file.unlink() if file.is_file() else file.rmdir()
            path.rmdir()
        began = time.perf_counter()
        found = factors_of(run, rows, one, False)
        found.matrix()
        seconds.append(time.perf_counter() - began)
    return found, seconds


def dattri(run: imprint.Run, method: str) -> tuple[Tensor, float]:
    """dattri's scores `[query, example]`, and its seconds."""
    from dattri.algorithm.tracin import TracInAttributor
    from dattri.algorithm.trak import TRAKAttributor
    from dattri.task import AttributionTask
    from torch.func import functional_call
    from torch.utils.data import DataLoader, TensorDataset

    model = run.model().module

    def loss(parameters: dict[str, Tensor], pair: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(functional_call(model, parameters, (pair[0][None],)), pair[1][None])

    def margin(parameters: dict[str, Tensor], pair: tuple[Tensor, Tensor]) -> Tensor:
        logits = functional_call(model, parameters, (pair[0][None],))
        own = torch.arange(logits.shape[1]) == pair[1]
        return (logits * own).sum() - torch.where(own, -torch.inf, logits).logsumexp(1).sum()

    def probability(parameters: dict[str, Tensor], pair: tuple[Tensor, Tensor]) -> Tensor:
        return torch.exp(-loss(parameters, pair))

    def loader(split: str, size: int) -> DataLoader:
        rows = torch.from_numpy(run.rows(split))
        return DataLoader(TensorDataset(run.data.inputs[rows], run.target(split)), batch_size=size)

    began = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if method == "tracin":
            task = AttributionTask(loss_func=loss, model=model, checkpoints=model.state_dict())
            peer = TracInAttributor(task, weight_list=torch.ones(1), normalized_grad=False)
            peer.projector_kwargs = None  # exact
            scores = peer.attribute(loader("train", 500), loader("test", 200))
        else:
            task = AttributionTask(loss_func=margin, model=model, checkpoints=model.state_dict())
            peer = TRAKAttributor(
                task, correct_probability_func=probability, projector_kwargs={"proj_dim": 512, "device": "cpu"}
            )
            peer.cache(loader("train", 500))
            scores = peer.attribute(loader("test", 200))
    return scores.T.contiguous(), time.perf_counter() - began


def products(options: argparse.Namespace) -> None:
    if options.dattri:
        sys.path.insert(0, str(options.dattri))
    with tempfile.TemporaryDirectory() as folder:
        run = run_of(Path(folder), options.examples, options.queries)
        print(f"784-256-10, {options.examples} examples x {options.queries} queries, {torch.get_num_threads()} threads")
        scores: dict[str, Factors | Tensor] = {}
        seconds: dict[str, float] = {}
        for method in ("gradient-dot", "gradient-cosine", "tracin", "trak", "trak-checkpoints", "logra", "embedding"):
            with memory() as added:
                scores[method], times = timed(run, method, options.repeats)
            seconds[method] = float(np.median(times))
            report(method, times, f"{added():.0f} MiB")
        try:
            for ours, theirs in (("gradient-dot", "tracin"), ("trak", "trak")):
                with memory() as added:
                    found, took = dattri(run, theirs)
                scores[f"dattri {theirs}"] = found
                report(f"dattri {theirs}", [took], f"{added():.0f} MiB; {took / seconds[ours]:.0f} x {ours}")
        except ImportError as error:
            print(f"no peer: {error}")
        if "dattri tracin" in scores:
            own, peer = scores["gradient-dot"].matrix(), scores["dattri tracin"]
            print(f"largest difference {float((own - peer).abs().max() / peer.abs().max()):.1e} of the largest score")
        if options.members:
            judged(run, scores, options.members)


def judged(run: imprint.Run, scores: dict[str, Factors | Tensor], members: int) -> None:
    truth = held_out(run, members)
    margin = truth.outcomes("margin", rows=run.rows("test")).T.double()
    seen = truth.weights.included()
    predicted = {
        name: one.double() @ seen.double().T if isinstance(one, Tensor) else one.predict(seen)
        for name, one in scores.items()
    }
    drawn = resampled(predicted, margin)
    print(f"linear datamodeling score, {members} models of random halves")
    for name, values in predicted.items():
        low, high = percentiles(drawn[name], 0.95)
        print(f"  {name:32s} {float(spearman(values, margin).mean()):.3f}  ({low:.3f} to {high:.3f})")


# ---------------------------------------------------------------------------------------------------------------------- text


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mix, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        parts = self.mix(self.before(hidden)).chunk(3, -1)
        query, key, value = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in parts)
        seen = F.scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2).flatten(2)
        hidden = hidden + self.out(seen)
        return hidden + self.down(F.gelu(self.up(self.between(hidden))))


class Gpt(nn.Module):
    """GPT-2 in small: 4 layers of 384, 8,192 words, a head tied to the embedding: 10.3 million parameters."""

    def __init__(self, words: int = 8192, width: int = 384, layers: int = 4, positions: int = 256) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(words, width), nn.Embedding(positions, width)
        self.blocks = nn.Sequential(*(Block(width, 6) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, words, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.tokens(inputs) + self.positions(torch.arange(inputs.shape[1], device=inputs.device))
        return self.head(self.norm(self.blocks(hidden)))


def next_token(logits: Tensor, target: Tensor) -> Tensor:
    return (
        F.cross_entropy(logits[:, :-1].flatten(0, 1), target[:, 1:].flatten(), reduction="none")
        .view(len(target), -1)
        .sum(1)
    )


@dataclass
class Documents:
    """Documents of Zipf-distributed tokens: as often repeated as words are."""

    count: int
    words: int = 8192
    length: int = 256

    def batches(self, size: int) -> Iterator[Tensor]:
        random = torch.Generator().manual_seed(0)
        chance = 1 / torch.arange(1, self.words + 1)
        for begin in range(0, self.count, size):
            count = min(size, self.count - begin) * self.length
            yield torch.multinomial(chance, count, replacement=True, generator=random).view(-1, self.length)


def text(options: argparse.Namespace) -> None:
    torch.manual_seed(0)
    model, task = Gpt(), Classification((0, 1))
    parameters = sum(one.numel() for one in model.parameters())
    print(f"{parameters / 1e6:.1f} million parameters, documents of 256 tokens, {torch.get_num_threads()} threads")
    for count in (options.documents // 2, options.documents):
        documents = Documents(count)
        optimizer = torch.optim.AdamW(model.parameters(), 1e-4)

        def epoch(documents: Documents = documents, optimizer: torch.optim.Optimizer = optimizer) -> None:
            for batch in documents.batches(options.batch):
                optimizer.zero_grad()
                next_token(task.outputs(model, Batch(batch, batch)), batch).mean().backward()
                optimizer.step()

        def gradients(
            of: Callable[[list], Tensor], documents: Documents = documents, taken: Capture | None = None
        ) -> Callable[[], None]:
            taken = taken or Capture(model, task, of=next_token)

            def collect() -> None:
                for batch in documents.batches(options.batch):
                    of(taken(batch, batch))

            return collect

        jobs: dict[str, Callable[[], None]] = {"training epoch": epoch}
        for kind in options.kinds:
            jobs[f"{kind}, 512 numbers"] = gradients(Projection(512, 0, kind).project)
        jobs["capture alone"] = gradients(lambda layers: layers[0].outputs)
        if options.norms:
            jobs["exact norms"] = gradients(squared_norms)
        base = 0.0
        for name, job in jobs.items():
            times, heights = [], []
            for _ in range(options.repeats):
                with memory() as added:
                    began = time.perf_counter()
                    job()
                    times.append(time.perf_counter() - began)
                heights.append(added())
            base = base or float(np.median(times))
            rest = f"{np.median(times) / base:.2f} epochs, {count / np.median(times):.1f} documents/s, {max(heights):.0f} MiB more"
            report(f"{count} documents: {name}", times, rest)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", default="products", choices=["products", "text"])
    parser.add_argument("--examples", type=int, default=5000)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--members", type=int, default=32, help="models of random halves to judge by; 0 for none")
    parser.add_argument("--dattri", type=Path, help="folder of an unpacked dattri wheel")
    parser.add_argument("--documents", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--kinds", nargs="+", default=["factored", "paired"], help="of projections")
    parser.add_argument("--norms", action="store_true", help="text: also exact gradient norms")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    (products if options.what == "products" else text)(options)


if __name__ == "__main__":
    main()
