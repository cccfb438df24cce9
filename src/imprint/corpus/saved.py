"""Corpora on disk: `corpus.json`, `inputs.lance`, `roles.lance` and `set_aside.lance` in one folder. Nothing is pickled."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from imprint.corpus.corpus import Corpus, as_splits
from imprint.corpus.edits import Edit
from imprint.corpus.roles import Roles
from imprint.corpus.store import FORMAT, Store, commit, size_of, to_stored, write_json, write_lance, writing
from imprint.errors import SourceError

# Bytes and rows of the pieces in which inputs are copied.
PIECE_BYTES, PIECE_ROWS = 32 << 20, 16384


def save(corpus: Corpus, path: Path) -> Path:
    """Write a version with its inputs as a folder of its own; see `Corpus.save`."""
    final = path.expanduser().resolve()
    free = not final.exists() or (final.is_dir() and not any(final.iterdir()))
    if not free and not (final / "corpus.json").is_file():
        raise SourceError(f"{final} exists and is not a saved corpus.", "Give another path, or delete it.")
    columns = list(corpus.roles.inputs)
    columns += [
        f"{name}.{side}" for name, kind in corpus.kinds.items() if kind == "image" for side in ("width", "height")
    ]
    some = corpus.read(corpus.rows()[:8], columns)
    size = max(1, min(PIECE_ROWS, PIECE_BYTES * len(some) // max(int(some.estimated_size()), 1)))

    def pieces() -> Iterator[pa.RecordBatch]:
        for _, frame in corpus.batches(columns=columns, size=size):
            yield from to_stored(frame).to_batches()

    with writing(final, sum(size_of(store.folder) for store in corpus.stores), "the corpus") as temporary:
        write_lance(pieces(), to_stored(some).schema, temporary / "inputs.lance")
        describe(corpus, temporary, files={})
        commit(temporary, final, replace=True)
    return final


def describe(corpus: Corpus, folder: Path, files: Mapping[str, Path]) -> None:
    """Write corpus.json, roles.lance and set_aside.lance; the inputs are there already."""
    columns = {
        "id": corpus.ids,
        "position": corpus.positions,
        "target": corpus.target,
        "split": corpus.split_codes,
        "content": pl.Series(corpus.content),
    }
    if corpus.weights is not None:
        columns["weight"] = pl.Series(corpus.weights)
    if corpus.groups is not None:
        columns["group"] = corpus.groups
    for name, table in (("roles", pl.DataFrame(columns)), ("set_aside", corpus.set_aside)):
        pieces = (piece for frame in table.iter_slices(1 << 15) for piece in _plain(frame).to_batches())
        write_lance(pieces, _plain(table.clear()).schema, folder / f"{name}.lance", cache=4 << 20)
    shapes: dict[str, list[int]] = {}
    for store in corpus.stores:
        shapes |= {name: list(shape) for name, shape in store.shapes.items()}
    spec = {
        "format": FORMAT,
        "fingerprint": corpus.fingerprint,
        "rows": len(corpus),
        "roles": corpus.roles.spec(),
        "kinds": corpus.kinds,
        "modality": corpus.modality,
        "shape": corpus.shape,
        "shapes": shapes,
        "files": {name: str(root) for name, root in files.items()},
        "splits": corpus.splits,
        "parent": corpus.parent,
        "edits": [edit.spec() for edit in corpus.edits],
        "notes": list(corpus.notes),
    }
    write_json(spec, folder / "corpus.json")


def load(path: Path) -> Corpus:
    """Read a saved corpus without its inputs; see `Corpus.load`."""
    folder = path.expanduser().resolve()
    try:
        spec = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))
        if spec["format"] != FORMAT:
            raise SourceError(
                f"{folder} was saved in format {spec['format']}, this version reads {FORMAT}.",
                "Open the original source again.",
            )
        corpus = _from(spec, folder)
    except FileNotFoundError as error:
        raise SourceError(
            f"{folder} is not a saved corpus (no {Path(error.filename or 'corpus.json').name}).",
            "Give the folder that Corpus.save wrote.",
        ) from error
    except (ValueError, OSError, LookupError, TypeError, AttributeError, pl.exceptions.PolarsError) as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise SourceError(f"The saved corpus {folder} is damaged: {why}.", "Save or open it again.") from error
    return corpus


def _from(spec: dict, folder: Path) -> Corpus:
    frame, aside = _table(folder / "roles.lance"), _table(folder / "set_aside.lance")
    if len(frame) != spec["rows"]:
        raise ValueError(f"{len(frame)} rows instead of {spec['rows']}")
    roles = Roles(**{**spec["roles"], "inputs": tuple(spec["roles"]["inputs"])})
    shapes = {name: tuple(shape) for name, shape in spec["shapes"].items()}
    corpus = Corpus(
        roles=roles,
        kinds=spec["kinds"],
        modality=spec["modality"],
        shape=tuple(spec["shape"]) if spec["shape"] is not None else None,
        parent=spec["parent"],
        edits=tuple(Edit.from_spec(one) for one in spec["edits"]),
        set_aside=aside,
        notes=tuple(spec["notes"]),
        ids=frame["id"],
        positions=frame["position"],
        target=frame["target"].alias(roles.target or "target"),
        split_codes=as_splits(frame["split"]),
        weights=frame["weight"].to_numpy().astype(np.float32) if "weight" in frame.columns else None,
        groups=frame["group"].alias(roles.group or "group") if "group" in frame.columns else None,
        content=frame["content"].to_numpy(),
        stores=(Store(folder, shapes, {name: Path(root) for name, root in spec["files"].items()}),),
        index=np.arange(len(frame), dtype=np.int64),
    )
    corpus.__dict__["fingerprint"] = spec["fingerprint"]
    return corpus


def _table(path: Path) -> pl.DataFrame:
    import lance

    frame = pl.from_arrow(lance.dataset(str(path)).to_table())
    assert isinstance(frame, pl.DataFrame)
    return frame


def _plain(frame: pl.DataFrame) -> pa.Table:
    """Arrow columns, split names as text."""
    return frame.with_columns(pl.col(pl.Enum).cast(pl.String)).to_arrow()
