"""`fleet`: train the members of a plan and keep what became of each; `Fleet` reads it."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import lance
import numpy as np
import polars as pl
import torch
from jaxtyping import Bool, Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from imprint import tasks
from imprint.errors import EvidenceError, PlanError, RunError
from imprint.fitting import Learner, Progress, reporter
from imprint.fitting.learner import shown
from imprint.fleets.executing import Executor, execute, resolve
from imprint.fleets.members import Members
from imprint.fleets.plan import Plan
from imprint.fleets.shared import Shared, share
from imprint.fleets.store import File, Outcomes
from imprint.fleets.weights import Weights
from imprint.recording import Run, load, tables
from imprint.recording.files import read_json, remove, replacing, room, write_json
from imprint.recording.lock import writing

if TYPE_CHECKING:
    from imprint.corpus import Corpus

FORMAT = 1
# In this order they are removed: `members.lance`, the mark of a fleet, last.
CONTENTS = ("manifest.json", "outcomes", "parameters", "weights", "examples.safetensors", "members.lance")
# With keep="auto", logits are kept up to this many bytes, and above it margin and loss.
LOGITS_BYTES = 2**30
PACKAGES = ("imprint", "torch", "numpy", "polars", "safetensors")


class Fleet:
    """Many trainings on disk: who they are, and what each says of the queries.

    Attributes:
        path: Its folder.
        manifest: What was trained, on what, by which executor and why.
        files: Files of outcomes that were there when it was opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest = _manifest(path)
        self.files: list[File] = self._outcomes.files()

    @staticmethod
    def load(path: str | Path) -> Fleet:
        """Open a fleet, complete or not. Nothing in its folder is executed.

        Raises:
            RunError: The folder is no fleet, or is damaged.
        """
        path = Path(path)
        if not path.is_dir():
            raise RunError(f"There is no fleet at {path}.", "Check the path; imprint.fleet(...) makes one.")
        return Fleet(path)

    def __repr__(self) -> str:
        return f"Fleet({str(self.path)!r}, {self.plan}, {int(self.done.sum())} of {len(self)} members)"

    def __len__(self) -> int:
        return int(self.manifest["members"])

    @cached_property
    def plan(self) -> Plan:
        """Who the members are."""
        return Plan.from_spec(self.manifest["plan"])

    @cached_property
    def task(self) -> tasks.Task:
        """The fitted task."""
        return tasks.from_spec(self.manifest["task"])

    @cached_property
    def members(self) -> pl.DataFrame:
        """`member`, `seed`, and one column per factor of the plan."""
        found = pl.from_arrow(tables.everything(self.path / "members.lance"))
        assert isinstance(found, pl.DataFrame)
        return found

    @cached_property
    def weights(self) -> Weights:
        """Who was trained on what, `[member, example]`; examples are `rows`."""
        return Weights.load(self.path / "weights")

    @property
    def rows(self) -> Int[np.ndarray, " example"]:
        """Training rows of the corpus, ascending."""
        return self._examples["rows"].numpy()

    @property
    def queries(self) -> Int[np.ndarray, " query"]:
        """Rows of the corpus that outcomes are about."""
        return self._examples["queries"].numpy()

    @property
    def target(self) -> Tensor:
        """Encoded targets of the queries."""
        return self._examples["target"]

    @cached_property
    def _file_of(self) -> Int[np.ndarray, " member"]:
        """The place in `files` of each member's file; -1 where it was not trained yet."""
        found = np.full(len(self), -1)
        for place, file in enumerate(self.files):
            found[file.numbers] = place
        return found

    @property
    def done(self) -> Bool[np.ndarray, " member"]:
        """Which members were trained when the fleet was opened."""
        return self._file_of >= 0

    def outcomes(
        self,
        field: str = "margin",
        members: Sequence[int] | np.ndarray | None = None,
        rows: Sequence[int] | np.ndarray | None = None,
    ) -> Tensor:
        """What members say of queries.

        Args:
            field: One of `imprint.recording.needs.FIELDS`; where only a summary was kept, "margin", "loss", "confidence" or "correct".
            members: Their numbers; None for all.
            rows: Rows of the corpus, some of `queries`; None for all.

        Returns:
            `[member, query]`, or `[member, query, class]` for logits and probabilities. Only what is asked for is read.

        Raises:
            EvidenceError: The field was not kept, or a row is none of the queries.
            RunError: A member was not trained yet, or its file is damaged.
        """
        chosen = np.arange(len(self)) if members is None else np.asarray(members, dtype=np.int64).reshape(-1)
        wrong = chosen[(chosen < 0) | (chosen >= len(self))]
        if len(wrong):
            raise EvidenceError(f"There is no member {wrong[0]}.", f"Members go from 0 to {len(self) - 1}.")
        return self._read(field, chosen, self._places(rows))

    def stream(
        self, field: str = "margin", rows: Sequence[int] | np.ndarray | None = None, size: int = 64
    ) -> Iterator[tuple[Int[np.ndarray, " member"], Tensor]]:
        """`(member numbers, [member, query, ...])` of a few members at a time, in order; see `outcomes`."""
        places = self._places(rows)
        for begin in range(0, len(self), size):
            numbers = np.arange(begin, min(begin + size, len(self)))
            yield numbers, self._read(field, numbers, places)

    def metrics(self) -> pl.DataFrame:
        """One row per trained member: `member`, `seconds`, and its metrics on the test rows, if all of these are among the queries."""
        rows = [
            {"member": int(number), "seconds": float(seconds), **(file.metrics[place] if file.metrics else {})}
            for file in self.files
            for place, (number, seconds) in enumerate(zip(file.numbers, file.seconds, strict=True))
        ]
        schema = {"member": pl.Int64, "seconds": pl.Float64}
        return pl.DataFrame(rows, schema=None if rows else schema, infer_schema_length=None).sort("member")

    def parameters(self, member: int) -> dict[str, Tensor]:
        """The trained parameters of a member, by name.

        Raises:
            EvidenceError: They were not kept.
        """
        if not self.manifest["parameters"]:
            raise EvidenceError(
                f"The fleet {self.path} kept no parameters.", "Train it again into another folder with parameters=True."
            )
        return self._outcomes.parameters(member)

    def _read(self, field: str, members: np.ndarray, places: np.ndarray) -> Tensor:
        files = [self.files[place] for place in np.unique(self._file_of[members]) if place >= 0]
        return self._outcomes.read(files, field, members, places)

    def _places(self, rows: Sequence[int] | np.ndarray | None) -> Int[np.ndarray, " query"]:
        if rows is None:
            return np.arange(len(self.queries))
        wanted = np.asarray(rows, dtype=np.int64).reshape(-1)
        order = np.argsort(self.queries, kind="stable")
        places = np.searchsorted(self.queries, wanted, sorter=order)
        found = order[np.minimum(places, len(order) - 1)]
        wrong = wanted[self.queries[found] != wanted]
        if len(wrong):
            raise EvidenceError(
                f"Row {wrong[0]} is not among the {len(order)} queries of this fleet.",
                "Train a fleet with these rows as queries, or with queries=None for all.",
            )
        return found

    @cached_property
    def _examples(self) -> dict[str, Tensor]:
        return _tensors(self.path / "examples.safetensors")

    @cached_property
    def _outcomes(self) -> Outcomes:
        return Outcomes(self.path, self.task, self.manifest["keep"], self.target)


