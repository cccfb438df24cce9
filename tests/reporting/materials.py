"""Materials for reports: real data with labels flipped on purpose, learned by a small scikit-learn model, epoch by epoch.

The figures are what such a model gives, the verdict is measured with a handful of retrainings. `tiny` needs no data at hand and
can be made of hostile strings.
"""

from __future__ import annotations

import io
import json
import lzma
import time
import zlib
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from imprint.reporting import Comparison, Material

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
HOSTILE = (
    "<script>alert(1)</script>",
    "</script><script>alert(2)</script>",
    "{{7*7}}",
    '"><img src=x onerror=alert(3)>',
    "<!--<script>",
    "javascript:alert(4)",
    "a&b <b>bold</b> 'quoted' \u2028 \u202e",
)


def tiny(words: tuple[str, ...] = ("cat", "dog", "hen"), **more: object) -> Material:
    """A small table set with every part filled, its ids, labels, values and column names made of `words`."""
    n = 6 * len(words)
    labels = [words[k % len(words)] for k in range(n)]
    ids = [f"{words[k % len(words)]}#{k}" for k in range(n)]
    rng = np.random.default_rng(0)
    examples = pl.DataFrame(
        {
            "id": ids,
            "position": list(range(n)),
            "split": ["train" if k % 3 else "test" for k in range(n)],
            "label": labels,
            "confidence": [float(v) if k % 3 else None for k, v in enumerate(rng.random(n))],
            "variability": [float(v) / 2 if k % 3 else None for k, v in enumerate(rng.random(n))],
            "correctness": [float(v) if k % 3 else None for k, v in enumerate(rng.integers(0, 5, n) / 4)],
            "predicted": labels[::-1],
        }
    )
    findings = pl.DataFrame(
        {
            "id": [*ids[1:6], words[0]],
            "position": [*range(1, 6), None],
            "kind": ["label", "label", "duplicate", "outlier", "leak", "column"],
            "severity": [0.97, 0.5, 0.75, 0.25, 1.0, 0.6],
            "suggestion": ["relabel", "review", "drop", "review", "drop", "review"],
            "suggested_value": [words[0], words[1], None, None, None, None],
            "method": ["trajectory", words[-1], "exact", "neighbours", "exact", "columns"],
            "evidence": [
                f"the margin of {words[0]} is -0.5",
                None,
                words[0],
                '{"distance": 4.2}',
                words[-1],
                words[1 % len(words)],
            ],
        }
    )
    columns = {f"column {word}": [f"{word} {k}" for k in range(n)] for word in words}
    inputs = pl.DataFrame({"id": ids} | columns)
    fields = {
        "name": f"tiny {words[0]}", "examples": examples, "findings": findings, "modality": "table",
        "kinds": dict.fromkeys(columns, "categorical"),
        "read": lambda wanted: pl.DataFrame({"id": wanted}).join(inputs, on="id", how="left", maintain_order="left"),
        "classes": sorted(set(words)), "source": f"/data/{words[0]}.csv", "fingerprint": "00c0ffee00c0ffee",
        "roles": {"inputs": list(columns), "target": words[0]}, "notes": [f"target: {words[0]} (named so)"],
        "set_aside": pl.DataFrame({"position": [3], "reason": [words[0]]}),
        "curves": pl.DataFrame(
            {"epoch": [1, 2, 3], "loss": [1.0, 0.5, 0.3], "train_accuracy": [0.4, 0.6, 0.9], "test_accuracy": [0.4, 0.5, None]}
        ),
        "duplicates": pl.DataFrame({"group": [0, 0, 1, 1], "id": [ids[0], ids[1], ids[3], ids[7]], "similarity": [1.0, 1.0, 0.97, 0.97]}),
        "predictions": pl.DataFrame({"target": labels, "predicted": labels[1:] + labels[:1], "confidence": rng.random(n)}),
        "verdict": Comparison(
            "accuracy", 0.01, (-0.002, 0.022), [0.80, 0.81, 0.80], [0.81, 0.82, 0.81], {"random": [0.80, 0.80, 0.81]},
            edits={"drop": 2, "relabel": 1},
        ),
        "seconds": {"open": 0.4, words[0]: 12.0}, "trainings": 7, "disk": 12_000_000, "machine": "2 cores",
        "command": f"imprint audit '{words[0]}'", "recipe": f"source: {words[0]}\n", "versions": {"imprint": "0.1.0"}, "seed": 0,
    }  # fmt: skip
    return Material(**(fields | more))  # type: ignore[arg-type]


