"""erase: the bytes of forgotten examples leave the child's folder, and the folder is searched for them.

`forget` changes a model; its child may still lean on its parent for inputs, hold the parent's weights as its first checkpoint, and
carry answers that name an example. `erase` gives the child a corpus of its own without the rows, removes weights that were made with
them, takes ids out of answers, and rewrites every table, so that no old version stays on the disk. Which ids were forgotten is known
by their salted hashes alone.

Where ancestors are at hand, all files are then searched for what only the forgotten rows had (`imprint.forgetting.leftovers`); what is
found, and what was looked at, is written in the manifest. Outside the child's folder nothing is
touched: the parent, its corpus and the source hold the examples as before, and are yours to delete.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from imprint.errors import ImprintError, RunError
from imprint.forgetting.child import scrubbed
from imprint.forgetting.leftovers import search, tables
from imprint.forgetting.lineage import check_child, origin_of, parent_of
from imprint.forgetting.names import ERASED, Names, telling
from imprint.forgetting.request import holds
from imprint.recording.files import read_json, remove, replacing, write_json
from imprint.recording.fit import update_manifest
from imprint.recording.lock import writing
from imprint.recording.run import Run, load

if TYPE_CHECKING:
    from imprint.corpus import Corpus

# Columns of tables whose values are ids.
KEYS = ("id", "related", "query")
# Rows of a table that are rewritten at a time.
ROWS = 16384
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
    check_child(run, "so there is nothing to erase")
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
        for table in (one for one in tables(path) if not _apart(one, path)):
            if _rewritten(table, forgotten, named if "answers" in table.parts else None):
                done.append(f"took rows out of {table.relative_to(path)}")
        for file in sorted(path.rglob("*.json")):
            if file.name not in OWN and not _apart(file, path) and _redacted(file, forgotten, named):
                done.append(f"took ids out of {file.relative_to(path)}")
        erased = {"when": datetime.now(UTC).isoformat(timespec="seconds"), "did": done, **searched(run)}
        before = run.manifest.get("erasures", [])
        update_manifest(path, erased=erased, erasures=[*before, erased])
    return load(path, model=None if isinstance(run.learner.model, str) else run.learner.model)


def remembered(run: Run) -> Callable[[list[str]], list[bool]]:
    """Tells of ids whether they were forgotten on the way to this run."""
    requests = [one["request"] for one in _requests(run)]

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


def _apart(file: Path, path: Path) -> bool:
    """Whether a file is of the child's corpus or encoder: made without the rows, or not ours to change. A category that reads like a
    forgotten id is none."""
    return file.relative_to(path).parts[0] in ("corpus", "encoder")


def _named(run: Run, forgotten: Callable[[list[str]], list[bool]]) -> Names:
    """Finds forgotten ids within sentences, if they are telling; only ancestors know them, so that none are known where none is at hand."""
    known = [one.ids.to_list() for one in (origin_of(run), parent_of(run)) if one is not None]
    ids = list(dict.fromkeys(one for several in known for one in several))
    return Names(one for one, gone in zip(ids, forgotten(ids), strict=True) if gone and telling(one))


def _rewritten(path: Path, forgotten: Callable[[list[str]], list[bool]], named: Names | None) -> bool:
    """Take rows that are of a forgotten id out of a table, and every old version off the disk; whether there were such rows.

    Args:
        path: The table.
        forgotten: Tells forgotten ids.
        named: Finds them within its sentences, which then lose them; None leaves sentences alone.
    """
    import lance

    table = lance.dataset(str(path))
    columns = [field.name for field in table.schema if str(field.type) in ("string", "large_string")]
    keys = [name for name in columns if name in KEYS]

    def without(batch: pa.RecordBatch) -> pa.RecordBatch:
        kept = np.ones(len(batch), bool)
        for column in keys:
            values = batch.column(column).to_pylist()
            different = list({one for one in values if one is not None})
            gone = {one for one, known in zip(different, forgotten(different), strict=True) if known}
            if gone:
                kept &= np.fromiter((one not in gone for one in values), bool, len(values))
        left = batch if kept.all() else batch.filter(pa.array(kept))
        for column in columns if named else ():
            place = left.schema.get_field_index(column)
            values = left.column(place).to_pylist()
            said = [None if one is None else named.sub(one) for one in values]  # type: ignore[union-attr]
            if said != values:
                left = left.set_column(place, left.schema.field(place), pa.array(said, left.schema.field(place).type))
        return left

    batches = table.to_batches(batch_size=ROWS) if columns else ()
    changed = any(not without(batch).equals(batch) for batch in batches)
    if changed:
        with replacing(path) as temporary:
            left = (without(batch) for batch in table.to_batches(batch_size=ROWS))
            lance.write_dataset(pa.RecordBatchReader.from_batches(table.schema, left), str(temporary))
    elif len(table.versions()) > 1:
        table.optimize.compact_files()
        table.cleanup_old_versions(older_than=timedelta(0))
    return changed


def _redacted(path: Path, forgotten: Callable[[list[str]], list[bool]], named: Names) -> bool:
    """Put `(erased)` for each forgotten id in a JSON file; whether there was one."""
    try:
        value = read_json(path)
    except RunError:  # not ours, and no JSON: the search looks at its bytes
        return False
    texts = [one for one in dict.fromkeys(_texts(value)) if telling(one)]
    clean = {text: ERASED for text, known in zip(texts, forgotten(texts), strict=True) if known} if texts else {}
    if named:
        clean |= {text: said for text in texts if (said := named.sub(text)) != text}
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


def searched(run: Run) -> dict[str, Any]:
    """What a search of a child's folder finds of all that was forgotten on the way to it, as its manifest says it.

    The values of the rows are needed for it, and so the parent and the first ancestor, as far as they are at hand.
    """
    forgotten = remembered(run)
    sources: list[tuple[Run, Corpus, np.ndarray]] = []
    for one in dict.fromkeys(one for one in (origin_of(run), parent_of(run)) if one is not None and one is not run):
        with suppress(ImprintError):
            rows = one.rows()[np.flatnonzero(forgotten(one.ids.to_list()))]
            if not any(len(rows) <= len(others) and one.path == before.path for before, _, others in sources):
                sources.append((one, one.corpus, rows))
    if not sources:
        return {"searched": None, "found": [], "note": "Not searched: the parent or its corpus is not at hand."}
    asked = sum(one["count"] for one in _requests(run))
    done = search(run.path, sources)
    note = {}
    if done.rows < asked:
        note = {
            "note": f"Of {asked:,} rows that were forgotten in all, the values of {done.rows:,} are at hand, and were looked for."
        }
    about = {name: getattr(done, name) for name in ("rows", "values", "files", "bytes", "seconds", "unread")}
    return {"searched": about, "found": done.found, **note}


def _requests(run: Run) -> list[dict[str, Any]]:
    return [*run.manifest.get("lineage", []), run.manifest["forgot"]]


__all__ = ["erase", "remembered", "searched"]