def fleet(
    source: Learner | Run | str | Path,
    corpus: Corpus | None = None,
    plan: Plan | str | None = None,
    path: str | Path | None = None,
    *,
    queries: Sequence[int] | np.ndarray | Tensor | str | None = None,
    executor: str | Executor = "auto",
    keep: str = "auto",
    parameters: bool = False,
    resume: bool = True,
    progress: Progress | Literal[False] | None = None,
) -> Fleet:
    """Train the members of a plan and keep what each says of the queries.

    Args:
        source: A learner together with `corpus`; or a run or its path, whose learner and encoder are used.
        corpus: What members train on.
        plan: Who they are, such as `subsets(256, 0.5)`, or its text.
        path: Folder of the fleet.
        queries: Rows of the corpus that outcomes are about, a split's name, or None for every row.
        executor: "auto", "batched", "sequential", "cluster", or an executor with settings.
        keep: "logits", "summary" (margin and loss of each query), or "auto": logits up to 1 GiB.
        parameters: Whether the trained parameters are kept too.
        resume: Go on with a fleet that was interrupted, and return one that is complete. False starts over and removes what was there.
        progress: Told the members done; None shows a bar if standard error is a terminal, False nothing.

    Returns:
        The fleet, complete. Killed at any moment, it loses at most the members that were being trained; called again with the same
        arguments it trains those that are missing, and a complete one is returned without any work.

    Raises:
        PlanError: The plan does not fit the corpus.
        RunError: The folder holds another fleet, or something else.
        RunLocked: Another process is writing this fleet.
        EvidenceError: The executor cannot train these members.
    """
    if plan is None or path is None:
        raise PlanError(
            "imprint.fleet needs a plan and a path.", "Write imprint.fleet(run, plan=subsets(256, 0.5), path=...)."
        )
    plan = Plan.parse(plan) if isinstance(plan, str) else plan
    if keep not in ("auto", "logits", "summary"):
        raise EvidenceError(f"keep={keep!r} is unknown.", "Use 'logits', 'summary' or 'auto'.")
    path = Path(path)
    source, corpus, learner, fingerprint = _source(source, corpus)
    wanted = query_rows(source, corpus, queries)
    if path.exists() and not path.is_dir():
        raise RunError(f"{path} is a file.", "Give a folder for the fleet.")
    with writing(path), reporter(progress) as report:
        _check_folder(path, resume)
        if not resume:
            for name in CONTENTS:
                remove(path / name)
        missing: list[int] | None = None
        if (path / "manifest.json").exists():
            there = Fleet(path)
            _check_same(there, plan, learner, fingerprint, wanted, keep, parameters)
            whole = there._outcomes.verify(len(there), there.manifest["parameters"])
            done = {int(number) for file in whole for number in file.numbers}
            missing = [number for number in range(len(there)) if number not in done]
            if not missing:
                return Fleet(path)
        shared = share(source, corpus, progress=report)
        corpus = source.corpus if isinstance(source, Run) else corpus
        members = plan.bind(shared, corpus)
        if missing is None:
            missing = list(range(len(members)))
            _begin(path, plan, members, shared, fingerprint, wanted, keep, parameters)
        elif members.weights.digest() != (digest := read_json(path / "manifest.json")["weights"]):
            raise RunError(
                f"{path} was begun with other random subsets ({digest}): from this plan they would now be drawn otherwise.",
                "Use the versions that its manifest names, choose another folder, or use resume=False.",
            )
        _train(path, shared, members, missing, executor, report)
        return Fleet(path)


