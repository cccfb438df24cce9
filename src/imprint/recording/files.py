"""Files that are either complete or absent: write beside, flush to the disk, rename into place."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imprint.errors import ResourceError, RunError

if TYPE_CHECKING:
    from torch import Tensor

# What a full disk, a spent quota and a file-size limit say.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def room(path: Path) -> Iterator[None]:
    """Turn "no space left" into a `ResourceError` that says what to do; Lance and Arrow raise it as OSError text."""
    try:
        yield
    except OSError as error:
        text = str(error)
        if error.errno in FULL or any(os.strerror(code) in text for code in FULL):
            raise ResourceError(
                f"The disk is full: {path} could not be written.",
                "Free disk space and call again with the same path: the run goes on from its last complete checkpoint.",
            ) from error
        raise


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path to write; it takes the place of `path` when the block ends well, and vanishes when it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    remove(temporary)
    try:
        with room(path):
            yield temporary
            if temporary.is_file():
                _flush(temporary)
                temporary.replace(path)
            else:
                remove(path)  # a folder cannot be renamed over another that holds files
                temporary.replace(path)
            _flush(path.parent)
    finally:
        remove(temporary)


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors by name atomically, as safetensors."""
    from safetensors.torch import save_file

    with replacing(path) as temporary:
        save_file({name: value.contiguous().cpu() for name, value in tensors.items()}, temporary)


def read_json(path: Path) -> Any:
    """Read JSON; a missing or damaged file raises `RunError` that names it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RunError(f"{path} is missing.", "Check the path; a run is a folder that imprint.fit wrote.") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise RunError(
            f"{path} is damaged: {error}.", "Restore it from a backup, or fit again into a new folder."
        ) from error


def remove(path: Path) -> None:
    """Remove a file or a folder, if there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
