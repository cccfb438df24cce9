"""Targeted selection on real data: who finds the examples of the target's own kind, or the wrong labels, in a pool that is half others.

Every table gives the AUROC of the value that a method ranks by; 0.5 is a random choice.

1. `zip-fit`, texts of one set among those of another, 200 texts of it as the target; beside the authors' mean over pairs of texts (with
   100 of the targets, on a third of the pool), and beside the length of a text alone, its control.
2. `dfn` and `dfn-domain` with several penalties: a quarter of the labels wrong (Adult, TREC, Banking77), some hundred trusted examples;
   and TREC among Banking77, 300 trusted.
3. `less` and `less-adam`, the latter also with Adam's momentum as in the paper: wrong labels of Adult, and TREC among Banking77, whose
   labels tell them apart.

    python benchmarks/targeting.py --data ../shared/data
    python benchmarks/targeting.py --examples 300
"""

from __future__ import annotations

import argparse
import io
import json
import lzma
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np
import polars as pl
import torch
from safetensors.torch import load_file
from sklearn.metrics import roc_auc_score
from torch import Tensor

import imprint
import imprint.selecting.filtering as filtering
from imprint.corpus import Corpus
from imprint.gradients import LayerGradient, full
from imprint.gradients.examples import examples_of
from imprint.gradients.moments import Moments, by_layer, moments_of
from imprint.recording import Run
from imprint.recording.needs import Features
from imprint.selecting import target_rows
from imprint.selecting.classwise import classes_of
from imprint.selecting.compression import LEVEL, alignment
from imprint.selecting.targeting import adam_influence
from imprint.selecting.untrained import Untrained

SETS = {
    "banking77": "banking77/banking77.jsonl.xz", "trec6": "trec6/trec6.jsonl.xz", "clinc150": "clinc150/clinc150_full.jsonl.xz",
    "sst2": "sst2/sst2.jsonl.xz", "ag_news": "ag_news_test/ag_news_test.jsonl.xz", "imdb": "imdb10k/imdb10k.jsonl.xz",
}  # fmt: skip
MIXTURES = [
    ("banking77", "trec6"), ("trec6", "banking77"), ("banking77", "clinc150"), ("sst2", "trec6"), ("ag_news", "imdb"),
    ("imdb", "ag_news"), ("clinc150", "sst2"), ("sst2", "ag_news"),
]  # fmt: skip
TARGETS = 200
WRONG = 0.25
PENALTIES = (1e-3, 1e-2, 0.1, 0.3, 1.0, 3.0, 10.0)


def read(data: Path, name: str) -> list[dict]:
    with lzma.open(data / "text" / SETS[name], "rt") as file:
        return [json.loads(line) for line in file]


def drawn(rows: list[dict], size: int, random: np.random.Generator) -> list[dict]:
    return [rows[place] for place in random.permutation(len(rows))[:size]]


# --------------------------------------------------------------------------------------------------------------- compression


def over_pairs(texts: list[str], target: list[str]) -> np.ndarray:
    """The authors' alignment: one minus the mean normalised compression distance to each text of the target."""

    def size(text: bytes) -> int:
        return len(zlib.compress(text, LEVEL, -zlib.MAX_WBITS))

    known = [(one.encode(), size(one.encode())) for one in target]
    found = []
    for text in (one.encode() for one in texts):
        own = size(text)
        found.append(1 - np.mean([(size(text + one) - min(own, two)) / max(own, two) for one, two in known]))
    return np.array(found)


def mixtures(data: Path, examples: int, random: np.random.Generator) -> list[dict[str, object]]:
    print(f"{'target among others':24}{'zip-fit':>9}{'seconds':>9}{'pairs':>9}{'seconds':>9}{'length':>9}")
    table = []
    for own, other in MIXTURES:
        mine = [row["text"] for row in drawn(read(data, own), TARGETS + examples, random)]
        others = [row["text"] for row in drawn(read(data, other), examples, random)]
        target, pool = mine[:TARGETS], mine[TARGETS:] + others
        wanted = np.arange(len(pool)) < len(mine) - TARGETS
        began = time.perf_counter()
        value = alignment(pl.Series(pool), pl.Series(target))
        ours = time.perf_counter() - began
        began = time.perf_counter()
        pairs = over_pairs(pool[::3], target[::2])
        theirs = time.perf_counter() - began
        row = {
            "target": own, "others": other, "zip-fit": roc_auc_score(wanted, value), "seconds": ours,
            "pairs": roc_auc_score(wanted[::3], pairs), "pairs_seconds": theirs, "length": roc_auc_score(wanted, list(map(len, pool))),
        }  # fmt: skip
        table.append(row)
        numbers = "".join(f"{row[key]:9.3f}" for key in ("zip-fit", "seconds", "pairs", "pairs_seconds", "length"))
        print(f"{own + ' / ' + other:24}{numbers}", flush=True)
    return table


