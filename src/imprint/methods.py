"""The registry: what a method declares, and how its needs become one shared collection pass.

A method is a pure function from evidence to an answer, and can be called alone on plain tensors. Registering it adds what the
system has to know: its verb, its sign, its source, the evidence that it needs and the tasks that it serves.

`evaluate` and `evaluate_all` call methods on a run. What looks at one example at a time (a rowwise method, a rowwise `Derived`
value) is computed on blocks of training examples, all of them in one pass, so that a trajectory of any length fits in memory.
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch

from imprint.errors import MethodError, nearest
from imprint.recording.needs import Classes, FleetNeed, HeldOutLoss, Need, OutOfFold, Rows, Table, Target

Function = TypeVar("Function", bound=Callable[..., Any])

# Packages that register methods when imported.
VERBS = {
    "score": "imprint.scoring",
    "clean": "imprint.cleaning",
    "trace": "imprint.tracing",
    "select": "imprint.selecting",
    "forget": "imprint.forgetting",
}
ALL_TASKS = ("classification", "multilabel", "regression")
# A block of the record holds about this many numbers (128 MiB of float32).
BLOCK_NUMBERS = 2**25


@dataclass(frozen=True)
class Derived(Need):
    """A value that is computed from other evidence, once for all methods that name it.

    Attributes:
        field: The parameter name under which methods receive it.
        function: What computes it; its parameter names are the names of `needs`.
        needs: The evidence that it reads.
        rowwise: Whether it can be computed on blocks of training examples and concatenated. This is how a method that must see
            all examples at once reads a trajectory that does not fit in memory: it asks for a rowwise summary of it.
    """

    function: Callable[..., Any] = lambda: None
    needs: tuple[Need, ...] = ()
    rowwise: bool = True


@dataclass(frozen=True)
class Scored(Need):
    """What a score method says of each training example: `[example]`. So one verb reads another's answer, and neither knows the other.

    Attributes:
        field: The parameter name under which methods receive it.
        method: Name of the score method.
    """

    field: str = "scores"
    method: str = "el2n"


@dataclass(frozen=True)
class Method:
    """A registered method.

    Attributes:
        verb: The verb that it serves ("score", "clean", "trace", "select", "forget").
        name: What users type.
        function: The pure function; its parameter names are the names of `needs`.
        higher: What a higher value means ("harder", "more likely mislabelled"); for a clean method, of its severity.
        needs: The evidence that it reads.
        source: Where it is from.
        tasks: The tasks that it serves.
        modalities: The modalities that it serves; None for all.
        rowwise: Whether an example's value depends on this example's evidence alone, so that blocks can be computed apart.
        kind: For a clean method, the kind of finding.
        exact: For a forget method, whether it gives what a training without the examples gives.
        search: For a forget method, what is worth trying: setting -> candidates, the default first.
    """

    verb: str
    name: str
    function: Callable[..., Any]
    higher: str
    needs: tuple[Need, ...]
    source: str
    tasks: tuple[str, ...] = ALL_TASKS
    modalities: tuple[str, ...] | None = None
    rowwise: bool = True
    kind: str | None = None
    exact: bool | None = None
    search: Mapping[str, Sequence[Any]] = field(default_factory=dict, compare=False, repr=False)

    @property
    def summary(self) -> str:
        """First line of the function's docstring."""
        return (self.function.__doc__ or "").strip().split("\n")[0]

    def with_folds(self, folds: int) -> Method:
        """The same method, reading out-of-fold predictions of this many folds."""
        needs = (replace(need, folds=folds) if isinstance(need, OutOfFold) else need for need in self.needs)
        return replace(self, needs=tuple(needs))

    def with_members(self, members: int) -> Method:
        """The same method, reading fleets of this many members (for Shapley values: this many random orders).

        Raises:
            MethodError: Fewer than 2.
        """
        if members < 2:
            raise MethodError(
                f"{members} members are no fleet.", "Ask for at least 2; 64 is the default of most methods."
            )
        needs = (replace(need, members=members) if isinstance(need, FleetNeed) else need for need in self.needs)
        return replace(self, needs=tuple(needs))

    @property
    def members(self) -> int:
        """How many members the largest fleet has that it reads; 0 if it reads none."""
        return max((need.members for need in needs_of([self]) if isinstance(need, FleetNeed)), default=0)

    @property
    def trainings(self) -> int:
        """How many extra trainings its evidence takes beyond the recorded one; for Shapley values the least: one per order."""
        return trainings_of([self])

    def serves(self, run: Any) -> bool:
        """Whether it can be asked of a run: of its task, and of data of its corpus's modality."""
        return run.task.name in self.tasks and (self.modalities is None or run.corpus.modality in self.modalities)


_METHODS: dict[tuple[str, str], Method] = {}


