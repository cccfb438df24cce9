"""What is said when a command fails: the problem, the remedy and a status; never a traceback on the screen.

A traceback of a bug goes to a log file whose path is named; `IMPRINT_DEBUG=1` shows it at once.
"""

from __future__ import annotations

import errno
import re
import sys
import tempfile
import traceback
from collections.abc import Sequence

import typer

from imprint.cli import BUG, INTERRUPTED, MENDABLE
from imprint.cli.output import emit, note
from imprint.errors import ImprintError, ResourceError, SourceError

# Arguments of the Python calls that are options of the same name here.
OPTION = re.compile(
    r"\b(target|inputs|id|split|group|weight|task|model|epochs|batch_size|optimizer|learning_rate|weight_decay|schedule|augment"
    r"|ema|precision|device|seed|seeds|folds|methods|executor"
    r"|processes|keep|plan|address)=('?)([\w./:<>-]*\w)\2"
)
SHARES = re.compile(r"split=\{'train': ([\d.]+), 'test': ([\d.]+)\}")
# Click lives inside newer versions of Typer; its base of usage errors is found without naming the place.
UsageError = typer.BadParameter.__mro__[1]


def explain(error: BaseException, words: Sequence[str]) -> int:
    """Say what went wrong on standard error, and as a JSON object on standard output with --json.

    Args:
        error: What was raised.
        words: The command line, for --json and for the log.

    Returns:
        The exit status.
    """
    error = mendable(error)
    as_json = "--json" in words
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        kind, problem, remedy, status = "Interrupted", "interrupted; run again to resume", "", INTERRUPTED
        note(problem)
    elif isinstance(error, ImprintError):
        kind, status = type(error).__name__, MENDABLE
        problem, remedy = as_typed(error.problem), as_typed(error.remedy)
        note(f"error: {problem}" + "".join(f"\n  {line}" for line in remedy.splitlines()))
    elif isinstance(error, UsageError):
        context = getattr(error, "ctx", None)
        where = context.command_path if context else "imprint"
        shown = no_args(error)
        if shown is not None:
            note(shown)
            return MENDABLE
        kind, problem, remedy, status = (
            "UsageError",
            str(getattr(error, "message", error)),
            f"See: {where} --help",
            MENDABLE,
        )
        note(f"error: {problem}\n  {remedy}")
    else:
        log = write_log(error, words)
        text = " ".join(str(error).split())
        kind, status = type(error).__name__, BUG
        problem = f"{kind}: {text[:300]}"
        remedy = f"The traceback is in {log}; please report it with what you typed."
        note(f"error: this is a bug in Imprint, not in your data.\n  {problem}\n  {remedy}")
    if as_json:
        emit({"error": {"type": kind, "problem": problem, "remedy": remedy}})
    return status


def as_typed(text: str) -> str:
    """Python arguments in a message as the options that are typed here.

    >>> as_typed("Use model='auto', or fit again with resume=False.")
    'Use --model auto, or fit again with --fresh.'
    >>> as_typed("Give it: imprint.load(path, model=YourFactory).")
    'Give it: imprint.load(path, model=YourFactory).'
    """
    if re.search(r"\w\(", text):  # a call in Python is given whole
        return text
    text = text.replace("resume=False", "--fresh").replace("parameters=True", "--parameters")
    text = SHARES.sub(r"--split \1/\2", text)
    return OPTION.sub(lambda found: f"--{found[1].replace('_', '-')} {found[3]}", text)


def mendable(error: BaseException) -> BaseException:
    """Operating-system and memory errors that a user can mend, in Imprint's words; anything else unchanged."""
    if isinstance(error, MemoryError):
        return ResourceError(
            "Memory ran out.", "Close other programs, use fewer rows or a smaller --batch-size; see: imprint price"
        )
    if isinstance(error, OSError):
        where = f" at {error.filename}" if error.filename else ""
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return ResourceError(f"The disk is full{where}.", "Free some space and run again; finished work is kept.")
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return ResourceError(
                f"No permission to read or write{where}.", "Choose another folder, or change its rights."
            )
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            return SourceError(f"{error.filename} cannot be a path: {error.strerror}.", "Check the path.")
        if error.errno == errno.EMFILE:
            return ResourceError("Too many open files.", "Raise the limit: ulimit -n 4096")
    if "No space left on device" in str(error):  # Lance wraps the operating system's error in its own type
        return ResourceError("The disk is full.", "Free some space and run again; finished work is kept.")
    return error


def no_args(error: BaseException) -> str | None:
    """The help text, where the mistake was to give no command at all."""
    if type(error).__name__ != "NoArgsIsHelpError":
        return None
    context = getattr(error, "ctx", None)
    return context.get_help() if context else None


def write_log(error: BaseException, words: Sequence[str]) -> str:
    """Write the traceback, the command line and the versions to a file in the temporary folder; returns its path."""
    from imprint import __version__

    with tempfile.NamedTemporaryFile(
        "w", prefix="imprint-", suffix=".log", delete=False, encoding="utf-8", errors="replace"
    ) as log:
        log.write(f"imprint {__version__}, Python {sys.version}\ncommand: imprint {' '.join(words)}\n\n")
        log.write("".join(traceback.format_exception(error)))
        return log.name
