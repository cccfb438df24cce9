"""Plans: who the members of a fleet are. A small value without data, made of a few words and of products of them.

`subsets(256, 0.5) * seeds(2)` is 512 members. A plan is written as JSON (`spec`) or as text (`str`), and both are read back; nothing
is evaluated.
"""

from __future__ import annotations

import ast
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from imprint.errors import LearnerError, PlanError, nearest
from imprint.fitting import Learner
from imprint.fleets.factors import Bootstrap, Factor, Folds, Grid, LeaveOut, Mixtures, Seeds, Sizes, Subsets
from imprint.fleets.members import Members

if TYPE_CHECKING:
    from imprint.corpus import Corpus
    from imprint.fleets.shared import Shared

# What members cannot differ in: they share the task and the device and record nothing, and seeds have a plan of their own.
SHARED_SETTINGS = ("task", "device", "record", "seed", "sampler")


@dataclass(frozen=True, eq=False)
class Plan:
    """Variations of a training; made by `folds`, `subsets`, ... and by products of them.

    >>> plan = subsets(256, 0.5) * seeds(2)
    >>> plan, len(plan), Plan.parse("subsets(256, 0.5) * seeds(2)") == plan
    (subsets(256, 0.5) * seeds(2), 512, True)

    Attributes:
        factors: What it is a product of; the members of the last one change fastest.
    """

    factors: tuple[Factor, ...]

    def __post_init__(self) -> None:
        if sum(isinstance(one, Seeds) for one in self.factors) > 1:
            raise PlanError(f"{self} gives seeds twice.", "Use seeds(...) once in a product.")
        named = [name for one in self.factors if isinstance(one, Grid) for name, _ in one.settings]
        twice = next((name for name in named if named.count(name) > 1), None)
        if twice is not None:
            raise PlanError(f"{self} gives the setting {twice} twice.", "Put all its values into one grid(...).")

    def __mul__(self, other: Plan) -> Plan:
        """Every member of this plan with every member of the other: weights multiply, settings join."""
        return Plan((*self.factors, *other.factors)) if isinstance(other, Plan) else NotImplemented

    def __eq__(self, other: object) -> bool:
        # By the text: the size 1 (one example) is not the size 1.0 (all of them).
        return isinstance(other, Plan) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    @cached_property
    def count(self) -> int | None:
        """How many members it has; None where that depends on the data (`leave_out("example")`)."""
        counts = [one.members() for one in self.factors]
        return None if None in counts else math.prod(one for one in counts if one is not None)

    def __len__(self) -> int:
        if self.count is None:
            raise PlanError(f"How many members {self} has depends on the data.", "Use len(plan.bind(shared, corpus)).")
        return self.count

    def __bool__(self) -> bool:
        return True

    def __str__(self) -> str:
        return " * ".join(map(str, self.factors))

    __repr__ = __str__

    def spec(self) -> list[dict[str, Any]]:
        """JSON-able description from which `from_spec` rebuilds the plan."""
        found = []
        for one in self.factors:
            positional, named = one.arguments()
            found.append({"name": one.name, "arguments": positional, "options": named})
        return found

    @classmethod
    def from_spec(cls, spec: Iterable[Mapping[str, Any]]) -> Plan:
        """Rebuild a plan from `spec()`."""
        made = [_call(one["name"], one["arguments"], one["options"]) for one in spec]
        return cls(tuple(factor for plan in made for factor in plan.factors))

    @classmethod
    def parse(cls, text: str) -> Plan:
        """Read a plan from text: the names of plans, literals and `*`; nothing is evaluated.

        Raises:
            PlanError: It is no plan; says where and what is meant instead.

        >>> Plan.parse("leave_out('target') * seeds([3, 5])").spec()[1]["arguments"]
        [[3, 5]]
        """
        try:
            return _read(ast.parse(text.strip(), mode="eval").body, text)
        except SyntaxError as error:
            raise PlanError(
                f"{text!r} is no plan: {error.msg}.", f"Write for example 'subsets(256, 0.5) * seeds(2)'. {_KNOWN}"
            ) from error
        except (RecursionError, MemoryError) as error:
            raise PlanError(
                f"The plan of {len(text)} characters is nested too deeply.", "Write a shorter one."
            ) from error

    def bind(self, shared: Shared, corpus: Corpus | None = None) -> Members:
        """Meet a training set.

        Args:
            shared: What the members have in common; its training rows are the examples.
            corpus: For plans that use ids or groups.

        Returns:
            The members, in the order of the plan. The same plan, learner and corpus give the same members.

        Raises:
            PlanError: The plan does not fit: more examples than there are, unknown ids, classes or groups, nothing left to train on.
        """
        return Members(self.factors, shared, corpus)