def method(
    verb: str,
    name: str,
    *,
    higher: str,
    needs: Sequence[Need],
    source: str,
    tasks: Sequence[str] = ALL_TASKS,
    modalities: Sequence[str] | None = None,
    rowwise: bool | None = None,
    kind: str | None = None,
    exact: bool | None = None,
    search: Mapping[str, Sequence[Any]] | None = None,
) -> Callable[[Function], Function]:
    """Register a pure function as a method. The function itself is returned unchanged.

    `rowwise` defaults to True for scores and False for everything else.
    """

    def register(function: Function) -> Function:
        if (verb, name) in _METHODS:
            raise ValueError(f"The method {verb}:{name} is registered twice.")
        _METHODS[verb, name] = Method(
            verb, name, function, higher, tuple(needs), source, tuple(tasks),
            tuple(modalities) if modalities is not None else None, verb == "score" if rowwise is None else rowwise, kind,
            exact, dict(search or {}),
        )  # fmt: skip
        return function

    return register


def registered(verb: str | None = None) -> list[Method]:
    """All methods, or those of one verb, sorted by verb and name."""
    for package in VERBS.values():
        importlib.import_module(package)
    return [_METHODS[key] for key in sorted(_METHODS) if verb in (None, key[0])]


def lookup(verb: str, name: str) -> Method:
    """The method of this name; an unknown one raises `MethodError` with the nearest name."""
    importlib.import_module(VERBS[verb])
    if (verb, name) not in _METHODS:
        raise MethodError(
            f"No method '{name}' for the verb '{verb}'.", nearest(name, (n for v, n in _METHODS if v == verb))
        )
    return _METHODS[verb, name]


def named(verb: str, methods: str | Sequence[str]) -> list[Method]:
    """The methods of these names, or of this one name, each once; an unknown one raises `MethodError`."""
    names = [methods] if isinstance(methods, str) else list(dict.fromkeys(methods))
    return [lookup(verb, name) for name in names]


def asked(verb: str, methods: str | Sequence[str], run: Any, trainings: bool = False) -> list[Method]:
    """The methods that a verb was asked for.

    Args:
        verb: The verb.
        methods: Names, or "auto": all that serve the run's task and data.
        run: The run.
        trainings: Whether "auto" takes in methods whose evidence costs further trainings.
    """
    if methods == "auto":
        return [one for one in registered(verb) if one.serves(run) and (trainings or not one.trainings)]
    return named(verb, methods)


def needs_of(methods: Iterable[Method]) -> set[Need]:
    """The union of the recorded evidence that these methods read, also through derived values."""
    return {base for one in methods for need in one.needs for base in _recorded(need)}


def trainings_of(methods: Iterable[Method]) -> int:
    """How many extra trainings the evidence of these methods takes; evidence that several of them read is collected once."""
    return sum({need.store: need.trainings for need in needs_of(methods)}.values())


