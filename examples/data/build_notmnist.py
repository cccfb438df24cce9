"""Build notmnist.parquet: 5,000 real images of the letters A to J, with the wrong labels and duplicates that they came with.

Run from the repository root, with the raw data beside it in ../shared/data:

    python examples/data/build_notmnist.py

The sample is drawn by groups of identical images, so that the rate of exact duplicates stays the natural one.
"""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

RAW = Path(__file__).parents[3] / "shared/data/ood/notmnist"
OUT = Path(__file__).with_name("notmnist.parquet")
SIZE = 5_000
SEED = 1  # this draw holds the set's largest flaw: 141 blank images, all of them labelled "I"
# What Hugging Face's `datasets` reads to show the column as images.
FEATURES = {"image": {"_type": "Image"}, "label": {"dtype": "string", "_type": "Value"}}


def sprite(path: Path) -> np.ndarray:
    """The images of a lossless WebP sheet, `[image, height, width]` uint8; the geometry is in the JSON file beside it."""
    geometry = json.loads(path.with_name(path.name + ".json").read_text())
    height, width, columns = geometry["h"], geometry["w"], geometry["cols"]
    Image.MAX_IMAGE_PIXELS = None
    sheet = np.asarray(Image.open(path).convert("L"))
    tiles = sheet.reshape(sheet.shape[0] // height, height, columns, width).swapaxes(1, 2)
    return tiles.reshape(-1, height, width)[: geometry["n"]]


def png(pixels: np.ndarray) -> bytes:
    """One image as an optimised PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def sample(images: np.ndarray, size: int, seed: int) -> np.ndarray:
    """About `size` indices, ascending: random groups of identical images, each group taken whole."""
    _, group = np.unique(images.reshape(len(images), -1), axis=0, return_inverse=True)
    order = np.random.default_rng(seed).permutation(group.max() + 1)
    taken = np.cumsum(np.bincount(group)[order]) <= size
    return np.flatnonzero(np.isin(group, order[taken]))


def main() -> None:
    """Read the raw sheet, sample it, and write one Parquet file."""
    images = sprite(RAW / "t10k.webp")
    labels = np.load(RAW / "labels.npz")
    chosen = sample(images, SIZE, SEED)
    table = pa.table(
        {
            "image": pa.array(
                [{"bytes": png(images[i]), "path": f"t10k/{i:05d}.png"} for i in chosen],
                pa.struct({"bytes": pa.binary(), "path": pa.string()}),
            ),
            "label": pa.array(labels["names"][labels["y"][chosen]].tolist(), pa.string()),
        }
    ).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": FEATURES}})})
    pq.write_table(table, OUT, compression="zstd", compression_level=19)
    print(f"{OUT}: {len(table)} images, {OUT.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