def folds(k: int) -> Plan:
    """All folds but one: `k` members. Folds are stratified by target, and examples of one group stay together."""
    return Plan((Folds(_plain(k)),))


def subsets(
    members: int,
    fraction: float = 0.5,
    *,
    sizes: Sequence[float] | None = None,
    stratify: bool = False,
    independent: bool = False,
) -> Plan:
    """Random subsets of the training set.

    Args:
        members: How many subsets.
        fraction: Share of the training set that each has.
        sizes: Sizes instead, taken in turn: whole numbers are examples, fractions shares.
        stratify: Whether each class keeps its share.
        independent: Whether each example is drawn by a coin of its own, so that the size of a subset is random too.

    >>> subsets(64, sizes=[100, 0.5])
    subsets(64, sizes=[100, 0.5])
    """
    given = None if sizes is None else tuple(_plain(_sequence("subsets", "sizes", sizes)))
    return Plan((Subsets(_plain(members), _plain(fraction), given, bool(stratify), bool(independent)),))


def bootstrap(members: int) -> Plan:
    """As many examples as there are, drawn with replacement; an example drawn twice has the weight 2."""
    return Plan((Bootstrap(_plain(members)),))


def leave_out(what: str | Sequence[Sequence[str]]) -> Plan:
    """All examples but one (`"example"`), one group (`"group"`), one class (`"target"`), or one of the given lists of ids."""
    if isinstance(what, str):
        return Plan((LeaveOut(what),))
    lists = _plain(_sequence("leave_out", "what", what))
    wrong = next((one for one in lists if isinstance(one, str) or not isinstance(one, Sequence)), None)
    if wrong is not None:
        raise PlanError(
            f"leave_out: {wrong!r} is not a list of ids.", "Give a list of lists of ids, one list per member."
        )
    return Plan((LeaveOut(tuple(tuple(map(str, one)) for one in lists)),))


def sizes(schedule: Sequence[float]) -> Plan:
    """Nested random subsets: whole numbers are examples, fractions shares (1.0 = all).

    >>> sizes([100, 200, 1.0])
    sizes([100, 200, 1.0])
    """
    return Plan((Sizes(tuple(_plain(_sequence("sizes", "schedule", schedule)))),))


def mixtures(weights: Sequence[Mapping[Any, float]], by: str = "target") -> Plan:
    """One weight for all examples of a class (`by="target"`) or group (`by="group"`); each value has to be named, 0 leaves it out.

    >>> mixtures([{"cat": 1, "dog": 0.5}])
    mixtures([{'cat': 1, 'dog': 0.5}])
    """
    given = _plain(_sequence("mixtures", "weights", weights))
    found = []
    for number, one in enumerate(given):
        pairs = list(one.items()) if isinstance(one, Mapping) else one
        if not isinstance(pairs, list | tuple) or not all(
            isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs
        ):
            raise PlanError(f"mixtures: mixture {number} is {one!r}.", "Give a list of {value: weight}.")
        for value, _ in pairs:
            _literal("mixtures", f"a value of mixture {number}", value)
        found.append(tuple((value, weight) for value, weight in pairs))
    return Plan((Mixtures(tuple(found), by),))


