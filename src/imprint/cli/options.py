"""Options that several commands share, and how they become arguments of the Python calls."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from imprint.errors import ColumnError, EvidenceError, ImprintError, RunError, SourceError, nearest

if TYPE_CHECKING:
    from imprint.recording import Run

Source = Annotated[
    str,
    typer.Argument(metavar="SOURCE", help="csv, parquet, jsonl (also .gz .xz .zst), an image folder, a saved corpus."),
]
RunPath = Annotated[str, typer.Argument(metavar="RUN", help="Folder of a run (made by fit or audit), or of an audit.")]
Target = Annotated[
    str | None, typer.Option("--target", "-t", metavar="COL", help="Column to predict; a,b for several.")
]
Inputs = Annotated[
    str | None, typer.Option("--inputs", metavar="A,B", help="Input columns. Default: all that play no other role.")
]
Id = Annotated[str | None, typer.Option("--id", metavar="COL", help="Column of stable, distinct ids.")]
Split = Annotated[
    str | None,
    typer.Option("--split", metavar="COL|0.8/0.2", help="Column of splits, or train/test or train/valid/test shares."),
]
Group = Annotated[
    str | None, typer.Option("--group", metavar="COL", help="Column whose equal values stay on one side of a split.")
]
Weight = Annotated[str | None, typer.Option("--weight", metavar="COL", help="Column of loss weights, 0 or more.")]
TaskName = Annotated[
    str, typer.Option("--task", metavar="TASK", help="classification, multilabel, regression; auto: from the target.")
]
Model = Annotated[
    str,
    typer.Option(
        "--model",
        metavar="NAME",
        help="auto, linear, ridge, logistic, mlp, cnn, resnet, transformer; auto: by modality.",
    ),
]
Epochs = Annotated[
    int | None, typer.Option("--epochs", min=1, metavar="N", help="Passes over the training set. Default: by size.")
]
BatchSize = Annotated[
    int | None, typer.Option("--batch-size", min=1, metavar="N", help="Examples per step. Default: by size.")
]
LearningRate = Annotated[
    float | None, typer.Option("--learning-rate", metavar="X", help="Peak learning rate. Default: by model.")
]
Seed = Annotated[int, typer.Option("--seed", min=0, metavar="N", help="Seed of initial weights, order and split.")]
Device = Annotated[
    str, typer.Option("--device", metavar="NAME", help="cpu, cuda, cuda:1; auto: a GPU where there is one.")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output; notes go to standard error.")]

PlanText = Annotated[str, typer.Option("--plan", metavar="PLAN", help="Who the members are; see Plans.")]
ExecutorName = Annotated[
    Literal["auto", "batched", "sequential", "cluster"],
    typer.Option("--executor", metavar="NAME", help="auto (measured), batched, sequential, cluster."),
]
Processes = Annotated[
    int, typer.Option("--processes", min=1, metavar="N", help="Members at a time, each in a process; sequential.")
]
Engine = Annotated[
    Literal["local", "ray"], typer.Option("--engine", metavar="NAME", help="local, or ray: as tasks of a Ray cluster.")
]
Address = Annotated[
    str | None,
    typer.Option("--address", metavar="HOST:PORT", help="A Ray cluster that runs. Default: one of our own, here."),
]
Queries = Annotated[
    str | None, typer.Option("--queries", metavar="SPLIT", help="What outcomes are about. Default: every row.")
]
Keep = Annotated[
    Literal["auto", "logits", "summary"],
    typer.Option("--keep", metavar="WHAT", help="logits, summary (margin, loss); auto: logits up to 1 GiB."),
]
Parameters = Annotated[bool, typer.Option("--parameters", help="Keep the trained parameters of each member too.")]

Oracles = Annotated[
    int | None,
    typer.Option("--oracles", min=1, metavar="N", help="Models to train without the forgotten examples. Default: 24."),
]
Models = Annotated[
    int | None,
    typer.Option("--models", min=1, metavar="N", help="Models that a method is judged by. Default: 8."),
]
Shadows = Annotated[
    int | None,
    typer.Option("--shadows", min=1, metavar="N", help="Models that attacks learn from. Default: 32."),
]
NoAttacks = Annotated[bool, typer.Option("--no-attacks", help="Make no membership attacks: no shadow models.")]

NAMED_SHARES = {2: ("train", "test"), 3: ("train", "valid", "test")}


def names(text: str | None, option: str = "--inputs") -> list[str] | None:
    """The comma-separated list of an option; None stays None.

    >>> names("age, income")
    ['age', 'income']
    """
    if text is None:
        return None
    found = [part.strip() for part in text.split(",") if part.strip()]
    if not found:
        raise ColumnError(
            f"{option} '{text}' names nothing.", f"Give names with commas between, such as: {option} age,income"
        )
    return found


def target_names(text: str | None) -> str | list[str] | None:
    """One name stays text, several become a list."""
    found = names(text, "--target")
    return found[0] if found and len(found) == 1 else found


def split_of(text: str | None) -> str | dict[str, float] | None:
    """A column's name, or shares that sum to one (or to a hundred).

    >>> split_of("0.8/0.2")
    {'train': 0.8, 'test': 0.2}
    >>> split_of("70/10/20")
    {'train': 0.7, 'valid': 0.1, 'test': 0.2}
    >>> split_of("part")
    'part'
    """
    if text is None or "/" not in text:
        return text
    try:
        shares = [float(part) for part in text.split("/")]
    except ValueError:
        return text  # a column may be called in/out
    total = sum(shares)
    remedy = "For example --split 0.8/0.2 (train/test) or --split 70/10/20 (train/valid/test)."
    if len(shares) not in NAMED_SHARES or not all(share > 0 for share in shares):
        raise ColumnError(f"--split {text}: the shares must be two or three numbers above 0.", remedy)
    if min(abs(total - 1), abs(total - 100)) > 1e-6:
        raise ColumnError(f"--split {text}: the shares sum to {total:g}, not to 1 or 100.", remedy)
    return {name: round(share / total, 9) for name, share in zip(NAMED_SHARES[len(shares)], shares, strict=True)}


def source_of(text: str) -> str:
    """The source as a path that exists; a missing one is a `SourceError` with the nearest name beside it."""
    if "://" in text:
        return text
    path = Path(text).expanduser()
    if not path.exists():
        folder = path.parent
        if not folder.is_dir():
            raise SourceError(f"No folder '{folder}' (for '{text}').", f"You are in {Path.cwd()}.")
        there = [one.name for one in folder.iterdir()][:1000]
        close = nearest(path.name, there).split("?")[0] + "?" if "Did you mean" in nearest(path.name, there) else ""
        raise SourceError(f"No file or folder '{text}'.", close or f"You are in {Path.cwd()}; is the path right?")
    return str(path)


def roles(
    target: str | None, inputs: str | None, id: str | None, split: str | None, group: str | None, weight: str | None
) -> dict[str, Any]:
    """The role options as arguments of `imprint.open` and `imprint.audit`."""
    for option, name in (("id", id), ("split", split), ("group", group), ("weight", weight)):
        if name is not None and not name.strip():
            raise ColumnError(f"--{option} '{name}' names nothing.", "Give the name of a column.")
    return {
        "target": target_names(target), "inputs": names(inputs), "id": id, "split": split_of(split),
        "group": group, "weight": weight,
    }  # fmt: skip


def learner_of(**settings: Any) -> Any:
    """An `imprint.Learner` from options; those that are None keep the learner's default."""
    from imprint.fitting import Learner

    return Learner(**{key: value for key, value in settings.items() if value is not None})


