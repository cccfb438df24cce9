"""Which training examples a request speaks of: by ids, by a condition, by classes, or by findings.

A request is kept as salted hashes of its ids, never as the ids: whoever holds an id can see whether it was in the request, and nobody
can read the ids off the record. Ids that can be guessed one by one (numbers, say) can be tried one by one: a hash hides no small secret.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from jaxtyping import Bool, Int64

from imprint.answers import Answer, load_answer
from imprint.errors import ColumnError, IdError, MethodError, TargetError, nearest
from imprint.recording.run import values_of

if TYPE_CHECKING:
    from imprint.recording import Run

# Rows whose columns are read at a time to find those that satisfy a condition.
PIECE = 16384
SALT, DIGEST = 16, 16
SHOWN = 5


def wanted(
    run: Run,
    ids: Sequence[str] | pl.Series | None = None,
    where: pl.Expr | str | None = None,
    classes: Sequence[Any] | str | None = None,
    findings: Answer | pl.DataFrame | str | Path | None = None,
) -> Int64[np.ndarray, " example"]:
    """Places of the examples to forget among the training examples of a run, ascending.

    Args:
        run: The run.
        ids: Their ids.
        where: A Polars expression or SQL text over `id, position, split`, inputs, target and weight.
        classes: Values of the target; of labels, whoever has one of them.
        findings: What `imprint.clean` found, or where it was saved: the training examples that it suggests to drop.

    Raises:
        MethodError: Not exactly one of the four was given.
        IdError: An id is not of a training example; or nothing, or everything, would be forgotten.
        TargetError: There is no such class.
        ColumnError: The condition cannot be evaluated.
    """
    given = {"ids": ids, "where": where, "classes": classes, "findings": findings}
    said = [name for name, value in given.items() if value is not None]
    if len(said) != 1:
        raise MethodError(
            f"{' and '.join(said)} were given." if said else "Nothing says what to forget.",
            "Give exactly one of ids, where, classes and findings.",
        )
    if ids is not None:
        places = by_ids(run, ids)
    elif where is not None:
        places = np.flatnonzero(satisfies(run, where))
    elif classes is not None:
        places = np.flatnonzero(of_classes(run, classes))
    else:
        places = by_findings(run, findings)
    places = np.unique(places)
    if not len(places):
        raise IdError(
            f"No training example is asked to be forgotten: {said[0]} names none.",
            "Look at run.corpus.frame(run.rows()) for what there is.",
        )
    if len(places) == len(run):
        raise IdError(
            f"All {len(run):,} training examples are asked to be forgotten, and nothing would be left to know.",
            "Forget fewer, or delete the run.",
        )
    return places


def by_ids(run: Run, ids: Sequence[str] | pl.Series) -> Int64[np.ndarray, " example"]:
    """Places of these ids."""
    asked = [ids] if isinstance(ids, str) else list(ids)
    strange = [one for one in asked if not isinstance(one, str)]
    if strange:
        raise IdError(
            f"{strange[0]!r} is a {type(strange[0]).__name__}, and ids are text.",
            "Take ids from run.ids; a row number is none.",
        )
    examples = run.examples
    known = pl.DataFrame({"id": examples["id"], "split": examples["split"]})
    found = pl.DataFrame({"id": asked}, schema={"id": pl.String}).join(
        known, on="id", how="left", maintain_order="left"
    )
    unknown = found.filter(pl.col("split").is_null())["id"].to_list()
    if unknown:
        before = gone(run, unknown)
        if all(before):
            raise IdError(
                f"{counted(len(unknown), 'id')} of {len(asked):,} {was(unknown)} forgotten before: {listed(unknown)}.",
                "Leave them out.",
            )
        other = "All of them may be of another corpus" if len(unknown) == len(asked) else "Check the spelling"
        raise IdError(
            f"{counted(len(unknown), 'id')} of {len(asked):,} {'is' if len(unknown) == 1 else 'are'} not in the corpus "
            f"{run.fingerprint} of this run: {listed(unknown)}.",
            f"{other}; the training examples of this run are run.ids.",
        )
    place = pl.DataFrame({"id": run.ids, "place": np.arange(len(run), dtype=np.int64)})
    placed = found.join(place, on="id", how="left", maintain_order="left")
    others = placed.filter(pl.col("place").is_null())
    if len(others):
        where = ", ".join(f"{one['id']!r} ({one['split']})" for one in others.head(SHOWN).iter_rows(named=True))
        raise IdError(
            f"{counted(len(others), 'id')} of {len(asked):,} {'is' if len(others) == 1 else 'are'} of no training example: {where}.",
            "Only training examples left a trace in the model. To take others out of the data: corpus.drop(ids).",
        )
    return placed["place"].to_numpy().astype(np.int64)


def satisfies(run: Run, where: pl.Expr | str) -> Bool[np.ndarray, " example"]:
    """Which training examples satisfy a condition; only the columns that it names are read."""
    corpus, rows = run.corpus, run.rows()
    try:
        condition = pl.sql_expr(where) if isinstance(where, str) else where
    except pl.exceptions.PolarsError as error:
        raise ColumnError(f"{where!r} is no SQL condition: {_first(error)}.", "Write it as in WHERE ... .") from error
    inputs = [name for name in corpus.roles.inputs if name in condition.meta.root_names()]
    found = np.zeros(len(rows), bool)
    for begin in range(0, len(rows), PIECE):
        part = rows[begin : begin + PIECE]
        frame = pl.DataFrame(
            {
                "id": corpus.ids.gather(part),
                "position": corpus.positions.gather(part),
                "split": corpus.split_names.gather(part),
                "weight": np.ones(len(part), np.float32) if corpus.weights is None else corpus.weights[part],
                corpus.target.name: corpus.target.gather(part),
            }
        )
        if inputs:
            frame = frame.with_columns(corpus.read(part, inputs))
        try:
            kept = frame.select(condition.alias("kept"))["kept"]
        except pl.exceptions.ColumnNotFoundError as error:
            quoted = re.search(r'"([^"]+)"', str(error))
            missing = quoted[1] if quoted else str(error).split("\n")[0]
            names = ["id", "position", "split", "weight", corpus.target.name, *corpus.roles.inputs]
            raise ColumnError(
                f"The condition names a column that is not there: '{missing}'.", nearest(missing, names)
            ) from error
        except pl.exceptions.PolarsError as error:
            raise ColumnError(
                f"The condition cannot be evaluated: {_first(error)}.", "Compare like with like."
            ) from error
        if kept.dtype != pl.Boolean or len(kept) != len(part):
            raise ColumnError(
                f"The condition gives {kept.dtype} instead of yes or no for each example.", "Give a comparison."
            )
        found[begin : begin + len(part)] = kept.fill_null(False).to_numpy()
    return found


def of_classes(run: Run, classes: Sequence[Any] | Any) -> Bool[np.ndarray, " example"]:
    """Which training examples are of these classes, or have one of these labels."""
    known = values_of(run.task)
    if not known:
        raise TargetError(
            f"A {run.task.name} has no classes.", "Say which examples with where=, such as where='target > 10'."
        )
    if isinstance(classes, str) or not isinstance(classes, Sequence | pl.Series | np.ndarray | set | frozenset):
        classes = [classes]
    named = {str(value): code for code, value in enumerate(known)}
    codes = []
    for one in classes:
        if str(one) not in named:
            raise TargetError(f"There is no class {one!r} in this run.", nearest(str(one), named))
        codes.append(named[str(one)])
    target = run.target().numpy()
    found = np.asarray(target[:, codes].any(1) if target.ndim == 2 else np.isin(target, codes))
    if not found.any():
        raise IdError(
            f"No training example is of the class {listed([str(one) for one in classes])}.",
            "The class occurs outside the training examples only; there is nothing to forget.",
        )
    return found


def by_findings(run: Run, findings: Any) -> Int64[np.ndarray, " example"]:
    """Training examples that findings suggest to drop."""
    if isinstance(findings, str | Path):
        path = Path(findings)
        if (path / "answer.json").exists():
            findings = load_answer(path)
        elif path.suffix in (".parquet", ".csv", ".jsonl") and path.exists():
            findings = read_table(path)
        elif str(findings) in run.answers():
            findings = run.answer(str(findings))
        else:
            raise MethodError(
                f"No findings at '{findings}'.",
                f"Give a saved answer, a table (.parquet, .csv, .jsonl), or one of this run's: {', '.join(run.answers()) or 'none'}.",
            )
    frame = findings if isinstance(findings, pl.DataFrame) else findings.frame()
    if not {"id", "suggestion"} <= set(frame.columns):
        raise MethodError(
            f"There are no findings in a table with the columns {', '.join(frame.columns)}.",
            "Give what imprint.clean returns.",
        )
    drop = frame.filter((pl.col("suggestion") == "drop") & pl.col("id").is_not_null())["id"].cast(pl.String).unique()
    if not len(drop):
        raise IdError("The findings suggest to drop nothing.", "Give ids=, or findings that suggest to drop.")
    unknown = drop.filter(~drop.is_in(run.examples["id"].implode()))
    if len(unknown):
        by_ids(run, unknown.to_list())
    # A leak may be a finding of a test example, which no training saw.
    return np.flatnonzero(run.ids.is_in(drop.implode()).to_numpy()).astype(np.int64)


def read_table(path: Path) -> pl.DataFrame:
    """A table by the ending of its file."""
    if path.suffix == ".parquet":
        return pl.read_parquet(path)
    return pl.read_csv(path) if path.suffix == ".csv" else pl.read_ndjson(path)


# ------------------------------------------------------------------------------------------------------------------- hashes


def hashed(ids: Sequence[str] | pl.Series, salt: str | None = None) -> dict[str, Any]:
    """Salted hashes of ids, as a manifest holds them.

    >>> kept = hashed(["u-1", "u-2"])
    >>> holds(kept, ["u-2", "u-3"])
    [True, False]
    """
    salt = secrets.token_hex(SALT) if salt is None else salt
    key = bytes.fromhex(salt)
    found = sorted(hashlib.blake2b(one.encode(), digest_size=DIGEST, salt=key).hexdigest() for one in ids)
    return {"algorithm": f"blake2b-{8 * DIGEST}, salted", "salt": salt, "hashes": found}


def holds(kept: dict[str, Any], ids: Sequence[str]) -> list[bool]:
    """Whether each of these ids was in a request that is kept as hashes."""
    known, key = set(kept["hashes"]), bytes.fromhex(kept["salt"])
    return [hashlib.blake2b(one.encode(), digest_size=DIGEST, salt=key).hexdigest() in known for one in ids]


def gone(run: Run, ids: Sequence[str]) -> list[bool]:
    """Whether each of these ids was forgotten on the way to this run, by it or by one of its parents."""
    kept = [one["request"] for one in [*run.manifest.get("lineage", []), run.manifest.get("forgot")] if one]
    each = [holds(one, ids) for one in kept]
    return [any(column) for column in zip(*each, strict=True)] if each else [False] * len(ids)


# -------------------------------------------------------------------------------------------------------------------- words


def counted(number: int, word: str) -> str:
    """`1 id`, `2 ids`."""
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def was(values: Sequence[Any]) -> str:
    return "was" if len(values) == 1 else "were"


def listed(values: Sequence[str]) -> str:
    """The first few, quoted."""
    shown = ", ".join(repr(one) for one in values[:SHOWN])
    return shown + (", ..." if len(values) > SHOWN else "")


def _first(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
