"""The engine: a small value that says where work is done, and is handed down to whatever collects evidence."""

from __future__ import annotations

from dataclasses import dataclass

from imprint.errors import EvidenceError, nearest

NAMES = ("local", "ray")


@dataclass(frozen=True)
class Engine:
    """Where evidence is collected. The answers are the same.

    Attributes:
        name: "local" (this process) or "ray".
        address: "host:port" of a Ray cluster, "auto" for the one that runs on this machine, or None for one of our own on this
            machine, which ends with the work. A process that is connected to Ray keeps its connection.
        cpus: CPUs, and so threads, of a task that takes gradients; None for as many as this process computes with, or as the largest
            node has if that is fewer. With other numbers of threads a sum may be rounded otherwise.
        retries: How often a part of the work is done again whose worker or node was lost.

    >>> Engine("ray", "10.0.0.1:6379")
    Engine(name='ray', address='10.0.0.1:6379', cpus=None, retries=3)
    """

    name: str = "local"
    address: str | None = None
    cpus: int | None = None
    retries: int = 3

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise EvidenceError(f"No engine '{self.name}'.", nearest(self.name, NAMES))
        if self.name == "local" and self.address is not None:
            raise EvidenceError(f"The address {self.address} is that of a Ray cluster.", "Ask for the engine 'ray'.")
        for name, value, least in (("cpus", self.cpus, 1), ("retries", self.retries, 0)):
            if value is not None and value < least:
                raise EvidenceError(f"{name}={value} is less than {least}.", f"Give {name} as {least} or more.")

    @property
    def remote(self) -> bool:
        """Whether work is done by tasks of a cluster."""
        return self.name == "ray"


LOCAL = Engine()


def engine_of(engine: str | Engine) -> Engine:
    """The engine that is meant by a name or by an engine with settings.

    >>> engine_of("local") == LOCAL
    True
    """
    return Engine(engine) if isinstance(engine, str) else engine
