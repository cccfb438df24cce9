"""What `main` makes of exceptions: words, a remedy, a status; never a traceback."""

from __future__ import annotations

import errno
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest

from imprint.cli import app as app_module
from imprint.cli import main
from imprint.errors import ColumnError, ImprintError

from .conftest import Imprint

IMPRINT = Path(sys.executable).with_name("imprint")


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch):
    """`failing(error)` makes `imprint doctor` raise that error."""

    def arrange(error: BaseException) -> None:
        def command(as_json: bool = False) -> None:
            raise error

        monkeypatch.setitem(app_module.COMMANDS, "failing", "raises")
        monkeypatch.setitem(sys.modules, "imprint.cli.failing", types.SimpleNamespace(command=command))  # type: ignore[arg-type]

    return arrange


def test_mendable_errors_are_words_with_a_remedy(imprint: Imprint, failing) -> None:
    failing(ColumnError("No column 'x' in data.csv.", "Choose one of: a, b."))
    said = imprint("failing")
    assert said.status == 2
    assert said.err == "error: No column 'x' in data.csv.\n  Choose one of: a, b.\n"
    assert said.out == ""


def test_errors_as_json_keep_type_problem_and_remedy(imprint: Imprint, failing) -> None:
    failing(ColumnError("No column 'x'.", "Choose a."))
    said = imprint("failing", "--as-json")
    assert said.status == 2
    failing(ColumnError("No column 'x'.", "Choose a."))
    from imprint.cli.errors import explain

    assert explain(ColumnError("No column 'x'.", "Choose a."), ["failing", "--json"]) == 2


def test_usage_error_as_json(imprint: Imprint) -> None:
    said = imprint("runs", "--jsn", "--json")
    assert said.status == 2
    assert said.json["error"]["type"] == "UsageError"
    assert "--jsn" in said.json["error"]["problem"]
    assert "imprint runs --help" in said.json["error"]["remedy"]


def test_a_bug_names_a_log_that_holds_the_traceback(imprint: Imprint, failing) -> None:
    failing(ZeroDivisionError("division\nby zero"))
    said = imprint("failing")
    assert said.status == 1
    assert "bug in Imprint" in said.err
    assert "ZeroDivisionError: division by zero" in said.err
    assert "Traceback" not in said.err
    log = Path(re.search(r"(\S+imprint-\S+\.log)", said.err)[1])
    text = log.read_text()
    log.unlink()
    assert "Traceback" in text
    assert "command: imprint failing" in text


def test_debug_shows_the_traceback(imprint: Imprint, failing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMPRINT_DEBUG", "1")
    failing(ZeroDivisionError("x"))
    assert "Traceback" in imprint("failing").err


def test_interrupt_says_how_to_go_on(imprint: Imprint, failing) -> None:
    failing(KeyboardInterrupt())
    said = imprint("failing")
    assert (said.status, said.err) == (130, "interrupted; run again to resume\n")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/data/x"), "The disk is full at /data/x"),
        (OSError(errno.EACCES, "Permission denied", "/root/x"), "No permission to read or write at /root/x"),
        (MemoryError(), "Memory ran out"),
        (RuntimeError("LanceError(IO): No space left on device (os error 28)"), "The disk is full"),
    ],
)
def test_errors_of_the_machine_can_be_mended(imprint: Imprint, failing, error: BaseException, words: str) -> None:
    failing(error)
    said = imprint("failing")
    assert said.status == 2
    assert words in said.err
    assert len(said.err.splitlines()) == 2  # the problem and the remedy


def test_error_without_a_remedy_is_one_line(imprint: Imprint, failing) -> None:
    failing(ImprintError("Something."))
    assert imprint("failing").err == "error: Something.\n"


def test_a_reader_that_stops_early_causes_no_noise() -> None:
    done = subprocess.run(
        f"'{sys.executable}' -m imprint.cli audit --help | head -1", shell=True, capture_output=True, text=True
    )
    assert done.stdout.startswith("Usage: imprint audit")
    assert done.stderr == ""


def test_exit_status_reaches_the_shell() -> None:
    done = subprocess.run([IMPRINT, "show", "/nowhere/data.csv"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")


def test_main_leaves_warnings_as_they_were() -> None:
    import warnings

    before = list(warnings.filters)
    main(["--version"])
    assert list(warnings.filters) == before
