"""erase: the bytes of forgotten examples leave the child's folder, and the folder is searched for them.

`forget` changes a model; its child may still lean on its parent for inputs, hold the parent's weights as its first checkpoint, and
carry answers that name an example. `erase` gives the child a corpus of its own without the rows, removes weights that were made with
them, takes ids out of answers, and rewrites every table, so that no old version stays on the disk. Which ids were forgotten is known
by their salted hashes alone.

Where the parent is at hand, all files are then searched for the ids, texts, contents and numbers of the forgotten rows, in their bytes
and in the decoded tables, whose encoding hides bytes; what is found is written in the manifest. Outside the child's folder nothing is
touched: the parent, its corpus and the source hold the examples as before, and are yours to delete.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import torch

from imprint.errors import ImprintError, RunError
from imprint.forgetting.child import scrubbed
from imprint.forgetting.request import holds
from imprint.recording.files import read_json, remove, replacing, write_json
from imprint.recording.fit import update_manifest
from imprint.recording.lock import writing
from imprint.recording.run import Run, load

if TYPE_CHECKING:
    from imprint.corpus import Corpus

ERASED = "(erased)"
# A value is searched for if it is at least as long; shorter ones occur everywhere by chance.
LEAST_BYTES = 6
# Forgotten rows that are searched for, and bytes of a file that are searched at a time.
MOST_ROWS, PIECE = 2000, 2**26
# Where hashes of ids stand, which are no ids.
OWN = ("manifest.json", "request.json")


def erase(run: Run) -> Run:
    """Take the bytes of forgotten examples out of the folder of a child.

    Args:
        run: What `imprint.forget` returned, or what is left of it.

    Returns:
        The child, opened again; `manifest["erased"]` says what was rewritten, and what a search of all files found.

    Raises:
        RunError: The run is not the child of a forgetting, or is not complete.
        RunLocked: Another process is writing it.
    """
    if "forgot" not in run.manifest or run.status != "complete":
        raise RunError(
            f"The run {run.path} has forgotten nothing, so there is nothing to erase."
            if run.status == "complete"
            else f"The run {run.path} is {run.status}.",
            "Make a child first: imprint.forget(run, ids=...).",
        )
    path = run.path
    forgotten = remembered(run)
    with writing(path):
        done = [f"removed {one.relative_to(path)}" for one in _leftovers(path)]
        for one in _leftovers(path):
            remove(one)
        done += _own_corpus(run)
        if not run.manifest["forgot"]["exact"]:
            done += _parents_weights(run)
        named = _named(run, forgotten)
        for table in _tables(path):
            if _rewritten(table, forgotten, named if "answers" in table.parts else None):
                done.append(f"took rows out of {table.relative_to(path)}")
        for file in sorted(path.rglob("*.json")):
            if file.name not in OWN and _redacted(file, forgotten, named):
                done.append(f"took ids out of {file.relative_to(path)}")
        searched = _searched(run, forgotten)
        update_manifest(path, erased={"when": datetime.now(UTC).isoformat(timespec="seconds"), "did": done, **searched})
    return load(path, model=None if isinstance(run.learner.model, str) else run.learner.model)


def remembered(run: Run) -> Callable[[list[str]], list[bool]]:
    """Tells of ids whether they were forgotten on the way to this run."""
    requests = [one["request"] for one in (*run.manifest.get("lineage", []), run.manifest["forgot"])]

    def known(ids: list[str]) -> list[bool]:
        each = [holds(one, ids) for one in requests]
        return [any(column) for column in zip(*each, strict=True)]

    return known


# ----------------------------------------------------------------------------------------------------------------- rewriting


def _leftovers(path: Path) -> list[Path]:
    """What a killed writer left."""
    return [one for one in (path / "scratch", *path.rglob(".*.tmp"), *path.rglob("*.tmp")) if one.exists()]


def _own_corpus(run: Run) -> list[str]:
    """A copy of the corpus less the rows, in the child's folder; nothing if it has one."""
    if not run.manifest["corpus"].get("part"):
        return []
    folder = scrubbed(run.corpus).save(run.path / "corpus")
    about = {**run.manifest["corpus"], "folder": str(folder), "beside": "corpus", "part": False}
    update_manifest(run.path, corpus=about)
    return ["copied the corpus without the rows to corpus"]