def engine_of(engine: str, address: str | None) -> Any:
    """The engine from its options.

    Raises:
        EvidenceError: The options contradict each other.
    """
    from imprint.engine import Engine

    if address is not None and engine != "ray":
        raise EvidenceError(f"--address {address} is that of a Ray cluster.", "Add --engine ray.")
    return Engine(engine, address)


def executor_of(executor: str, processes: int, engine: str, address: str | None) -> Any:
    """The executor of a fleet from its options: a name, or an executor with settings.

    Raises:
        EvidenceError: The options contradict each other.
    """
    from imprint.fleets.cluster import Cluster
    from imprint.fleets.sequential import Sequential

    if engine == "ray" and executor not in ("auto", "cluster"):
        raise EvidenceError(
            f"--engine ray is the executor cluster, not {executor}.", "Leave one of the two options out."
        )
    cluster = engine == "ray" or executor == "cluster"
    if address is not None and not cluster:
        raise EvidenceError(f"--address {address} is that of a Ray cluster.", "Add --engine ray.")
    if processes > 1 and (cluster or executor == "batched"):
        raise EvidenceError(
            f"--processes {processes} is for the executor sequential.",
            "Leave it out: a cluster uses all its CPUs, and a batched fleet is one process.",
        )
    if cluster:
        return Cluster(address)
    return Sequential(processes) if processes > 1 else executor