def _train(
    path: Path, shared: Shared, members: Members, missing: list[int], executor: str | Executor, report: Progress
) -> None:
    """Train the missing members, and write what is yielded as it comes."""
    there = Fleet(path)
    chosen, why = resolve(executor, shared, members, missing, len(there.queries))
    name = chosen.name
    sitting = {"begun": _now(), "executor": name, "why": why, "missing": len(missing)}
    sittings = [*there.manifest["sittings"], sitting]
    write_json(path / "manifest.json", {**there.manifest, "executor": {"name": name, "why": why}, "sittings": sittings})
    test = test_places(shared, there.queries)
    trained = execute(
        shared,
        members,
        queries=torch.from_numpy(there.queries),
        executor=chosen,
        numbers=missing,
        parameters=there.manifest["parameters"],
        progress=report,
    )
    with room(path), closing(trained):  # type: ignore[type-var]
        for finished in trained:
            if there.manifest["parameters"] and finished.parameters is None:
                raise EvidenceError(f"The executor '{name}' gave no parameters.", "Use executor='sequential'.")
            there._outcomes.write(finished, test)


def _begin(
    path: Path,
    plan: Plan,
    members: Members,
    shared: Shared,
    fingerprint: str,
    queries: np.ndarray,
    keep: str,
    parameters: bool,
) -> None:
    """Write all but the outcomes; the manifest last, which makes it a fleet."""
    keep = keeping(keep, len(members), len(queries), shared.task.width)
    with replacing(path / "members.lance") as temporary:
        lance.write_dataset(members.table.to_arrow(), str(temporary), max_rows_per_file=tables.ROWS_PER_FILE)
    members.weights.save(path / "weights")
    kept = {
        "rows": shared.data.rows.contiguous(),
        "queries": torch.from_numpy(queries),
        "target": shared.data.target[torch.from_numpy(queries)].contiguous(),
    }
    with replacing(path / "examples.safetensors") as temporary:
        save_file(kept, temporary)
    write_json(
        path / "manifest.json",
        {
            "format": FORMAT,
            "kind": "fleet",
            "plan": plan.spec(),
            "text": str(plan),
            "members": len(members),
            "learner": shared.learner.spec(),
            "corpus": {"fingerprint": fingerprint, "rows": len(shared.data.target), "training": len(shared.data.rows)},
            "task": shared.task.spec(),
            "queries": len(queries),
            "keep": keep,
            "parameters": parameters,
            "weights": members.weights.digest(),
            "executor": None,
            "sittings": [],
            "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
            "machine": {"system": platform.platform(), "threads": torch.get_num_threads()},
        },
    )