def grid(**settings: Any) -> Plan:
    """The cartesian product of settings of the learner.

    >>> len(grid(learning_rate=[0.01, 0.1], epochs=[5, 10, 20]))
    6
    """
    if not settings:
        raise PlanError("grid: no setting is given.", "Write for example grid(learning_rate=[0.01, 0.1]).")
    known = [field.name for field in fields(Learner) if field.name not in SHARED_SETTINGS]
    found = []
    for name, values in settings.items():
        if name not in known:
            shared = {"seed": "Use seeds(...).", "sampler": "Give it to the learner."}
            remedy = shared.get(name, nearest(name, known))
            raise PlanError(f"grid: {name!r} is not a setting that members can differ in.", remedy)
        values = _plain(_sequence("grid", name, values))
        if not values:
            raise PlanError(f"grid: {name} has no values.", f"Give at least one, such as {name}=[...].")
        for value in values:
            _literal("grid", name, value)
            if value == "auto" or (value is None and name != "ema"):
                raise PlanError(f"grid: {name}={value!r} decides nothing.", "Members need settings that are decided.")
            try:
                Learner(**{name: value})
            except (LearnerError, TypeError) as error:
                problem = error.problem if isinstance(error, LearnerError) else f"{name}={value!r}: {error}"
                raise PlanError(f"grid: {problem}", getattr(error, "remedy", "")) from error
        found.append((name, tuple(values)))
    return Plan((Grid(tuple(found)),))


def seeds(k: int | Sequence[int]) -> Plan:
    """The same training from the seeds 0..k-1, or from the given ones."""
    given = _plain(list(k) if isinstance(k, range) else k)
    return Plan((Seeds(tuple(given) if isinstance(given, list) else given),))


PLANS: dict[str, Callable[..., Plan]] = {
    one.__name__: one for one in (folds, subsets, bootstrap, leave_out, sizes, mixtures, grid, seeds)
}
_KNOWN = f"Known: {', '.join(sorted(PLANS))}."


def _call(name: str, positional: Sequence[Any], named: Mapping[str, Any]) -> Plan:
    if name not in PLANS:
        raise PlanError(f"There is no plan '{name}'.", nearest(name, PLANS))
    try:
        inspect.signature(PLANS[name]).bind(*positional, **named)
    except TypeError as error:
        shown = str(inspect.signature(PLANS[name])).split(" ->")[0].replace("'", "")
        raise PlanError(f"{name}: {error}.", f"It takes {name}{shown}.") from error
    return PLANS[name](*positional, **named)


def _read(node: ast.expr, text: str) -> Plan:
    """A plan from a syntax tree of products, calls of known names, and literals."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        return _read(node.left, text) * _read(node.right, text)
    if isinstance(node, ast.Name) and node.id not in PLANS:
        raise PlanError(f"There is no plan '{node.id}'.", nearest(node.id, PLANS))
    if isinstance(node, ast.Name):
        raise PlanError(f"The plan '{node.id}' has no arguments.", f"Write {node.id}(...).")
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        raise PlanError(f"{_part(node, text)} in {text!r} is no plan.", f"Plans are joined by *. {_KNOWN}")
    if node.func.id not in PLANS:
        raise PlanError(f"There is no plan '{node.func.id}'.", nearest(node.func.id, PLANS))
    named = {}
    for word in node.keywords:
        if word.arg is None:
            raise PlanError(f"{_part(node, text)} in {text!r}: ** is not allowed.", "Write the arguments out.")
        named[word.arg] = _value(word.value, text)
    return _call(node.func.id, [_value(one, text) for one in node.args], named)


def _value(node: ast.expr, text: str) -> Any:
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError) as error:
        raise PlanError(
            f"{_part(node, text)} in {text!r} is not a literal.",
            "Give numbers, 'text', True, False, None, [lists] or {dicts}.",
        ) from error


def _part(node: ast.expr, text: str) -> str:
    return repr(ast.get_source_segment(text.strip(), node) or ast.unparse(node))


def _plain(value: Any) -> Any:
    """NumPy numbers and arrays as Python's own."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, dict):
        return {_plain(key): _plain(one) for key, one in value.items()}
    return value


def _sequence(plan: str, name: str, value: Any) -> list[Any]:
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise PlanError(f"{plan}: {name}={value!r} is not a list.", f"Write {name}=[...].")
    return list(value)


def _literal(plan: str, name: str, value: Any) -> None:
    plain = value is None or isinstance(value, str | int | float)
    if not plain or (isinstance(value, float) and not math.isfinite(value)):
        raise PlanError(
            f"{plan}: {name} is {value!r}, which cannot be written down.",
            "Give finite numbers, text, True, False or None.",
        )
