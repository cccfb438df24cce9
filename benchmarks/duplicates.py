"""Near duplicates: recall of planted copies, everything else that is flagged, time and peak memory.

Copies of known strength are planted into real data from ../shared/data (texts: AG News; images: Fashion-MNIST as PNG). What else is
flagged is either a copy that the data held before or a mistake; with `--show` some of it is printed, to be judged by eye. For
texts, datasketch (MinHash LSH at the same threshold, verified in the same way) is run beside it where it is installed.

    python benchmarks/duplicates.py texts --examples 200000
    python benchmarks/duplicates.py images --examples 60000
"""

from __future__ import annotations

import argparse
import io
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl

import imprint
from imprint.cleaning.flags import Flags
from imprint.cleaning.images import near_duplicate_images, thumbnails
from imprint.cleaning.texts import NEAR, jaccard, near_duplicate_texts, normalised

DATA = Path(__file__).parents[2] / "shared/data"
PLANTED = 0.01


def texts(count: int, rng: np.random.Generator) -> tuple[list[str], dict[str, list[int]]]:
    """Texts made of real sentences, the planted copies at the end: other case and signs, or one word of twenty changed."""
    sys.path.insert(0, str(DATA))
    from load import jsonl

    (source,) = (DATA / "text/ag_news_test").glob("*.jsonl*")
    sentences = [row["text"] for row in jsonl(str(source))]
    words = np.array(" ".join(sentences).split())
    made = list(dict.fromkeys(sentences))[:count]
    made += [" ".join(words[rng.integers(0, len(words), 18)]) for _ in range(count - len(made))]
    planted: dict[str, list[int]] = {"case and signs": [], "one word in twenty": []}
    for original in rng.choice(count, int(PLANTED * count), replace=False).tolist():
        parts = made[original].split()
        planted["case and signs"].append(len(made))
        made.append(", ".join(parts).upper())
        changed = rng.random(len(parts)) < 0.05
        planted["one word in twenty"].append(len(made))
        made.append(" ".join("other" if change else part for part, change in zip(parts, changed, strict=True)))
    return made, planted


def images(count: int, rng: np.random.Generator) -> tuple[list[bytes], dict[str, list[int]]]:
    """Fashion-MNIST as PNG, and planted copies: JPEG at quality 75, seven tenths as bright, moved by one pixel."""
    from PIL import Image, ImageChops, ImageEnhance

    sys.path.insert(0, str(DATA))
    from load import sprite

    pictures = [Image.fromarray(pixels) for pixels in sprite(str(DATA / "images/fashion_mnist/train60k.webp"))[:count]]

    def encoded(picture: Image.Image, kind: str = "PNG", **options: int) -> bytes:
        buffer = io.BytesIO()
        picture.save(buffer, kind, **options)
        return buffer.getvalue()

    made = [encoded(picture) for picture in pictures]
    planted: dict[str, list[int]] = {"JPEG 75": [], "brightness 0.7": [], "moved by a pixel": []}
    for original in rng.choice(count, int(PLANTED * count), replace=False).tolist():
        picture = pictures[original]
        for name, copy in (
            ("JPEG 75", encoded(picture, "JPEG", quality=75)),
            ("brightness 0.7", encoded(ImageEnhance.Brightness(picture).enhance(0.7))),
            ("moved by a pixel", encoded(ImageChops.offset(picture, 1, 0))),
        ):
            planted[name].append(len(made))
            made.append(copy)
    return made, planted


def datasketch(made: list[str]) -> set[int]:
    """Rows that datasketch's MinHash LSH brings together and the exact similarity confirms."""
    from datasketch import MinHash, MinHashLSH

    clean = normalised(pl.DataFrame({"text": made}), ["text"])
    lsh, pairs = MinHashLSH(threshold=NEAR, num_perm=96), []
    for row, text in enumerate(clean):
        signature = MinHash(num_perm=96)
        signature.update_batch([text[at : at + 6].encode() for at in range(max(1, len(text) - 5))])
        pairs += [(other, row) for other in lsh.query(signature)]
        lsh.insert(row, signature)
    edges = np.array(pairs, np.int64).reshape(-1, 2)
    return set(edges[jaccard(clean, edges) >= NEAR].ravel().tolist())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", default="texts", choices=["texts", "images"])
    parser.add_argument("--examples", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", type=int, default=0, help="print this many of the other flags")
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    made, planted = (texts if options.what == "texts" else images)(options.examples, rng)
    with tempfile.TemporaryDirectory() as folder:
        if options.what == "images":
            root = Path(folder) / "images"
            for row, data in enumerate(made):  # two made-up classes: the corpus must have a target
                path = (root / "ab"[row % 2] / f"{row:07d}").with_suffix(".jpg" if data[:2] == b"\xff\xd8" else ".png")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
            corpus = imprint.open(root, store=Path(folder) / "store")
            row_of = {int(Path(str(position)).stem): row for row, position in enumerate(corpus.positions)}
        else:
            frame = pl.DataFrame({"text": made, "label": np.arange(len(made)) % 2})
            corpus = imprint.open(frame, target="label", store=Path(folder) / "store")
            row_of = {int(position): row for row, position in enumerate(corpus.positions)}
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        began = time.perf_counter()
        flags: Flags = (
            near_duplicate_texts(corpus)
            if options.what == "texts"
            else near_duplicate_images(corpus, thumbnails(corpus))
        )
        seconds = time.perf_counter() - began
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        involved = {*flags.row.tolist(), *(flags.related if flags.related is not None else [])}
        print(
            f"{len(corpus)} {options.what}: {seconds:.1f} s, peak memory {peak / 1024:.0f} MiB ({(peak - before) / 1024:.0f} of it new)"
        )
        for name, rows in planted.items():
            print(
                f"  planted, {name}: {np.mean([row_of.get(row, -1) in involved for row in rows]):.3f} of {len(rows)} found"
            )
        known = {row_of[row] for rows in planted.values() for row in rows if row in row_of}
        pairs = zip(flags.row.tolist(), flags.related.tolist() if flags.related is not None else [], strict=True)
        others = [pair for pair in pairs if not known & set(pair)]
        print(f"  other flags: {len(others)} ({len(others) / len(corpus):.4f} of the examples)")
        for row, other in others[: options.show]:
            print(
                "   ",
                corpus.read(np.array([row, other])).rows()
                if options.what == "texts"
                else corpus.positions[[row, other]].to_list(),
            )
    if options.what == "texts":
        try:
            began = time.perf_counter()
            found = datasketch(made)
        except ImportError:
            print("datasketch is not installed: no peer")
            return
        print(f"datasketch: {time.perf_counter() - began:.1f} s")
        for name, rows in planted.items():
            print(f"  planted, {name}: {np.mean([row in found for row in rows]):.3f} of {len(rows)} found")


if __name__ == "__main__":
    main()