def _source(
    source: Learner | Run | str | Path, corpus: Corpus | None
) -> tuple[Learner | Run, Corpus | None, Learner, str]:
    """The learner or run, the corpus, the resolved learner, and the fingerprint of the corpus."""
    if isinstance(source, Learner):
        if corpus is None:
            raise EvidenceError(
                "A learner alone has nothing to train on.", "Call imprint.fleet(learner, corpus, ...), or give a run."
            )
        return source, corpus, source.resolve(corpus), corpus.fingerprint
    run = source if isinstance(source, Run) else load(source, corpus)
    if corpus is not None and corpus.fingerprint != run.fingerprint:
        raise RunError(
            f"The run {run.path} was trained on the corpus {run.fingerprint}, and this one is {corpus.fingerprint}.",
            "Leave the corpus out, or give the version that the run was trained on.",
        )
    return run, corpus, run.learner, run.fingerprint


def keeping(keep: str, members: int, queries: int, width: int) -> str:
    """What is kept of each query: "logits" or "summary"; "auto" decides by what the logits would take."""
    if keep != "auto":
        return keep
    return "logits" if 4 * members * queries * width <= LOGITS_BYTES else "summary"


def query_rows(
    source: Learner | Run, corpus: Corpus | None, queries: Sequence[int] | np.ndarray | Tensor | str | None
) -> Int[np.ndarray, " query"]:
    """Rows of the corpus that outcomes are about."""
    if isinstance(source, Run):
        total, rows_of = len(source.examples), source.rows
    else:
        assert corpus is not None
        total, rows_of = len(corpus), corpus.rows
    if queries is None:
        return np.arange(total, dtype=np.int64)
    if isinstance(queries, str):
        if queries == "train" and corpus is not None and "train" not in corpus.splits:
            return np.arange(total, dtype=np.int64)
        return np.ascontiguousarray(rows_of(queries), dtype=np.int64)
    rows = np.array(queries, dtype=np.int64).reshape(-1)
    wrong = rows[(rows < 0) | (rows >= total)]
    if len(wrong) or not len(rows):
        problem = (
            f"Row {wrong[0]} is not one of the {total} rows of the corpus." if len(wrong) else "There are no queries."
        )
        raise EvidenceError(problem, "Take rows from corpus.rows(), or use queries=None for all.")
    if len(np.unique(rows)) < len(rows):
        raise EvidenceError("The queries name a row twice.", "Give each row once.")
    return rows