def table(verb: str | None = None) -> str:
    """The methods as a Markdown table, generated from the registry; `docs/reference/methods.md` is made of it.

    >>> print(table("score").splitlines()[0])
    | method | what it computes | higher = | tasks | reads | extra trainings | source |
    """
    lines = [
        "| method | what it computes | higher = | tasks | reads | extra trainings | source |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in registered(verb):
        serves = ", ".join(one.tasks) if set(one.tasks) != set(ALL_TASKS) else "all"
        if one.modalities is not None:
            serves += f" ({', '.join(one.modalities)})"
        higher = f"{one.higher}, exact" if one.exact else one.higher
        reads = ", ".join(sorted({need.kind or need.name for need in needs_of([one])}))
        lines.append(
            f"| `{one.name}` | {one.summary} | {higher} | {serves} | {reads} | {one.trainings or 'none'} | {one.source} |"
        )
    return "\n".join(lines)


def check_serves(methods: Iterable[Method], run: Any) -> None:
    """Raise `MethodError` if one of these methods does not serve the run's task or the modality of its data."""
    for one in methods:
        if not one.serves(run):
            only = ", ".join(one.tasks) + (f" on {', '.join(one.modalities)}" if one.modalities else "")
            known = [m.name for m in registered(one.verb) if m.serves(run)]
            raise MethodError(
                f"The method '{one.name}' is for {only}; this run is {run.task.name} on {run.corpus.modality} data.",
                f"Choose one of: {', '.join(known)}.",
            )


def evaluate(one: Method, run: Any) -> Any:
    """What a method says of a run: its function, called on the evidence that it needs."""
    return evaluate_all([one], run)[one.name]


def evaluate_all(methods: Sequence[Method], run: Any, block: int | None = None) -> dict[str, Any]:
    """What methods of one verb say of a run, by name.

    Evidence that several of them need is read once. What is rowwise is computed on blocks of training examples, all of it in
    one pass (one more where it waits for a value that takes all examples); the other methods are then called one after the
    other, and what none of the rest needs is let go.

    Args:
        methods: Methods of one verb that serve the run's task.
        run: The run.
        block: Training examples per block; by default as many as give 128 MiB of trajectory.
    """
    check_serves(methods, run)
    whole = [one for one in methods if not one.rowwise]
    jobs: dict[Any, tuple[Callable[..., Any], tuple[Need, ...]]] = {
        one.name: (one.function, one.needs) for one in methods if one.rowwise
    }
    for need in {part for one in methods for part in _closure(one.needs)}:
        if isinstance(need, Derived) and need.rowwise:
            jobs[need] = (need.function, need.needs)
    values: dict[Any, Any] = {}
    for depth in sorted({_depth(needs) for _, needs in jobs.values()}):
        stage = {key: job for key, job in jobs.items() if _depth(job[1]) == depth}
        values |= _streamed(stage, run, block, values)
    users = Counter(need for one in whole for need in _closure(one.needs))
    for one in whole:
        values[one.name] = one.function(**{need.name: _value(need, run, values) for need in one.needs})
        users.subtract(_closure(one.needs))
        for need in [need for need, left in users.items() if not left]:
            values.pop(need, None)
    return {one.name: values[one.name] for one in methods}


def of_run(need: Need, run: Any) -> Any:
    """The value of one need of a run, also of a derived one or of a score; what is missing is collected first."""
    return _value(need, run, {})


def _recorded(need: Need) -> set[Need]:
    if isinstance(need, Scored):
        return needs_of([lookup("score", need.method)])
    return {base for part in need.needs for base in _recorded(part)} if isinstance(need, Derived) else {need}


def _closure(needs: Iterable[Need]) -> set[Need]:
    """These needs and what they are derived from."""
    found = set(needs)
    return found | {part for need in found if isinstance(need, Derived) for part in _closure(need.needs)}


def _depth(needs: Iterable[Need]) -> int:
    """How many passes over the examples must be over before these needs can be had."""
    return max((_depth(need.needs) + 1 for need in needs if isinstance(need, Derived)), default=0)


def _value(need: Need, run: Any, values: dict[Any, Any]) -> Any:
    """The whole value of a need, taken from `values` if it is there and kept there if it is not."""
    if need not in values:
        if isinstance(need, Derived):
            values[need] = need.function(**{part.name: _value(part, run, values) for part in need.needs})
        elif isinstance(need, Scored):
            values[need] = evaluate(lookup("score", need.method), run)
        else:
            values[need] = _held(need, run) if need.kind is None else run.gather([need])[need.name]
    return values[need]


def _held(need: Need, run: Any) -> Any:
    """What the record always holds, and is small."""
    match need:
        case Target(split=str() as split):
            return run.target(split)
        case Target(split=None):
            return run.task.encode(run.corpus.target)
        case Rows(split=split):
            return torch.from_numpy(run.rows(split))
        case Classes():
            return tuple(getattr(run.task, "classes", getattr(run.task, "labels", ())))
        case HeldOutLoss():
            return run.held_out_loss()
        case Table():
            return run.corpus
    raise MethodError(
        f"Nothing holds the evidence {need}.", "Register the method with needs of imprint.recording.needs."
    )


def _streamed(
    jobs: dict[Any, tuple[Callable[..., Any], tuple[Need, ...]]], run: Any, block: int | None, values: dict[Any, Any]
) -> dict[Any, Any]:
    """Evaluate functions of training examples on blocks, all of them on each block while its evidence is in memory."""
    total = len(run.rows("train"))
    asked = {need for _, needs in jobs.values() for need in needs}
    held = {need: _value(need, run, values) for need in asked if need.kind is None or not need.per_example}
    read = _name_apart(need for need in asked if need not in held)
    if block is None:
        # An example brings a number per epoch or per member of a fleet, times the outputs.
        deep = max([int(run.learner.epochs or 1), *(getattr(need, "members", 1) for need in asked)])
        block = max(1024, BLOCK_NUMBERS // (deep * max(1, run.task.width)))
    parts: dict[Any, list[torch.Tensor]] = {key: [] for key in jobs}
    for start in range(0, total, block):
        rows = slice(start, min(start + block, total))
        evidence: dict[Need, Any] = {
            need: value[rows]
            if isinstance(need, Target | Rows) or (isinstance(need, Derived) and need.rowwise)
            else value
            for need, value in held.items()
        }
        for group in read:
            gathered = run.gather(group, rows)
            evidence |= {need: gathered[need.name] for need in group}
        for key, (function, needs) in jobs.items():
            parts[key].append(function(**{need.name: evidence[need] for need in needs}))
    return {key: torch.cat(part) for key, part in parts.items()}


def _name_apart(needs: Iterable[Need]) -> list[list[Need]]:
    """Needs in as few groups as hold no name twice: each group is gathered in one reading."""
    groups: list[dict[str, Need]] = []
    for need in sorted(needs, key=repr):
        free = next((group for group in groups if need.name not in group), None)
        if free is None:
            groups.append(free := {})
        free[need.name] = need
    return [list(group.values()) for group in groups]
