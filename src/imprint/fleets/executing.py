"""The contract of executors: given what is shared and a list of members, train them and hand over what each says of the queries.

Every executor gives the same answers: a member's order of examples, initial weights and dropout follow from its seed alone, not from
who else is trained beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from jaxtyping import Float
from torch import Tensor

from imprint.engine import Engine
from imprint.errors import EvidenceError, nearest
from imprint.fitting import Progress, silent

if TYPE_CHECKING:
    from imprint.fleets.member import Member
    from imprint.fleets.shared import Shared

NAMES = ("auto", "steady", "batched", "sequential", "cluster")


@dataclass(frozen=True)
class Finished:
    """Members that were trained together.

    Attributes:
        numbers: Which they are: places in the sequence of members.
        outputs: `[member, query, ...]`, float32 on the CPU.
        seconds: Wall-clock time of each; of members that were trained as one program, their share of its time.
        parameters: Trained weights of each, by name, where they were asked for.
    """

    numbers: list[int]
    outputs: Float[Tensor, "member query ..."]
    seconds: list[float]
    parameters: list[dict[str, Tensor]] | None = None


class Executor(Protocol):
    """Trains members. A small immutable object that holds settings and no state."""

    @property
    def name(self) -> str:
        """One of `NAMES`."""
        ...

    def why_not(self, shared: Shared) -> str | None:
        """Why it cannot train what is shared, in words; None if it can."""
        ...

    def run(
        self,
        shared: Shared,
        members: Sequence[Member],
        numbers: Sequence[int],
        queries: Tensor,
        *,
        parameters: bool = False,
        progress: Progress = silent,
    ) -> Iterator[Finished]:
        """Train some of the members.

        Args:
            shared: What they have in common.
            members: All members; an item is made when it is asked for.
            numbers: Which of them to train.
            queries: Rows whose outputs are wanted.
            parameters: Whether the trained weights are wanted as well.
            progress: Told the members done.

        Yields:
            Each of `numbers` once, in any order, a few at a time; what is yielded is dropped before the next members are trained.
        """
        ...


def execute(
    shared: Shared,
    members: Sequence[Member],
    *,
    queries: Tensor,
    executor: str | Executor = "auto",
    numbers: Sequence[int] | None = None,
    parameters: bool = False,
    progress: Progress = silent,
) -> Iterator[Finished]:
    """Train members and yield what each says of the queries; see `Executor.run`.

    Args:
        shared: What they have in common (`share`).
        members: The members.
        queries: Rows whose outputs are wanted.
        executor: "auto" (the fastest by a short measured price), "steady" (by a rule, so that the same call always takes the same one),
            "batched", "sequential", "cluster", or an executor with settings.
        numbers: Which members to train; None for all.
        parameters: Whether the trained weights are wanted as well.
        progress: Told the members done.

    Raises:
        EvidenceError: No such executor, or it cannot train these members.
    """
    wanted = list(range(len(members))) if numbers is None else list(numbers)
    if not wanted:
        return
    chosen, _ = resolve(executor, shared, members, wanted, len(queries))
    reason = chosen.why_not(shared)
    if reason is not None:
        raise EvidenceError(
            f"The executor '{chosen.name}' cannot train these members: {reason}.",
            "Use executor='sequential', which trains any model, or 'auto'.",
        )
    yield from chosen.run(shared, members, wanted, queries, parameters=parameters, progress=progress)


def resolve(
    executor: str | Executor, shared: Shared, members: Sequence[Member], numbers: Sequence[int], queries: int
) -> tuple[Executor, str]:
    """The executor that is meant, and why it is this one: "auto" is measured, "steady" follows a rule."""
    if not isinstance(executor, str):
        return executor, "asked for"
    if executor == "auto":
        from imprint.fleets.choosing import choose

        choice = choose(shared, members, numbers, queries)
        return choice.executor, choice.why
    if executor == "steady":
        from imprint.fleets.choosing import steady

        return steady(shared), "by the rule for this model and device"
    if executor == "sequential":
        from imprint.fleets.sequential import Sequential

        return Sequential(), "asked for"
    if executor == "batched":
        from imprint.fleets.batched import Batched

        return Batched(), "asked for"
    if executor == "cluster":
        from imprint.fleets.cluster import Cluster

        return Cluster(), "asked for"
    raise EvidenceError(f"No executor '{executor}'.", nearest(executor, NAMES))


def executor_on(engine: Engine) -> str | Executor:
    """What trains a fleet that is evidence of a run. By a rule and not by a measurement, so that the same question gets the same answer.

    On a cluster the rule decides how each task trains its members.
    """
    if not engine.remote:
        return "steady"
    from imprint.fleets.cluster import Cluster

    return Cluster(engine.address, retries=engine.retries)