def _parents_weights(run: Run) -> list[str]:
    """Remove checkpoints from before the forgetting."""
    done = []
    for one in run.checkpoints.all():
        if not one.epoch:
            for file in (one.path("json"), one.path("safetensors"), one.path("state.safetensors")):
                remove(file)
            done.append(f"removed the parent's weights {one.name}")
    if done:
        policy = {**run.manifest["checkpoints"], "rule": "last: what the method gave"}
        update_manifest(run.path, checkpoints={**policy, "kept": [one.name for one in run.checkpoints.all()]})
    return done


def _named(run: Run, forgotten: Callable[[list[str]], list[bool]]) -> re.Pattern[str] | None:
    """Finds forgotten ids within sentences; None where the parent, which alone knows them, is not at hand."""
    parent = parent_of(run)
    ids = [] if parent is None else parent.ids.to_list()
    gone = [one for one, known in zip(ids, forgotten(ids), strict=True) if known and len(one) > 1]
    return re.compile(rf"(?<![\w-])(?:{'|'.join(map(re.escape, gone))})(?![\w-])") if gone else None


def _rewritten(path: Path, forgotten: Callable[[list[str]], list[bool]], named: re.Pattern[str] | None) -> bool:
    """Take rows that are of a forgotten id out of a table, and every old version off the disk; whether there were such rows.

    Args:
        path: The table.
        forgotten: Tells forgotten ids.
        named: Finds them within its sentences, which then lose them; None leaves sentences alone.
    """
    import lance

    table = lance.dataset(str(path))
    columns = [field.name for field in table.schema if str(field.type) in ("string", "large_string")]
    changed = False
    if columns:
        whole = pl.from_arrow(table.to_table())
        assert isinstance(whole, pl.DataFrame)
        hit = np.zeros(len(whole), bool)
        for column in columns:
            values = whole[column].unique().drop_nulls().to_list()
            gone = [value for value, known in zip(values, forgotten(values), strict=True) if known]
            hit |= whole[column].is_in(gone).fill_null(False).to_numpy()
        left = whole.filter(pl.Series(~hit))
        if named is not None:
            left = left.with_columns(
                pl.col(column).map_elements(lambda text: named.sub(ERASED, text), pl.String) for column in columns
            )
        changed = not left.equals(whole)
        if changed:
            with replacing(path) as temporary:
                lance.write_dataset(left.to_arrow(), str(temporary))
    if not changed and len(table.versions()) > 1:
        table.optimize.compact_files()
        table.cleanup_old_versions(older_than=timedelta(0))
    return changed


def _redacted(path: Path, forgotten: Callable[[list[str]], list[bool]], named: re.Pattern[str] | None) -> bool:
    """Put `(erased)` for each forgotten id in a JSON file; whether there was one."""
    value = read_json(path)
    texts = list(dict.fromkeys(_texts(value)))
    clean = {text: ERASED for text, known in zip(texts, forgotten(texts), strict=True) if known} if texts else {}
    if named is not None:
        clean |= {text: said for text in texts if (said := named.sub(ERASED, text)) != text}
    if clean:
        write_json(path, _without(value, clean))
    return bool(clean)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, one in value.items():
            yield name
            yield from _texts(one)
    elif isinstance(value, list):
        for one in value:
            yield from _texts(one)


def _without(value: Any, clean: dict[str, str]) -> Any:
    if isinstance(value, str):
        return clean.get(value, value)
    if isinstance(value, dict):
        return {clean.get(name, name): _without(one, clean) for name, one in value.items()}
    return [_without(one, clean) for one in value] if isinstance(value, list) else value


# ----------------------------------------------------------------------------------------------------------------- searching


def _searched(run: Run, forgotten: Callable[[list[str]], list[bool]]) -> dict[str, Any]:
    """What a search of the folder finds of the forgotten rows; it needs their values, and so the parent."""
    parent = parent_of(run)
    try:
        corpus = None if parent is None else parent.corpus
    except ImprintError:
        corpus = None
    if parent is None or corpus is None:
        return {"searched": None, "found": [], "note": "Not searched: the parent or its corpus is not at hand."}
    ids = parent.ids.to_list()
    rows = parent.rows()[np.flatnonzero(forgotten(ids))][:MOST_ROWS]
    values = needles(parent, corpus, rows)
    found = traces(run.path, values)
    return {"searched": {"rows": len(rows), "values": len(values), "files": len(_files(run.path))}, "found": found}