def images(rows: int = 6000) -> Material:
    """Fashion-MNIST with 6 % of the labels flipped and some images repeated."""
    pixels = _sprite(SHARED / "images/fashion_mnist/train60k.webp")[:rows]
    labels = np.load(SHARED / "images/fashion_mnist/labels.npz")
    names = np.array(
        ["T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
    )
    truth = next(labels[name] for name in labels.files if len(labels[name]) == 60000)[:rows]
    rng = np.random.default_rng(1)
    copies = rng.choice(rows // 2, 24, replace=False)
    pixels[rows - 24 :] = pixels[copies]
    truth = truth.copy()
    truth[rows - 24 :] = truth[copies]
    given = _flip(truth, 0.06, 10, rng)
    features = pixels.reshape(rows, -1).astype(np.float32) / 255
    ids = [f"{names[c].lower().replace(' ', '-')}/{k:05d}.png" for k, c in enumerate(given)]
    groups = [(int(a), rows - 24 + j) for j, a in enumerate(copies)]

    def read(wanted: list[str]) -> pl.DataFrame:
        return pl.DataFrame({"image": [_png(pixels[int(one[-9:-4])]) for one in wanted]})

    return _material(
        "Fashion-MNIST", "image", ids, ids, names[given].tolist(), features, groups, read, {"image": "image"},
        "/data/fashion-mnist/", names.tolist(), {"inputs": "image", "target": "the folder's name"},
    )  # fmt: skip


def texts(rows: int = 10000) -> Material:
    """Banking77 with 5 % of the labels flipped."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    with lzma.open(SHARED / "text/banking77/banking77.jsonl.xz", "rt", encoding="utf8") as lines:
        records = [json.loads(line) for line in lines]
    order = np.random.default_rng(3).permutation(len(records))[:rows]
    records = [records[k] for k in order]
    names = sorted({record["label"] for record in records})
    truth = np.array([names.index(record["label"]) for record in records])
    given = _flip(truth, 0.05, len(names), np.random.default_rng(1))
    passages = [record["text"] for record in records]
    features = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), min_df=2).fit_transform(passages)
    ids = [f"{zlib.crc32(text.encode()):08x}-{k}" for k, text in enumerate(passages)]
    first: dict[str, int] = {}
    groups = []
    for k, text in enumerate(passages):
        key = " ".join(text.lower().split())
        if key in first:
            groups.append((first[key], k))
        first.setdefault(key, k)
    by_id = dict(zip(ids, passages, strict=True))
    return _material(
        "Banking77", "text", ids, list(range(rows)), [names[c] for c in given], features, groups,
        lambda wanted: pl.DataFrame({"text": [by_id[one] for one in wanted]}), {"text": "text"},
        "banking77.jsonl.xz", names, {"inputs": "text", "target": "label", "split": "split"},
    )  # fmt: skip


def tables(rows: int = 8000) -> Material:
    """Adult with 4 % of the labels flipped."""
    from sklearn.preprocessing import StandardScaler

    frame = pl.read_csv(lzma.decompress((SHARED / "tabular/adult/adult.csv.xz").read_bytes())).drop("split")
    frame = frame.sample(rows, seed=2, shuffle=True)
    names = frame["income"].unique().sort().to_list()
    truth = frame["income"].replace_strict(names, [0, 1]).to_numpy()
    inputs = frame.drop("income")
    given = _flip(truth, 0.04, 2, np.random.default_rng(1))
    features = StandardScaler().fit_transform(
        inputs.to_dummies(inputs.select(pl.col(pl.String)).columns).to_numpy().astype(np.float32)
    )
    ids = [f"r{k:05d}" for k in range(rows)]
    seen = (
        inputs.with_row_index("k")
        .group_by(inputs.columns, maintain_order=True)
        .agg("k")
        .filter(pl.col("k").list.len() > 1)
    )
    groups = [(int(a), int(b)) for a, b, *_ in seen["k"].to_list()]

    def read(wanted: list[str]) -> pl.DataFrame:
        return inputs[[int(one[1:]) for one in wanted]]

    kinds = {name: "numeric" if dtype.is_numeric() else "categorical" for name, dtype in inputs.schema.items()}
    return _material(
        "Adult income", "table", ids, list(range(rows)), [names[c] for c in given], features, groups, read, kinds,
        "adult.csv.xz", names, {"inputs": inputs.columns, "target": "income"},
    )  # fmt: skip


def _material(
    name: str, modality: str, ids: list[str], positions: list, given: list, features: Any, groups: list, read: Callable,
    kinds: dict[str, str], source: str, names: list, roles: dict,
) -> Material:  # fmt: skip
    """Learn, recording each epoch; make findings of what the model disagreed with; retrain with and without the edits."""
    codes, train = np.array([names.index(label) for label in given]), _train(len(ids))
    rows, test = np.flatnonzero(train), np.flatnonzero(~train)
    began = time.perf_counter()
    curves, own, probability = _learn(modality, features, codes, train, len(names))
    fitted = time.perf_counter()
    scores = np.full((3, len(ids)), np.nan)
    scores[:, rows] = own.mean(0), own.std(0), (own > 0.5).mean(0)
    suspects = rows[np.argsort(own.mean(0))[: int(0.06 * len(rows))]]
    suspects = suspects[probability[suspects].argmax(1) != codes[suspects]]
    found = [*_labels(suspects, scores[0], probability, names), *_copies(groups, train, ids)]
    if modality != "text":
        found += _outliers(features, rows)
    findings = pl.DataFrame(
        [(ids[k], positions[k], *rest) for k, *rest in found],
        schema={
            "id": pl.String, "position": pl.String if isinstance(positions[0], str) else pl.Int64, "kind": pl.String,
            "severity": pl.Float64, "suggestion": pl.String, "suggested_value": pl.String, "method": pl.String, "evidence": pl.String,
        },
        orient="row",
    )  # fmt: skip
    named = np.array(names)
    checked = time.perf_counter()
    verdict = _verdict(modality, features, codes, train, suspects, probability, [b for _, b in groups], len(names))
    verified = time.perf_counter()
    shares = {
        name: pl.Series(values).fill_nan(None)
        for name, values in zip(("confidence", "variability", "correctness"), scores, strict=True)
    }
    return Material(
        name=name, modality=modality, kinds=kinds, read=read, classes=names, source=source, roles=roles, findings=findings,
        examples=pl.DataFrame(
            {"id": ids, "position": positions, "split": np.where(train, "train", "test"), "label": given}
            | shares | {"predicted": named[probability.argmax(1)]}
        ),
        fingerprint=f"{zlib.crc32(''.join(ids).encode()):016x}", notes=("split: seeded 80/20", f"target: {roles['target']}"),
        curves=pl.DataFrame(curves),
        duplicates=pl.DataFrame(
            [(g, ids[k], 1.0) for g, pair in enumerate(groups) for k in pair],
            schema={"group": pl.Int64, "id": pl.String, "similarity": pl.Float64}, orient="row",
        ),
        verdict=verdict,
        predictions=pl.DataFrame(
            {
                "target": named[codes[test]], "predicted": named[probability[test].argmax(1)],
                "confidence": probability[test].max(1),
            }
        ),
        seconds={"fit and record": fitted - began, "checks": checked - fitted, "verify (15 retrainings)": verified - checked},
        trainings=16, machine="2 cores, no GPU", command=f"imprint audit {source} --target label --seed 0",
        recipe=f"source: {source}\ntarget: label\nseed: 0\nlearner:\n  model: auto\n  epochs: 12\n",
        versions={"imprint": "0.1.0", "polars": pl.__version__}, seed=0, created=datetime(2026, 11, 20, 9, 30),
    )  # fmt: skip


def _learner(modality: str, seed: int) -> Any:
    from sklearn.linear_model import SGDClassifier
    from sklearn.neural_network import MLPClassifier

    if modality == "text":
        return SGDClassifier(
            "log_loss", alpha=1e-5, learning_rate="constant", eta0=2.0, average=True, random_state=seed
        )
    return MLPClassifier((64,), learning_rate_init=2e-3, alpha=1e-3, random_state=seed)


def _learn(
    modality: str, features: Any, codes: np.ndarray, train: np.ndarray, classes: int
) -> tuple[list[dict[str, float]], np.ndarray, np.ndarray]:
    """Curves, the probability of the given label `[epoch, training row]`, and the final probabilities `[row, class]`."""
    model, curves, own = _learner(modality, 0), [], []
    for epoch in range(1, 13):
        model.partial_fit(features[train], codes[train], classes=np.arange(classes))
        probability = model.predict_proba(features)
        given = probability[np.arange(len(codes)), codes]
        own.append(given[train])
        right, loss = probability.argmax(1) == codes, -np.log(given.clip(1e-6))
        curves.append(
            {
                "epoch": epoch, "loss": loss[train].mean(), "test_loss": loss[~train].mean(),
                "train_accuracy": right[train].mean(), "test_accuracy": right[~train].mean(),
            }
        )  # fmt: skip
    return curves, np.array(own), probability


def _labels(suspects: np.ndarray, confidence: np.ndarray, probability: np.ndarray, names: list) -> Iterator[tuple]:
    for k in suspects:
        other, severity = names[int(probability[k].argmax())], float(1 - confidence[k])
        told = f"The given label had a mean probability of {confidence[k]:.2f}; '{other}' ends at {probability[k].max():.2f}."
        yield k, "label", severity, "relabel" if severity > 0.9 else "review", other, "trajectory", told


def _copies(groups: list, train: np.ndarray, ids: list[str]) -> Iterator[tuple]:
    for a, b in groups:
        kind, severity = ("duplicate", 0.5) if train[a] == train[b] else ("leak", 1.0)
        yield b, kind, severity, "drop", None, "exact", f"The same content as {ids[a]}."


def _outliers(features: Any, rows: np.ndarray) -> Iterator[tuple]:
    from sklearn.neighbors import NearestNeighbors

    sample = rows[:1500]
    far = NearestNeighbors(n_neighbors=6).fit(features[sample]).kneighbors(features[sample])[0][:, 1:].mean(1)
    usual = np.median(far)
    for j in np.argsort(far)[-40:]:
        told = f"Its 5 nearest neighbours are {far[j] / usual:.1f} times as far away as usual."
        yield sample[j], "outlier", float((far[j] - usual) / (far.max() - usual)), "review", None, "neighbours", told


def _verdict(
    modality: str, features: Any, codes: np.ndarray, train: np.ndarray, suspects: np.ndarray, probability: np.ndarray,
    dropped: list[int], classes: int,
) -> Comparison:  # fmt: skip
    rng, rows = np.random.default_rng(5), np.flatnonzero(train)
    edited, random = codes.copy(), codes.copy()
    edited[suspects] = probability[suspects].argmax(1)
    random[rng.choice(rows, len(suspects), replace=False)] = rng.integers(0, classes, len(suspects))
    trials = {"before": (rows, codes), "after": (np.setdiff1d(rows, dropped), edited), "random": (rows, random)}
    reached: dict[str, list[float]] = {}
    for what, (on, labels) in trials.items():
        for seed in range(5):
            model = _learner(modality, seed)
            for _ in range(6):
                model.partial_fit(features[on], labels[on], classes=np.arange(classes))
            right = model.predict(features[~train]) == codes[~train]
            reached.setdefault(what, []).append(float(right.mean()))
    difference = np.array(reached["after"]) - np.array(reached["before"])
    half = 2.776 * difference.std(ddof=1) / 5**0.5  # Student's t with 4 degrees of freedom
    effect = float(difference.mean())
    return Comparison(
        "accuracy", effect, (effect - half, effect + half), reached["before"], reached["after"], {"random": reached["random"]},
        seeds=range(5), edits={"relabel": len(suspects), "drop": len(dropped)},
    )  # fmt: skip


def _train(rows: int) -> np.ndarray:
    return np.random.default_rng(7).random(rows) < 0.8


def _flip(labels: np.ndarray, share: float, classes: int, rng: np.random.Generator) -> np.ndarray:
    """Wrong labels in the training split only, so that the test split can say what the edits are worth."""
    wrong = (rng.random(len(labels)) < share) & _train(len(labels))
    return np.where(wrong, (labels + rng.integers(1, classes, len(labels))) % classes, labels)


def _png(array: np.ndarray) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def _sprite(path: Path) -> np.ndarray:
    """The pictures `[n, h, w]` of one of the shared sheets."""
    from PIL import Image

    shape = json.loads(path.with_name(path.name + ".json").read_text())
    n, height, width, across = (shape[key] for key in ("n", "h", "w", "cols"))
    allowed, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # a sheet of 60,000 pictures is meant
    try:
        with Image.open(path) as image:
            sheet = np.asarray(image.convert("L"))
    finally:
        Image.MAX_IMAGE_PIXELS = allowed
    return sheet.reshape(-1, height, across, width).swapaxes(1, 2).reshape(-1, height, width)[:n]
