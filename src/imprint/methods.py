"""The registry: what a method declares, and how its needs become one shared collection pass.

A method is a pure function from evidence to an answer, and can be called alone on plain tensors. Registering it adds what the
system has to know: its verb, its sign, its source, the evidence that it needs and the tasks that it serves.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from imprint.errors import MethodError, nearest
from imprint.recording.needs import Need

Function = TypeVar("Function", bound=Callable[..., Any])

# Packages that register methods when imported.
VERBS = {"score": "imprint.scoring", "clean": "imprint.cleaning"}
ALL_TASKS = ("classification", "multilabel", "regression")


@dataclass(frozen=True)
class Method:
    """A registered method.

    Attributes:
        verb: The verb that it serves ("score", "clean").
        name: What users type.
        function: The pure function; its parameter names are the names of `needs`.
        higher: What a higher value means ("harder", "more likely mislabelled"); for a clean method, of its severity.
        needs: The evidence that it reads.
        source: Where it is from.
        tasks: The tasks that it serves.
        modalities: The modalities that it serves; None for all.
        rowwise: Whether an example's value depends on this example's evidence alone, so that blocks can be computed apart.
        kind: For a clean method, the kind of finding.
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

    @property
    def summary(self) -> str:
        """First line of the function's docstring."""
        return (self.function.__doc__ or "").strip().split("\n")[0]

    @property
    def trainings(self) -> int:
        """How many extra trainings its evidence takes beyond the recorded one."""
        return max((getattr(need, "folds", 0) for need in self.needs), default=0)


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


def needs_of(methods: Iterable[Method]) -> set[Need]:
    """The union of what these methods need: one collection pass serves all."""
    return {need for one in methods for need in one.needs}