def test_places(shared: Shared, queries: np.ndarray) -> Int[Tensor, " example"] | None:
    """Places of the test rows among the queries; None if there is no test row, or one is not among them."""
    test = shared.test.numpy()
    order = np.argsort(queries, kind="stable")
    places = order[np.minimum(np.searchsorted(queries, test, sorter=order), len(order) - 1)]
    return torch.from_numpy(places) if len(test) and (queries[places] == test).all() else None


def _check_folder(path: Path, resume: bool) -> None:
    """Raise `RunError` rather than write over what is not a fleet."""
    there = [name for name in CONTENTS if (path / name).exists()]
    # `members.lance` is written first and `manifest.json` last.
    if there and "members.lance" not in there:
        if "manifest.json" in there:
            _manifest(path)
        raise RunError(f"{path} holds {there[0]}, but no fleet.", "Choose another folder.")
    if resume and "outcomes" in there and "manifest.json" not in there:
        raise RunError(
            f"{path / 'manifest.json'} is missing, but the folder holds outcomes.", "Restore it, or use resume=False."
        )


def _check_same(
    there: Fleet, plan: Plan, learner: Learner, fingerprint: str, queries: np.ndarray, keep: str, parameters: bool
) -> None:
    """Raise `RunError`, saying what differs, if the folder holds another fleet than is asked for."""
    manifest = there.manifest
    ours = learner.spec()
    different = []
    if manifest["corpus"]["fingerprint"] != fingerprint:
        different.append(f"the corpus is {manifest['corpus']['fingerprint']} there, {fingerprint} here")
    if there.plan != plan:
        different.append(f"the plan is {there.plan} there, {plan} here")
    different += [
        f"{name}={shown(manifest['learner'].get(name))} there, {shown(ours[name])} here"
        for name in ours
        if name not in ("device", "record") and ours[name] != manifest["learner"].get(name)
    ]
    if not np.array_equal(there.queries, queries):
        different.append(f"the queries are {len(there.queries)} rows there, {len(queries)} (others) here")
    if keep not in ("auto", manifest["keep"]):
        different.append(f"keep={manifest['keep']!r} there, {keep!r} here")
    if parameters and not manifest["parameters"]:
        different.append("parameters were not kept there, and are asked for here")
    if different:
        raise RunError(
            f"{there.path} holds another fleet: {'; '.join(different)}.",
            "Choose another folder, or use resume=False to replace the fleet.",
        )


def _manifest(path: Path) -> dict[str, Any]:
    manifest = read_json(path / "manifest.json")
    if not isinstance(manifest, dict) or manifest.get("kind") != "fleet":
        raise RunError(f"{path} holds no fleet.", "Choose another folder; imprint.fleet(...) makes a fleet.")
    if manifest.get("format") != FORMAT:
        raise RunError(f"{path} has format {manifest.get('format')}; this Imprint reads {FORMAT}.", "Update imprint.")
    lacking = {"plan", "members", "learner", "corpus", "task", "keep", "parameters", "weights", "sittings"} - set(
        manifest
    )
    if lacking:
        raise RunError(
            f"{path / 'manifest.json'} is damaged: it has no {min(lacking)}.", "Restore it, or use resume=False."
        )
    return manifest


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise RunError(f"{path} is damaged: {error}.", "Restore it, or use resume=False.") from error


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
