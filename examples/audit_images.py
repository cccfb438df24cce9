"""Audit a folder of images with one sub-folder per class: python examples/audit_images.py [FOLDER]

Without FOLDER, the bundled letters are written as such a folder first. Ids are the paths relative to the folder, so that every
finding leads to a file.
"""

import sys
import tempfile
from pathlib import Path

import polars as pl

import imprint

DATA = Path(__file__).parent / "data"


def letters(folder: Path) -> Path:
    """The bundled letters as a folder of images."""
    for row in pl.read_parquet(DATA / "notmnist.parquet").iter_rows(named=True):
        file = folder / row["label"] / Path(row["image"]["path"]).name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(row["image"]["bytes"])
    return folder


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else letters(Path(tempfile.mkdtemp()) / "letters")
    result = imprint.audit(folder, out="out/images", seeds=2)
    print(result.findings.frame().group_by("kind", "suggestion").len().sort("kind", "suggestion"))
    print(result.verdict)
    print(f"Open {result.report}")
