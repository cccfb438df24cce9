"""Exact and near duplicates beside peers: seconds, memory, recall of planted copies, and how much of what is flagged is a copy.

    python benchmarks/duplicates.py texts  --examples 200000 --peer /tmp/venv-duplicates/bin/python
    python benchmarks/duplicates.py images --examples 60000  --peer /tmp/venv-duplicates/bin/python

Copies of known strength are planted into real data from ../shared/data (texts: AG News; images: Fashion-MNIST as PNG). Each finder runs
in a process of its own, `--rounds` times in turn; `benchmarks/duplicate_finders.py` says what each one does, what is timed, and how to make
the environment of the peers. Without `--peer` imprint runs alone. The table has the median of the rounds and the range.

Nothing is judged by eye. A pair of texts is right if the sets of their runs of six bytes, counted here anew, have a Jaccard similarity of
at least `--near`; a pair of images, if after the best change of brightness and contrast the pixels differ by at most `CLOSE` grey levels
(root mean square). Of 1,500 copies as JPEG more than 99 % keep that rule; of 1,500 pictures and the one most like each, one in 200.
A row is a copy if it was planted as one (or copied) and the rule holds, or if any finder named a partner for it with which the rule holds.

    planted   share of the planted copies that is flagged, of those that keep the rule; of the controls, share flagged although they do not
    recall    share of all copies (planted or found by anyone) that is flagged
    precision share of the flagged rows that are copies; `pairs`: share of the named pairs that are right themselves (imprint names one
              other row of the same group of copies, which may be a copy of a copy)

Thresholds: 0.85 of Jaccard similarity for every MinHash; a distance of `--hamming` bits for perceptual hashes, which have no common scale
with ours; semhash at its default, a cosine of 0.9 between texts, which is not made to find what the rule here calls a copy.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from duplicate_finders import IMAGES, TEXTS, plain, runs

HERE = Path(__file__).resolve()
DATA = HERE.parents[2] / "shared/data"
PLANTED = 0.005
CLOSE = 9.0
MOVED, HALF = "moved by a pixel", "half of the words"

Planted = dict[str, list[tuple[int, int]]]


def texts(count: int, rng: np.random.Generator) -> tuple[list[str], Planted]:
    """Texts made of real sentences; the planted copies, and texts that share half of their words, at the end."""
    sys.path.insert(0, str(DATA))
    from load import jsonl

    (source,) = (DATA / "text/ag_news_test").glob("*.jsonl*")
    sentences = [row["text"] for row in jsonl(str(source))]
    words = np.array(" ".join(sentences).split())
    made = list(dict.fromkeys(sentences))[:count]
    made += [" ".join(words[rng.integers(0, len(words), 18)]) for _ in range(count - len(made))]
    planted: Planted = {name: [] for name in ("exact", "case and signs", "one letter", "one word in twenty", HALF)}
    for original in rng.choice(count, max(1, int(PLANTED * count)), replace=False).tolist():
        text = made[original]
        parts = text.split()
        letter = int(rng.integers(len(text)))
        changed = rng.random(len(parts)) < 0.05
        half = rng.permutation(len(parts)) < len(parts) // 2
        copies = (
            text,
            ", ".join(parts).upper(),
            text[:letter] + "q" + text[letter + 1 :],
            " ".join("other" if change else part for part, change in zip(parts, changed, strict=True)),
            " ".join(
                str(words[rng.integers(len(words))]) if change else part
                for part, change in zip(parts, half, strict=True)
            ),
        )
        for name, copy in zip(planted, copies, strict=True):
            planted[name].append((original, len(made)))
            made.append(copy)
    return made, planted


def images(count: int, rng: np.random.Generator) -> tuple[list[bytes], Planted]:
    """Fashion-MNIST as PNG; planted copies, and pictures moved by one pixel, at the end."""
    from PIL import Image, ImageChops, ImageEnhance

    sys.path.insert(0, str(DATA))
    from load import sprite

    pictures = [Image.fromarray(pixels) for pixels in sprite(str(DATA / "images/fashion_mnist/train60k.webp"))[:count]]

    def encoded(picture: Image.Image, kind: str = "PNG", **options: int) -> bytes:
        buffer = io.BytesIO()
        picture.save(buffer, kind, **options)
        return buffer.getvalue()

    made = [encoded(picture) for picture in pictures]
    planted: Planted = {name: [] for name in ("exact", "stored anew", "JPEG 75", "brightness 0.7", MOVED)}
    for original in rng.choice(count, max(1, int(PLANTED * count)), replace=False).tolist():
        picture = pictures[original]
        copies = (
            made[original],
            encoded(picture, compress_level=1),
            encoded(picture, "JPEG", quality=75),
            encoded(ImageEnhance.Brightness(picture).enhance(0.7)),
            encoded(ImageChops.offset(picture, 1, 0)),
        )
        for name, copy in zip(planted, copies, strict=True):
            planted[name].append((original, len(made)))
            made.append(copy)
    return made, planted


def right_texts(made: list[str], near: float) -> Callable[[np.ndarray], np.ndarray]:
    """Judge of pairs of texts, by sets of runs."""

    def judge(pairs: np.ndarray) -> np.ndarray:
        sets = {int(row): set(runs(plain(made[row]))) for row in np.unique(pairs)}
        both = [(sets[one], sets[other]) for one, other in pairs.tolist()]
        return np.array([one == other or len(one & other) >= near * len(one | other) for one, other in both], bool)

    return judge


def right_images(made: list[bytes]) -> Callable[[np.ndarray], np.ndarray]:
    """Judge of pairs of images, by what is left of the difference of pixels after a change of brightness and contrast."""
    from PIL import Image

    def judge(pairs: np.ndarray) -> np.ndarray:
        rows, place = np.unique(pairs, return_inverse=True)
        pixels = np.stack([np.asarray(Image.open(io.BytesIO(made[row])).convert("L"), np.float32) for row in rows])
        pixels = pixels.reshape(len(rows), -1) - pixels.mean((1, 2))[:, None]
        spread = np.sqrt((pixels**2).mean(1))
        found = []
        for some in np.array_split(place.reshape(-1, 2), 1 + len(pairs) // 4096):
            one, other = some.T
            shared = (pixels[one] * pixels[other]).mean(1) / np.maximum(spread[one] * spread[other], 1e-6)
            found.append(np.minimum(spread[one], spread[other]) * np.sqrt(1 - np.clip(shared, 0, 1) ** 2) <= CLOSE)
        return np.concatenate(found)

    return judge


def run(python: str, name: str, given: Path, options: argparse.Namespace) -> dict[str, Any]:
    """What one finder found in one round, from its own process."""
    threads = str(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "found.npz"
        command = [python, str(HERE.with_name("duplicate_finders.py")), name, str(given), str(found)]
        command += ["--near", str(options.near), "--hamming", str(options.hamming), "--threads", threads]
        command += ["--encoder", str(options.encoder)]
        limits = dict.fromkeys(("OMP_NUM_THREADS", "RAYON_NUM_THREADS", "POLARS_MAX_THREADS"), threads)
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=os.environ | limits
        )
        if done.returncode:
            raise SystemExit(f"{name} failed:\n{done.stderr[-2000:]}")
        with np.load(found) as arrays:
            return {key: arrays[key] for key in arrays.files}


def keys(pairs: np.ndarray, count: int) -> np.ndarray:
    """Pairs as single numbers, the smaller row first."""
    pairs = np.sort(pairs, axis=1)
    return pairs[:, 0] * count + pairs[:, 1]


def shown(values: list[float]) -> str:
    return f"{np.median(values):7.2f} ({min(values):.2f} to {max(values):.2f})"


def share(values: np.ndarray) -> str:
    return f"{values.mean():.4f}" if len(values) else "-"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", default="texts", choices=["texts", "images"])
    parser.add_argument("--examples", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--peer", help="a python that has the peers")
    parser.add_argument("--only", nargs="*", help="these finders")
    parser.add_argument(
        "--near", type=float, default=0.85, help="Jaccard similarity of a near copy; imprint's is fixed"
    )
    parser.add_argument("--hamming", type=int, default=2, help="bits that perceptual hashes may differ by")
    parser.add_argument(
        "--encoder", type=Path, default=DATA / "weights/wordllama_64d", help="static vectors for semhash"
    )
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    finders = [name for name in (TEXTS if options.what == "texts" else IMAGES) if options.peer or name == "imprint"]
    finders = [name for name in finders if name in (options.only or finders)]
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in finders}
    with tempfile.TemporaryDirectory() as folder:
        given = Path(folder) / "given"
        if options.what == "texts":
            made, planted = texts(options.examples, rng)
            given.write_text(json.dumps(made))
            judge = right_texts(made, options.near)
            began = time.perf_counter()
            _ = [plain(text) for text in made]
            print(
                f"not timed for the peers: {time.perf_counter() - began:.1f} s for lower case without signs, in Python"
            )
        else:
            made, planted = images(options.examples, rng)
            for row, data in enumerate(made):  # two made-up classes: the corpus must have a target
                path = (given / "ab"[row % 2] / f"{row:07d}").with_suffix(".jpg" if data[:2] == b"\xff\xd8" else ".png")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
            judge = right_images(made)
        for _ in range(options.rounds):
            for name in finders:
                python = sys.executable if name == "imprint" else options.peer
                found[name].append(run(python, name, given, options))
    count = len(made)
    pooled = np.array([pair for pairs in planted.values() for pair in pairs], np.int64)
    pooled = np.concatenate([pooled, *(rounds[0]["pairs"] for rounds in found.values())])
    pooled = np.unique(np.sort(pooled, axis=1), axis=0)
    right = judge(pooled)
    true_keys = keys(pooled[right], count)
    copies = np.zeros(count, bool)
    copies[pooled[right]] = True
    print(
        f"{count:,} {options.what}, {options.threads} threads, {options.rounds} rounds; {copies.sum():,} rows are copies or copied\n"
        f"{'':17}{'seconds':>24}{'processor':>11}{'peak MiB':>10}{'new':>7}{'flagged':>9}{'recall':>8}{'precision':>11}{'pairs':>8}"
    )
    for name, rounds in found.items():
        first = rounds[0]
        flagged = np.zeros(count, bool)
        flagged[first["flagged"]] = True
        version = str(first["version"])
        print(
            f"{name:17}{shown([float(one['seconds']) for one in rounds]):>24}"
            f"{np.median([one['processor'] for one in rounds]):11.2f}{max(one['peak'] for one in rounds):10.0f}"
            f"{max(one['new'] for one in rounds):7.0f}{flagged.sum():9,}{share(flagged[copies]):>8}{share(copies[flagged]):>11}"
            f"{share(np.isin(keys(first['pairs'], count), true_keys)):>8}   {version}"
        )
    print(f"\n{'planted':17}" + "".join(f"{name:>25}" for name in planted))
    kept = {
        kind: np.array([copy for _, copy in pairs])[np.isin(keys(np.array(pairs), count), true_keys) != (kind in (HALF, MOVED))]
        for kind, pairs in planted.items()
    }  # fmt: skip
    for name, rounds in found.items():
        of = {kind: np.isin(rows, rounds[0]["flagged"]) for kind, rows in kept.items()}
        print(f"{name:17}" + "".join(f"{share(hit):>13} of {len(hit):<8,}" for hit in of.values()))


if __name__ == "__main__":
    main()
