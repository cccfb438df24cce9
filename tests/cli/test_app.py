"""The group of commands: lazy, with help that fits, and with suggestions for what is mistyped."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from imprint import __version__
from imprint.cli.app import COMMANDS, unknown

from .conftest import Imprint

HEAVY = ("torch", "polars", "lance", "pyarrow", "numpy", "plotly", "sklearn")


def test_help_lists_every_command(imprint: Imprint) -> None:
    said = imprint("--help")
    assert said.status == 0
    assert [line.split()[0] for line in said.out.split("Commands:\n")[1].split("\n\n")[0].splitlines()] == list(
        COMMANDS
    )


def test_help_and_version_import_nothing_heavy() -> None:
    for word in ("--help", "--version"):
        code = (
            f"import sys; from imprint.cli import main; main(['{word}']); "
            f"sys.exit(','.join(m for m in {HEAVY} if m in sys.modules) or 0)"
        )
        assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_imports_nothing_heavy(name: str) -> None:
    code = (
        f"import sys; from imprint.cli import main; main(['{name}', '--help']); "
        f"sys.exit(','.join(m for m in {HEAVY} if m in sys.modules) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_help_teaches_and_fits(imprint: Imprint, name: str) -> None:
    said = imprint(name, "--help")
    assert said.status == 0
    assert max(map(len, said.out.splitlines())) <= 80
    for part in ("Use it", "Examples:", "JSON" if name != "run" else "--json", "--json"):
        assert part in said.out, part
    # Every example is a command line that the parser takes as far as its options go.
    examples = re.findall(r"^  (imprint .+?)(?:  .*)?$", said.out, re.M)
    assert len(examples) >= 2
    own = importlib.import_module(f"imprint.cli.{name}")
    assert own.command.__doc__


@pytest.mark.parametrize("name", COMMANDS)
def test_options_in_examples_exist(imprint: Imprint, name: str) -> None:
    text = imprint(name, "--help").out
    body, options = text.split("Options:")[0], text
    for line in re.findall(r"^  (imprint .+)$", body, re.M):
        line = line.split(" | ")[0]
        command = line.split()[1]
        known = options if command == name else imprint(command, "--help").out
        for option in re.findall(r"\s(--?[a-z][a-z-]*)", line):
            assert re.search(rf"^\s+.*{option}\b", known.split("Options:")[1], re.M), (line, option)


def test_version(imprint: Imprint) -> None:
    assert imprint("--version").out == f"imprint {__version__}\n"


def test_nearest_command(imprint: Imprint) -> None:
    said = imprint("adit", "data.csv")
    assert said.status == 2
    assert "Did you mean: imprint audit" in said.err


@pytest.mark.parametrize(
    ("name", "rest", "hint"),
    [
        ("data.csv", ["--target", "y"], "imprint audit data.csv --target y"),
        ("my data.csv", [], 'imprint audit "my data.csv"'),
        ("old/recipe.yaml", [], "imprint run old/recipe.yaml"),
        ("quux", [], "Known: audit, fit"),
    ],
)
def test_a_word_that_is_no_command(name: str, rest: list[str], hint: str) -> None:
    assert hint in unknown(name, rest)


def test_an_existing_file_named_like_a_command_is_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("audits").mkdir()
    assert "imprint audit audits" in unknown("audits", [])


def test_no_command_shows_the_help(imprint: Imprint) -> None:
    said = imprint()
    assert said.status == 2
    assert "Commands:" in said.err
    assert said.out == ""