def parent_of(run: Run) -> Run | None:
    """The run that this one was made from, if it is where the manifest says."""
    about = run.manifest["parent"]
    for folder in (Path(about["path"]), run.path / about.get("beside", "")):
        if (folder / "manifest.json").exists() and folder.resolve() != run.path.resolve():
            try:
                return load(folder)
            except ImprintError:
                continue
    return None


def needles(run: Run, corpus: Corpus, rows: np.ndarray) -> dict[bytes, str]:
    """Bytes that only these rows have, and what they are: ids, texts and files, numbers, encoded inputs.

    Args:
        run: The run that was trained on them.
        corpus: Its corpus.
        rows: Which.
    """
    values: dict[bytes, str] = {}
    rest = np.setdiff1d(corpus.rows(), rows)
    mine, others = corpus.read(rows), corpus.read(rest)

    def note(found: bytes, what: str) -> None:
        if len(found) >= LEAST_BYTES:
            values.setdefault(found, what)

    for one in corpus.ids.gather(rows).to_list():
        note(one.encode(), "id")
    for name in mine.columns:
        column, known = mine[name], others[name]
        if column.dtype in (pl.String, pl.Categorical, pl.Enum):
            column, known = column.cast(pl.String), known.cast(pl.String)
        if column.dtype in (pl.String, pl.Binary):
            own = column.filter(~column.is_in(known.unique().implode())).drop_nulls().unique().to_list()
            for value in own:
                note(value if isinstance(value, bytes) else value.encode(), f"value of {name}")
                if isinstance(value, str):
                    note(json.dumps(value)[1:-1].encode(), f"value of {name}")
        elif column.dtype.is_float():
            numbers = column.filter(~column.is_in(known.unique().implode())).drop_nulls().unique().to_numpy()
            for value in numbers.astype(np.float64):
                note(value.tobytes(), f"value of {name}")
                note(repr(float(value)).encode(), f"value of {name}")
        elif isinstance(column.dtype, pl.Array):
            for value in column.drop_nulls().to_numpy():
                if value.min() < value.max():  # a blank picture is nobody's
                    note(value.tobytes(), f"values of {name}")
    if run.encoder is not None and len(rows):
        encoded = run.model().encode(mine)
        for value in encoded if encoded.dtype != torch.int64 else ():
            if value.numel() > 1 and value.unique().numel() > 1:
                note(value.contiguous().numpy().tobytes(), "encoded inputs")
    return values


def traces(folder: Path, values: dict[bytes, str]) -> list[str]:
    """Which files of a folder hold one of these values, in their bytes or in a decoded table: `FILE: what`, each once."""
    import lance

    found: dict[str, None] = {}
    longest = max(map(len, values), default=0)
    for file in _files(folder):
        with file.open("rb") as stream:
            tail = b""
            while piece := stream.read(PIECE):
                window = tail + piece
                for value, what in values.items():
                    if value in window:
                        found[f"{file.relative_to(folder)}: {what}"] = None
                tail = window[-longest:] if longest else b""
    for path in _tables(folder):
        for batch in lance.dataset(str(path)).to_batches():
            frame = pl.from_arrow(batch)
            assert isinstance(frame, pl.DataFrame)
            for name in frame.columns:
                column = frame[name]
                whole = decoded(column)
                for value, what in values.items():
                    if value in whole:
                        found[f"{path.relative_to(folder)}: {what} in column {name}"] = None
    return list(found)


def _files(folder: Path) -> list[Path]:
    return sorted(one for one in folder.rglob("*") if one.is_file())


def decoded(column: pl.Series) -> bytes:
    """A column's values as bytes one after the other: texts and files as they are, numbers as float64."""
    if column.dtype in (pl.String, pl.Binary):
        return b"\0".join(one if isinstance(one, bytes) else one.encode() for one in column.drop_nulls())
    if isinstance(column.dtype, pl.Array):
        return np.ascontiguousarray(column.drop_nulls().to_numpy()).tobytes()
    return column.drop_nulls().cast(pl.Float64).to_numpy().tobytes() if column.dtype.is_float() else b""


def _tables(folder: Path) -> list[Path]:
    return sorted(one.parent for one in folder.rglob("_versions") if one.is_dir())


__all__ = ["erase", "needles", "parent_of", "remembered", "traces"]
