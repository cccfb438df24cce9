"""The entrance: a source goes in, a stored and fingerprinted corpus comes out, in one pass and bounded memory."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from imprint.corpus import splitting
from imprint.corpus.assembly import assemble
from imprint.corpus.corpus import Corpus
from imprint.corpus.hashing import digest
from imprint.corpus.plan import settle
from imprint.corpus.reading import Progress, Reading
from imprint.corpus.roles import Asked
from imprint.corpus.saved import describe
from imprint.corpus.sources import Source, Widened, source_of
from imprint.corpus.store import FORMAT, Store, commit, home, release_memory, write_json, write_lance, writing
from imprint.errors import ColumnError, SourceError, TargetError, nearest

TASKS = ("auto", "classification", "multilabel", "regression")


def open(
    source: Any,
    *,
    target: str | Sequence[str] | None = None,
    inputs: str | Sequence[str] | None = None,
    id: str | None = None,
    split: str | Mapping[str, float] | None = None,
    group: str | None = None,
    weight: str | None = None,
    task: str = "auto",
    store: str | PathLike[str] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Corpus:
    """Open a training set: give its examples ids, store their inputs, split them, and say what was inferred.

    Args:
        source: A path (CSV, Parquet, Arrow, JSON lines, .npz, a folder of images, a Lance data set, a saved corpus), a Polars or
            pandas frame, an Arrow table, a pair (X, y), a dictionary of columns, a Hugging Face or PyTorch map-style data set.
        target: The column to predict; inferred from names like "label". Several 0/1 columns make a multilabel target.
        inputs: The columns to predict from; all others by default.
        id: A column of unique keys. Without one, ids are paths (image folders) or content hashes.
        split: A column of split names, or fractions such as `{"train": 0.8, "test": 0.2}` (the default).
        group: A column of groups that are not to be cut by a split.
        weight: A column of weights.
        task: "auto", "classification", "multilabel" or "regression"; classification is split class by class.
        store: Folder for stores; by default `$IMPRINT_HOME`, else `~/.cache/imprint`.
        seed: Seed of the split.
        progress: Called with ("open", rows read, rows in all or so far).

    Returns:
        The corpus; its `notes` say what was inferred and `set_aside` which rows could not be used.

    Raises:
        SourceError: The source cannot be read.
        ColumnError: A column is missing or cannot play its role.
        TargetError: The target has no values, or only one.
        IdError: The id column repeats.
        ResourceError: The disk is full.

    >>> import tempfile
    >>> corpus = open({"text": [f"film {k} was good" for k in range(10)], "label": ["pos", "neg"] * 5}, store=tempfile.mkdtemp())
    >>> len(corpus), corpus.modality, corpus.splits
    (10, 'text', {'train': 8, 'test': 2})
    """
    fractions = splitting.check(split) if isinstance(split, Mapping) else None
    asked = Asked.of(
        target=target,
        inputs=inputs,
        id=id,
        split=None if fractions else split,
        group=group,
        weight=weight,
        resplit=fractions is not None,
    )
    if task not in TASKS:
        raise TargetError(f"Unknown task '{task}'.", nearest(str(task), TASKS))
    if isinstance(source, (str, PathLike)) and _is_saved(Path(source)):
        if asked != Asked() or fractions:
            raise ColumnError(
                f"{source} is a saved corpus: its roles and splits are settled.",
                "Open it without options, or open the original source.",
            )
        return Corpus.load(Path(source))
    root = home(store)
    given = source_of(source)
    memo = None
    if given.identity is not None:
        key = digest(json.dumps([FORMAT, given.identity, asked.__dict__, fractions, task, seed], default=str))
        memo = root / "sources" / f"{key:016x}.json"
        hit = _remembered(memo, root)
        if hit is not None:
            return hit
    corpus = _ingest_or_say(given, asked, root, fractions=fractions, task=task, seed=seed, progress=progress)
    if memo is not None:
        with writing(memo, 1 << 20, given.name):
            write_json({"store": corpus.stores[0].folder.name, "source": given.name}, memo)
    return corpus


def ingest_more(source: Any, parent: Corpus) -> Corpus:
    """Read a source whose examples are to be appended to `parent`: same columns and types, ids that are free there."""
    given = source_of(source)
    columns = given.sample().columns
    roles = parent.roles
    target = (roles.target or "",) if roles.target in columns else tuple((roles.target or "").split("+"))
    asked = Asked(
        inputs=roles.inputs,
        target=target,
        id=roles.id,
        group=roles.group,
        split=roles.split if roles.split in columns else None,
        weight=roles.weight if roles.weight in columns else None,
    )
    beside = parent.stores[0].folder.parent
    root = beside.parent if beside.name == "corpora" else home(None)  # a saved corpus lies where the user put it
    return _ingest_or_say(given, asked, root, parent=parent)


def _ingest_or_say(source: Source, *arguments: Any, **options: Any) -> Corpus:
    """`ingest`; what Polars and Arrow still raise about the data comes out as an error that names the source."""
    try:
        return ingest(source, *arguments, **options)
    except (pl.exceptions.PolarsError, pa.ArrowException) as error:
        raise SourceError(
            f"{source.name} cannot be read: {str(error).splitlines()[0].rstrip('.')}.",
            "Check the rows, quotes and types of the source, or save it as Parquet.",
        ) from error


def ingest(
    source: Source,
    asked: Asked,
    root: Path,
    *,
    fractions: Mapping[str, float] | None = None,
    task: str = "auto",
    seed: int = 0,
    progress: Progress | None = None,
    parent: Corpus | None = None,
) -> Corpus:
    """Read a source into a store under `root`. With a `parent`, in its types, for appending."""
    asked = _merged(asked, source.asked)
    for attempt in range(2):
        plan = settle(source, asked, parent)
        corpora = root / "corpora"
        with writing(corpora / "corpus", source.size, source.name) as temporary:
            reading = Reading(source, plan, progress)
            try:
                write_lance(reading.batches(), plan.schema, temporary / "inputs.lance")
            except Widened:
                if attempt:
                    raise
                source.restart()
                continue
            release_memory()
            corpus = assemble(reading, temporary, fractions=fractions, task=task, seed=seed, parent=parent)
            release_memory()
            describe(corpus, temporary, files=plan.files)
            name = (
                f"{corpus.fingerprint}-{digest((temporary / 'corpus.json').read_bytes() + _aside_bytes(corpus)):016x}"
            )
            commit(temporary, corpora / name)
            final = Store(corpora / name, plan.shapes, plan.files)
            kept = replace(corpus, stores=(final,))
            kept.__dict__["fingerprint"] = corpus.fingerprint
            return kept
    raise AssertionError("a source widens once")


def _merged(asked: Asked, given: Asked) -> Asked:
    """The user's word before the source's."""
    return Asked(
        **{
            role: getattr(asked, role) if getattr(asked, role) is not None else getattr(given, role)
            for role in Asked.__dataclass_fields__
        }
    )


def _remembered(memo: Path, root: Path) -> Corpus | None:
    """The corpus that an unchanged source was read into, if its store is still whole; a damaged store is cleared away."""
    try:
        folder = root / "corpora" / json.loads(memo.read_text(encoding="utf-8"))["store"]
    except (ValueError, KeyError, OSError):
        return None
    try:
        corpus = Corpus.load(folder)
        len(corpus.stores[0])
    except SourceError:
        shutil.rmtree(folder, ignore_errors=True)
        return None
    return corpus


def _is_saved(path: Path) -> bool:
    try:
        return (path.expanduser() / "corpus.json").is_file()
    except (OSError, ValueError, RuntimeError):  # no possible path; `source_of` says what is wrong with it
        return False


def _aside_bytes(corpus: Corpus) -> bytes:
    return corpus.set_aside.write_csv().encode()
