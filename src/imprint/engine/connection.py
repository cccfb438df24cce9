"""A connection to Ray: to a cluster that runs, or to one on this machine that lives as long as it is used.

A cluster of our own listens on the loopback interface only, asks for a token that nobody else knows, reports nothing to anybody, and
keeps its files in a folder that is removed with it.
"""

from __future__ import annotations

import functools
import importlib
import logging
import os
import secrets
import shutil
import socket
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from imprint.engine.engine import Engine
from imprint.errors import EvidenceError, MissingExtra, ResourceError
from imprint.fitting.memory import available_memory

# Seconds in which an address must answer.
PATIENCE = 5.0
# Bytes for results on their way to the driver, beside what is shared; what does not fit is spilled to disk.
RESULTS_BYTES = 256 * 2**20
# Paths of Unix sockets may have 107 characters; Ray's own part of them takes about 70.
LONGEST_FOLDER = 36
OWN_CLUSTER = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_OBJECT_STORE_ALLOW_SLOW_STORAGE": "1",  # a container's small /dev/shm is no error; Ray then maps files
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # on macOS the default: nodes are on this machine, at the loopback address
    "OMP_WAIT_POLICY": "PASSIVE",
}


def ray_module() -> Any:
    """The module `ray`.

    Raises:
        MissingExtra: It is not installed.
    """
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise MissingExtra("ray", "Work on a Ray cluster") from error


@contextmanager
def connected(address: str | None, size: int, cpus: int | None = None) -> Iterator[None]:
    """Be connected to Ray; a connection that the caller had before is used and kept.

    Args:
        address: "host:port" of a cluster that runs, "auto" for one on this machine, None for one of our own.
        size: Bytes that will be shared, for which a cluster of our own makes room.
        cpus: Of a cluster of our own; None for all.

    Raises:
        MissingExtra: Ray is not installed.
        EvidenceError: Nothing answers at the address.
        ResourceError: What is shared does not fit into memory a second time.
    """
    ray = ray_module()
    if ray.is_initialized():
        _must_be(ray, address)
        yield
    elif address is None:
        with _own(ray, size, cpus):
            yield
    else:
        _connect(ray, address)
        try:
            yield
        finally:
            ray.shutdown()


@contextmanager
def held(engine: Engine, size: int) -> Iterator[None]:
    """One connection for several pieces of work that would each make their own; nothing where the engine is local.

    Args:
        engine: Where the work is done.
        size: As of `connected`.
    """
    if engine.remote:
        with connected(engine.address, size):
            yield
    else:
        yield


def _must_be(ray: Any, address: str | None) -> None:
    """Raise if this process is connected to another cluster than the one asked for."""
    current = ray.get_runtime_context().gcs_address
    if address not in (None, "auto", current):
        raise EvidenceError(
            f"This process is connected to the Ray cluster at {current}, not to {address}.",
            "Call ray.shutdown() first, or give no address: then the connection that there is will be used.",
        )


@contextmanager
def _own(ray: Any, size: int, cpus: int | None) -> Iterator[None]:
    needed = size + RESULTS_BYTES
    if needed > available_memory():
        raise ResourceError(
            f"The examples take {size / 2**30:.1f} GiB once more in Ray's object store, and {available_memory() / 2**30:.1f} GiB are free.",
            "Do it in this process, which needs no copy (engine 'local', executor 'batched' or 'sequential'), or use a larger cluster.",
        )
    folder = tempfile.gettempdir() if len(tempfile.gettempdir()) <= LONGEST_FOLDER - 20 else "/tmp"
    where = Path(tempfile.mkdtemp(prefix="imprint-ray-", dir=folder))
    constants: Any = importlib.import_module("ray._private.ray_constants")
    anywhere = getattr(constants, "ENABLE_RAY_CLUSTER", None)  # read from the environment when Ray was imported
    with _environment(OWN_CLUSTER | ({} if _has_token() else {"RAY_AUTH_TOKEN": _token()})):
        try:
            constants.ENABLE_RAY_CLUSTER = False
            _init(
                ray,
                address="local",
                num_cpus=cpus,
                object_store_memory=needed,
                include_dashboard=False,
                _node_ip_address="127.0.0.1",
                _temp_dir=str(where),
            )
            yield
        finally:
            ray.shutdown()
            if anywhere is not None:
                constants.ENABLE_RAY_CLUSTER = anywhere
            shutil.rmtree(where, ignore_errors=True)
    _forget_token()


def _init(ray: Any, **settings: Any) -> None:
    """Call `ray.init` without what it says while it goes well."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "lance is not fork-safe")  # what it forks becomes another program at once
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **settings)


def _connect(ray: Any, address: str) -> None:
    """Connect to a cluster that runs."""
    found = os.environ.get("RAY_ADDRESS", address) if address == "auto" else address
    remedy = "Give the address of its head node (host:port, as `ray start --head` prints it), from a machine that is a node of the cluster."
    if found != "auto":
        host, _, port = found.rpartition(":")
        if "/" in host or not host or not port.isdecimal():
            raise EvidenceError(f"{found!r} is not the address of a Ray cluster.", remedy)
        try:
            socket.create_connection((host.strip("[]"), int(port)), PATIENCE).close()
        except OSError as error:
            raise EvidenceError(f"No Ray cluster answers at {found}: {error}.", remedy) from error
    try:
        _init(ray, address=address)
    except Exception as error:
        with suppress(Exception):
            ray.shutdown()
        raise EvidenceError(f"The Ray cluster at {address!r} cannot be joined: {error}.", remedy) from error


@contextmanager
def _environment(settings: dict[str, str]) -> Iterator[None]:
    """Environment variables for a while; afterwards they, and what Ray says of its authentication, are as before."""
    names = (*settings, "RAY_AUTH_MODE")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _has_token() -> bool:
    """Whether the user decided how Ray's processes prove who they are."""
    return any(name in os.environ for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))


@functools.cache
def _token() -> str:
    """What processes of our own clusters show each other; without it, Ray would write one to the user's home."""
    return secrets.token_hex(32)


def _forget_token() -> None:
    """Let Ray read its settings again when it next connects: another cluster knows nothing of our token."""
    with suppress(ImportError, AttributeError):
        raylet = importlib.import_module("ray._raylet")
        raylet.AuthenticationTokenLoader.instance().reset_cache()
        raylet.Config.initialize("")
