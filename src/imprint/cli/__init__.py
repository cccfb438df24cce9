"""The command line: one file per command, loaded when it is called; `main` turns every exception into words and a status.

Nothing heavy is imported here or at the top of a command's file, so that `imprint --help` answers at once.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from typing import TextIO

__all__ = ["main"]

DONE, BUG, MENDABLE, INTERRUPTED = 0, 1, 2, 130


HOUSE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def noted(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Show Imprint's own warnings as notes; those of other packages are about code, which a user here has not written."""
    if category is UserWarning and os.path.abspath(filename).startswith(HOUSE):
        from imprint.cli.output import note

        note(f"note: {message}")


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status: 0 done, 1 bug or failed check, 2 mendable, 130 interrupted."""
    from imprint.cli.app import app
    from imprint.cli.errors import explain

    # Idle OpenMP threads of PyTorch spin by default, and so take the cores from those that work: on two cores that are also used
    # otherwise, a small training took 20 to 130 s of wall time instead of 13 s. Has to be set before PyTorch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    words = list(sys.argv[1:] if args is None else args)
    debug = bool(os.environ.get("IMPRINT_DEBUG"))
    try:
        import typer.main

        with warnings.catch_warnings():
            if not (debug or sys.warnoptions):
                warnings.simplefilter("always", UserWarning)
                warnings.showwarning = noted
            status = typer.main.get_command(app).main(words, prog_name="imprint", standalone_mode=False)
        if status == INTERRUPTED:
            raise KeyboardInterrupt
        sys.stdout.flush()
        return status if isinstance(status, int) else DONE
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else BUG
    except BrokenPipeError:  # the reader has seen enough (imprint ... | head)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BUG
    except BaseException as error:
        if debug and not isinstance(error, KeyboardInterrupt):
            import traceback

            traceback.print_exception(error)
        return explain(error, words)
