"""`imprint doctor`: is this installation whole, and what has this machine to offer?"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from imprint.cli.options import Json
from imprint.cli.output import emit, pairs, say, size, table

PACKAGES = (
    "torch",
    "pylance",
    "pyarrow",
    "polars",
    "numpy",
    "scikit-learn",
    "skrub",
    "safetensors",
    "pydantic",
    "rich",
)
# Extra -> a distribution that it brings, and what goes without it.
EXTRAS = {
    "text": ("wordllama", "text falls back to hashed n-grams"),
    "image": ("pillow", "image folders cannot be opened"),
    "ray": ("ray", "everything runs on this machine"),
    "app": ("fastapi", "no local web app; the report is a file and needs none"),
}
LOW_MEMORY = 2 << 30
LOW_DISK = 1 << 30


@dataclass
class Check:
    """One line of the doctor's report. `state` is "ok", "optional" (works without it), "low" or "broken"."""

    name: str
    state: str
    detail: str
    remedy: str = ""


def command(as_json: Json = False) -> int:
    """Check this installation and this machine.

    Use it once after installing, and when something fails for no visible reason.
    It trains a tiny model, writes a tiny table to the store, and reads it back.

    Examples:
      imprint doctor
      imprint doctor --json

    What the states mean:
      ok        works
      optional  an extra that is not installed; the line says what goes without it
      low       works, but little memory or disk is free
      broken    has to be mended; the exit status is then 1

    JSON: {"ok": bool, "checks": [{"name", "state", "detail", "remedy"}]}
    """
    checks = [*versions(), *extras(), threads(), memory(), gpu(), store(), torch_check(), lance_check()]
    broken = [check for check in checks if check.state == "broken"]
    if as_json:
        emit({"ok": not broken, "checks": [asdict(check) for check in checks]})
    else:
        say(*table(["part", "state", "detail"], [[c.name, c.state, c.detail] for c in checks]))
        remedies = [(check.name, check.remedy) for check in checks if check.remedy]
        if remedies:
            say("", "What to do:", *pairs(remedies, indent=2))
        say(
            "",
            f"{len(broken)} broken: {', '.join(c.name for c in broken)}."
            if broken
            else "Everything that is needed works.",
        )
    return 1 if broken else 0


def versions() -> list[Check]:
    import importlib.metadata as metadata

    from imprint import __version__

    python = ".".join(map(str, sys.version_info[:3]))
    checks = [Check("imprint", "ok", __version__)]
    fits = (3, 11) <= sys.version_info[:2] <= (3, 13)
    checks.append(Check("python", "ok" if fits else "broken", python, "" if fits else "Use Python 3.11, 3.12 or 3.13."))
    for name in PACKAGES:
        try:
            checks.append(Check(name, "ok", metadata.version(name)))
        except metadata.PackageNotFoundError:
            checks.append(Check(name, "broken", "not installed", f"pip install {name}"))
    return checks


def extras() -> list[Check]:
    import importlib.metadata as metadata

    checks = []
    for extra, (distribution, without) in EXTRAS.items():
        try:
            checks.append(Check(f"extra {extra}", "ok", f"{distribution} {metadata.version(distribution)}"))
        except metadata.PackageNotFoundError:
            checks.append(Check(f"extra {extra}", "optional", f"without: {without}", f"pip install 'imprint[{extra}]'"))
    return checks


def threads() -> Check:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    setting = os.environ.get("OMP_NUM_THREADS")
    return Check("threads", "ok", f"{usable} cores" + (f", OMP_NUM_THREADS={setting}" if setting else ""))


def memory() -> Check:
    import psutil

    state = psutil.virtual_memory()
    low = state.available < LOW_MEMORY
    return Check(
        "memory", "low" if low else "ok", f"{size(state.available)} free of {size(state.total)}",
        "Close other programs before large audits; imprint price says what one takes." if low else "",
    )  # fmt: skip


def gpu() -> Check:
    try:
        import torch

        if torch.cuda.is_available():
            found = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
            return Check("gpu", "ok", ", ".join(f"{one.name} ({size(one.total_memory)})" for one in found))
    except Exception as error:
        return Check(
            "gpu", "broken", one_line(error), "The driver and this build of torch do not fit; or use --device cpu."
        )
    return Check("gpu", "ok", "none; trainings run on the processor")


def home() -> Path:
    """Where corpora are kept: $IMPRINT_HOME, or ~/.cache/imprint."""
    return Path(os.environ.get("IMPRINT_HOME") or Path.home() / ".cache" / "imprint").expanduser()


def store() -> Check:
    place = home()
    try:
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"imprint")
    except OSError as error:
        return Check(
            "store", "broken", f"{place}: {error.strerror}", "Choose a folder that you can write: export IMPRINT_HOME=~/imprint"
        )  # fmt: skip
    free = shutil.disk_usage(place).free
    low = free < LOW_DISK
    return Check(
        "store", "low" if low else "ok", f"{size(free)} free in {place}",
        "Free some disk, or set IMPRINT_HOME to a larger one." if low else "",
    )  # fmt: skip


def torch_check() -> Check:
    """Two steps of gradient descent lower a loss."""
    try:
        import torch

        generator = torch.Generator().manual_seed(0)
        x = torch.randn(64, 4, generator=generator)
        weight = torch.zeros(4, requires_grad=True)
        losses = []
        for _ in range(2):
            loss = (x @ weight - x.sum(1)).square().mean()
            (slope,) = torch.autograd.grad(loss, weight)
            weight = (weight - 0.1 * slope).detach().requires_grad_()
            losses.append(float(loss.detach()))
        if not losses[1] < losses[0]:
            return Check(
                "training", "broken", f"the loss went from {losses[0]:.3g} to {losses[1]:.3g}", "Reinstall torch."
            )
    except Exception as error:
        return Check("training", "broken", one_line(error), "Reinstall torch: pip install --force-reinstall torch")
    return Check("training", "ok", "torch lowers a loss")


def lance_check() -> Check:
    """What is written to a Lance table is read back, in any order."""
    try:
        import lance
        import pyarrow as pa

        with tempfile.TemporaryDirectory(prefix="imprint-doctor-") as folder:
            data = lance.write_dataset(pa.table({"x": [1, 2, 3]}), f"{folder}/t.lance")
            back = data.take([2, 0]).column("x").to_pylist()
        if back != [3, 1]:
            return Check(
                "store format",
                "broken",
                f"wrote 1 2 3, read {back}",
                "Reinstall: pip install --force-reinstall pylance",
            )
    except Exception as error:
        return Check(
            "store format", "broken", one_line(error), "Reinstall: pip install --force-reinstall pylance pyarrow"
        )
    return Check("store format", "ok", "lance writes and reads back")


def one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