def run_folder(text: str) -> Path:
    """The folder of a run: RUN itself, or AUDIT/run for the folder of an audit."""
    from imprint.cli.output import shell

    path = Path(text).expanduser()
    for folder in (path, path / "run"):
        if (folder / "manifest.json").is_file():
            return folder
    if not path.exists():
        raise RunError(
            f"No run at '{text}': there is no such folder.", "List the runs below a folder: imprint runs FOLDER"
        )
    raise RunError(
        f"'{text}' is not a run: it has no manifest.json.",
        f"List the runs below it: imprint runs {shell(text)}"
        if path.is_dir()
        else f"To train on it: imprint fit {shell(text)} --out RUN",
    )


def writable(folder: str | Path) -> Path:
    """An output folder, made where it is missing.

    Raises:
        ResourceError: It cannot be made or written.
    """
    from imprint.errors import ResourceError

    path = Path(folder).expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise ResourceError(f"'{folder}' is a file, not a folder.", "Choose another folder with --out.") from error
    except NotADirectoryError as error:
        raise ResourceError(f"'{folder}' lies below a file.", "Choose another folder with --out.") from error
    except OSError as error:
        raise ResourceError(
            f"Cannot make the folder '{folder}': {error.strerror}.", "Choose another with --out."
        ) from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise ResourceError(
            f"Cannot write into the folder '{folder}'.", "Choose another with --out, or change its rights."
        )
    return path


@contextmanager
def making(out: str | Path, *beside: str) -> Iterator[Path]:
    """An output folder for a job. Where the job fails before it has recorded anything, what was made for it goes again.

    Args:
        out: The folder.
        beside: Names of files that may be written into it before anything is recorded.
    """
    path = Path(out).expanduser()
    there = {one.name for one in path.iterdir()} if path.is_dir() else None
    folder = writable(path)
    try:
        yield folder
    except ImprintError:
        new = {one.name for one in folder.iterdir()} - (there or set())
        if new <= {*beside, "lock"}:
            for name in new:
                one = folder / name
                shutil.rmtree(one) if one.is_dir() else one.unlink(missing_ok=True)
            if there is None:
                folder.rmdir()
        raise


def keep(run: Run, answer: Any, asked: list[str]) -> None:
    """Save an answer in its run, under its kind and what was asked for beyond the defaults; a run that is read-only stays as it is."""
    from imprint.cli.output import note
    from imprint.errors import ResourceError

    name = "-".join([answer.name, *asked])
    try:
        run.save_answer(answer, name)
    except ResourceError:
        raise
    except (ImprintError, OSError) as error:
        note(f"note: the answer is not kept in the run: {getattr(error, 'problem', error)}")


def write_table(frame: Any, path: str) -> Path:
    """Write a frame as .parquet, .csv or .jsonl, by the ending of the path; lists become JSON text in CSV."""
    import polars as pl

    file = Path(path).expanduser()
    writers = {".parquet": "write_parquet", ".csv": "write_csv", ".jsonl": "write_ndjson"}
    if file.suffix not in writers:
        raise ImprintError(
            f"--out {path}: cannot write '{file.suffix or 'no ending'}'.", f"Use one of {', '.join(writers)}."
        )
    writable(file.parent)
    if file.suffix == ".csv":
        import json

        nested = [name for name, kind in frame.schema.items() if kind.is_nested()]
        frame = frame.with_columns(
            pl.col(name).map_elements(lambda v: json.dumps(plain(v), ensure_ascii=False), return_dtype=pl.String)
            for name in nested
        )
    temporary = file.with_name(file.name + ".tmp")
    getattr(frame, writers[file.suffix])(temporary)
    temporary.replace(file)
    return file


def plain(value: Any) -> Any:
    from imprint.cli.output import plain as to_plain

    return to_plain(value)