# -------------------------------------------------------------------------------------------------------------------- filters


def with_wrong_labels(
    frame: pl.DataFrame, trusted: int, random: np.random.Generator
) -> tuple[pl.DataFrame, np.ndarray]:
    """A quarter of the labels after the first few examples replaced by others; which."""
    wrong = (random.random(frame.height) < WRONG) & (np.arange(frame.height) >= trusted)
    kinds = frame["label"].unique().sort().to_list()
    code = frame["label"].replace_strict(kinds, range(len(kinds)), return_dtype=pl.Int64).to_numpy()
    code = np.where(wrong, (code + random.integers(1, len(kinds), frame.height)) % len(kinds), code)
    return frame.with_columns(label=pl.Series([kinds[one] for one in code])), wrong


def pools(data: Path, examples: int, random: np.random.Generator) -> dict[str, tuple[pl.DataFrame, int]]:
    """Frames of `id, label` and inputs with the number of trusted examples at their beginning."""
    adult = pl.read_csv(io.BytesIO(lzma.decompress((data / "tabular/adult/adult.csv.xz").read_bytes())))
    adult = adult.sample(2 * examples, seed=0, shuffle=True).drop("split").rename({"income": "label"})
    trec = pl.DataFrame(
        [{"text": row["text"], "label": f"c{row['label']}"} for row in drawn(read(data, "trec6"), 2 * examples, random)]
    )
    bank = pl.DataFrame(
        [
            {"text": row["text"], "label": row["label"][0]}
            for row in drawn(read(data, "banking77"), 2 * examples, random)
        ]
    )
    frames = {"adult": (adult, examples // 5), "trec6": (trec, examples // 5), "banking77": (bank, examples // 3)}
    return {
        name: (frame.with_row_index("id").with_columns(pl.format("r{}", "id").alias("id")), trusted)
        for name, (frame, trusted) in frames.items()
    }


def opened(frame: pl.DataFrame, folder: Path) -> Corpus:
    if "split" not in frame.columns:
        frame = frame.with_columns(split=pl.lit("train"))
    return imprint.open(frame, target="label", id="id", split="split", store=folder)


def numbers_of(corpus: Corpus) -> np.ndarray:
    """The number of each training example in the frame."""
    return corpus.ids.gather(corpus.rows("train")).str.slice(1).cast(pl.Int64).to_numpy()


def filters(data: Path, examples: int, random: np.random.Generator, folder: Path) -> list[dict[str, object]]:
    print(f"\n{'filter':24}{'trusted':>9}" + "".join(f"{penalty:9}" for penalty in PENALTIES))
    kept, table = (filtering.PAIRS, filtering.DOMAIN), []
    for name, (frame, count) in pools(data, examples, random).items():
        noisy, wrong = with_wrong_labels(frame, count, random)
        about = Untrained(opened(noisy, folder / f"dfn-{name}"))
        features, target = about.gather([Features()])["features"], about.target()
        number = numbers_of(about.corpus)
        trusted = torch.from_numpy(number < count)
        row: dict[str, object] = {"filter": f"dfn, {name}", "trusted": count}
        for penalty in PENALTIES:
            filtering.PAIRS = penalty
            value = filtering.pair_quality(features, target, trusted)
            row[str(penalty)] = roc_auc_score(~wrong[number][~trusted], value[~trusted])
        table.append(row)
    corpus, inside = two_domains(data, examples, random, folder / "dfn-domain")
    about = Untrained(corpus)
    features, own = about.gather([Features()])["features"], inside[numbers_of(corpus)]
    trusted = torch.from_numpy(own & (np.cumsum(own) <= examples // 5))
    row = {"filter": "dfn-domain, trec6", "trusted": int(trusted.sum())}
    for penalty in PENALTIES:
        filtering.DOMAIN = penalty
        row[str(penalty)] = roc_auc_score(own[~trusted], filtering.domain_likeness(features, trusted)[~trusted])
    table.append(row)
    filtering.PAIRS, filtering.DOMAIN = kept
    for row in table:
        numbers = "".join(f"{row[str(penalty)]:9.3f}" for penalty in PENALTIES)
        print(f"{row['filter']:24}{row['trusted']:9}{numbers}", flush=True)
    return table


def two_domains(data: Path, examples: int, random: np.random.Generator, folder: Path) -> tuple[Corpus, np.ndarray]:
    """TREC and Banking77 to train on, labels of their own, TREC to validate on; which rows are TREC's."""
    trec = drawn(read(data, "trec6"), examples + TARGETS, random)
    bank = drawn(read(data, "banking77"), examples, random)
    rows = [{"text": row["text"], "label": f"trec {row['label']}"} for row in trec]
    rows += [{"text": row["text"], "label": f"bank {row['label'][0]}"} for row in bank]
    place = np.arange(len(rows))
    frame = pl.DataFrame(rows).with_columns(
        id=pl.Series([f"r{one}" for one in place]),
        split=pl.Series(np.where(place < len(trec) - examples, "valid", "train")),
    )
    return opened(frame, folder), place < len(trec)


# ------------------------------------------------------------------------------------------------------------------ gradients


class Stepping(Moments):
    """Adam's next step as LESS has it: the momentum is part of it."""

    first: dict[str, Tensor]

    def scaled(self, layer: LayerGradient) -> Tensor:
        gradient = full(layer).flatten(1)
        direction = 0.9 * self.first[layer.name] + 0.1 * gradient
        return (
            direction
            / (self.beta * self.second[layer.name] + (1 - self.beta) * gradient.square() + self.epsilon).sqrt()
        )


def stepping(run: Run) -> Stepping:
    plain, examples = moments_of(run), examples_of(run, run.rows(None)[:4])
    state = load_file(run.checkpoints.named("last").path("state.safetensors"))
    names = [name for name, _ in examples.capture.module.named_parameters()]
    found = Stepping(plain.second, plain.beta, plain.epsilon)
    first = by_layer(examples, {name: state[f"optimizer/{number}/exp_avg"] for number, name in enumerate(names)})
    object.__setattr__(found, "first", first)
    return found


def gradients(data: Path, examples: int, random: np.random.Generator, folder: Path) -> list[dict[str, object]]:
    print(f"\n{'gradients':24}{'less':>9}{'seconds':>9}{'adam':>9}{'seconds':>9}{'momentum':>9}")
    adult, _ = pools(data, examples, random)["adult"]
    noisy, wrong = with_wrong_labels(adult, TARGETS, random)
    noisy = noisy.with_columns(split=pl.Series(np.where(np.arange(noisy.height) < TARGETS, "valid", "train")))
    mixed, inside = two_domains(data, examples, random, folder / "mixed")
    table = []
    for name, corpus, wanted in (
        ("adult, wrong labels", opened(noisy, folder / "noisy"), ~wrong),
        ("trec6 / banking77", mixed, inside),
    ):
        run = imprint.fit(imprint.Learner("mlp", epochs=5), corpus, folder / f"run-{name[:4]}", progress=False)
        own, ids = wanted[numbers_of(corpus)], run.ids.to_list()
        row: dict[str, object] = {"pool": name}
        for method in ("less", "less-adam"):
            began = time.perf_counter()
            frame = imprint.select(run, 1.0, method, progress=False).frame()
            row[f"{method} seconds"] = time.perf_counter() - began
            value = dict(frame.select("id", "value").iter_rows())
            row[method] = roc_auc_score(own, [value[one] for one in ids])
        rows = target_rows(run, None)
        subtasks = classes_of(run.target(None)[torch.from_numpy(rows)])
        found = adam_influence(examples_of(run, run.rows()), examples_of(run, rows), subtasks, stepping(run))
        row["momentum"] = roc_auc_score(own, found.amax(1))
        table.append(row)
        numbers = "".join(
            f"{row[key]:9.3f}" for key in ("less", "less seconds", "less-adam", "less-adam seconds", "momentum")
        )
        print(f"{name:24}{numbers}", flush=True)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--examples", type=int, default=1500, help="of each of the two kinds in a pool")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    asked = parser.parse_args()
    random = np.random.default_rng(asked.seed)
    with tempfile.TemporaryDirectory() as folder:
        found = {
            "mixtures": mixtures(asked.data, asked.examples, random),
            "filters": filters(asked.data, asked.examples, random, Path(folder)),
            "gradients": gradients(asked.data, asked.examples, random, Path(folder)),
        }
    if asked.json:
        asked.json.write_text(
            json.dumps({"examples": asked.examples, "seed": asked.seed, **found}, indent=1, default=float)
        )


if __name__ == "__main__":
    main()
