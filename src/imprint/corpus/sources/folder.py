"""A folder of images: one folder per class, or a metadata.csv|jsonl with a file_name column. The files stay where they are.

First-level folders called train, valid(ation) or test are splits, with the class folders or the metadata inside them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import polars as pl

from imprint.corpus.images import SUFFIXES
from imprint.corpus.roles import SPLIT_VALUES, Asked
from imprint.corpus.sources.base import SAMPLE_ROWS, Batch, Source, Widened
from imprint.corpus.sources.delimited import Delimited
from imprint.corpus.sources.jsonlines import JsonLines
from imprint.errors import ColumnError, SourceError

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
IMAGE = "image"


class ImageFolder(Source):
    """Columns `image` (path under the folder), `label` or the metadata's columns, and `split` where there are split folders."""

    position_dtype = pl.String

    def __init__(self, root: Path, files: list[tuple[str, int, int]]) -> None:
        super().__init__()
        self.root, self.name = root.resolve(), str(root)
        images = [one for one in files if one[0].lower().endswith(SUFFIXES)]
        tables = [one for one in files if one[0].rsplit("/", 1)[-1] in METADATA]
        self.total, self.size = len(images), sum(size for _, size, _ in images)
        self.identity = ["images", str(self.root), sorted(files)]
        paths = sorted(path for path, _, _ in images)
        firsts = {path.split("/", 1)[0] for path in paths}
        split_folders = all("/" in path for path in paths) and all(first.lower() in SPLIT_VALUES for first in firsts)
        if split_folders:
            self.notes.append(f"split: folders {', '.join(sorted(firsts))}")
        if tables:
            self.table, asked = self._described(paths, [path for path, _, _ in tables])
        else:
            self.table, asked = self._by_class(paths, split_folders)
        split = None
        if split_folders and "split" not in self.table.columns:
            folder = pl.col(IMAGE).str.split_exact("/", 1).struct.field("field_0")
            self.table, split = self.table.with_columns(folder.alias("split")), "split"
        self.asked = Asked(inputs=(IMAGE,), target=asked, split=split)
        left = len(files) - len(images) - len(tables)
        if left:
            self.notes.append(f"{left:,} file{'s are' if left > 1 else ' is'} no image and left out")
        self.total = len(self.table)

    def sample(self) -> pl.DataFrame:
        return self.table.head(SAMPLE_ROWS)

    def batches(self) -> Iterator[Batch]:
        for frame in self.table.iter_slices(2048):
            yield Batch(frame, frame[IMAGE].alias("position"))

    def _by_class(self, paths: list[str], split_folders: bool) -> tuple[pl.DataFrame, tuple[str, ...]]:
        depth = 1 if split_folders else 0
        flat = [path for path in paths if path.count("/") <= depth]
        if flat:
            raise SourceError(
                f"{self.name}: image {flat[0]} is in no class folder and there is no metadata.csv ({len(flat):,} of {len(paths):,}).",
                "Put each image into a folder named after its class, or add a metadata.csv with the columns file_name and label.",
            )
        labels = pl.Series("label", paths).str.split("/").list.get(depth)
        self.notes.append("target: the name of each image's folder")
        return pl.DataFrame({IMAGE: paths, "label": labels}), ("label",)

    def _described(self, paths: list[str], tables: list[str]) -> tuple[pl.DataFrame, tuple[str, ...] | None]:
        """Rows of the metadata files, as far as their images exist; the target is inferred from their columns as usual."""
        frames = [self._metadata(table) for table in sorted(tables)]
        if len({tuple(frame.columns) for frame in frames}) > 1:
            raise SourceError(
                f"{self.name}: the files {', '.join(sorted(tables))} have different columns.",
                "Give them the same columns.",
            )
        table = pl.concat(frames, how="vertical_relaxed")
        repeated = table.filter(table[IMAGE].is_duplicated())
        if len(repeated):
            raise SourceError(
                f"{self.name}: image {repeated[IMAGE][0]} is described more than once in {tables[0]}.",
                "Keep one row per image.",
            )
        known = pl.Series(IMAGE, paths, dtype=pl.String)
        there = table[IMAGE].is_in(known.implode())
        self._absent = table.filter(~there)[IMAGE]
        table = table.filter(there)
        if not len(table):
            raise SourceError(
                f"{self.name}: none of the files that {tables[0]} names exists.",
                "Give file_name relative to the metadata file.",
            )
        if len(known) > len(table):
            self.notes.append(f"{len(known) - len(table):,} images are not in the metadata and left out")
        self._note_absent()
        return table, None

    _absent: pl.Series | None = None

    def _note_absent(self) -> None:
        if self._absent is not None:
            self.aside.add(self._absent, "named in the metadata, but there is no such file")

    def restart(self) -> None:
        super().restart()
        self._note_absent()

    def _metadata(self, relative: str) -> pl.DataFrame:
        assert self.root is not None
        path = self.root / relative
        if path.suffix == ".parquet":
            frame = pl.read_parquet(path)
        else:
            table: Source = Delimited(path) if path.suffix == ".csv" else JsonLines(path)
            try:
                frame = _all(table)
            except Widened:
                table.restart()
                frame = _all(table)
        if "file_name" not in frame.columns:
            raise ColumnError(
                f"{path} has no column 'file_name' (columns: {', '.join(frame.columns)}).",
                "Name each image's file in a column file_name.",
            )
        if IMAGE in frame.columns:
            raise ColumnError(f"{path} has a column '{IMAGE}', the name that the images themselves get.", "Rename it.")
        folder = relative.rpartition("/")[0]
        name = pl.col("file_name").cast(pl.String).str.replace_all("\\", "/", literal=True).str.strip_prefix("./")
        return frame.select(
            (pl.lit(f"{folder}/" if folder else "") + name).alias(IMAGE), pl.exclude("file_name")
        ).drop_nulls(IMAGE)


def _all(source: Source) -> pl.DataFrame:
    source.sample()
    return pl.concat([batch.frame for batch in source.batches()])


def list_files(root: Path) -> list[tuple[str, int, int]]:
    """(relative posix path, size, modification time in ns) of every file under a folder, hidden ones left out."""
    files: list[tuple[str, int, int]] = []
    folders = [(root, "")]
    while folders:
        folder, prefix = folders.pop()
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith((".", "__MACOSX")):
                    continue
                if entry.is_dir():
                    folders.append((Path(entry.path), f"{prefix}{entry.name}/"))
                elif entry.is_file():
                    stat = entry.stat()
                    files.append((f"{prefix}{entry.name}", stat.st_size, stat.st_mtime_ns))
    return files
