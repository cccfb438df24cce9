"""Write the pages that come from the code: the table of methods and the command line. `make docs` runs this; a test holds it.

python docs/generate.py
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from imprint.cli.app import COMMANDS
from imprint.methods import Method, Scored, registered
from imprint.recording.needs import Need

REFERENCE = Path(__file__).with_name("reference")

METHODS = """# Methods

<!-- Written by docs/generate.py from the registry: do not edit. -->

Every method is a function from evidence to an answer, registered under the verb that calls it. `higher` says what a larger value
means; for a `clean` method, it is said of the finding's severity. *Needs* is the evidence that it reads: `dynamics` is recorded
while training, `outputs` and `features` take one pass over the data, `out_of_fold` takes as many extra trainings as there are
folds. `imprint methods NAME` shows one of them in the terminal.
"""

COMMAND_LINE = """# Command line

<!-- Written by docs/generate.py from the commands: do not edit. -->

What `imprint COMMAND --help` says.

```text
{overview}
```
"""

VERBS = {
    "score": "How hard, late learned, forgotten or unsure is each example? `imprint.score(run, [names])`",
    "clean": "What is wrong with the data? `imprint.clean(run)`",
    "trace": "Which training examples made the model say this? `imprint.trace(run, queries)`",
    "select": "Which examples should a model be trained on, under a budget? `imprint.select(run, budget, method)`",
    "forget": "How does the model look that never saw these examples? `imprint.forget(run, ids, method=...)`; *exact* methods say so.",
}


def evidence(need: Need) -> str:
    """A need in words: the evidence it is read from, and the part of it."""
    if isinstance(need, Scored):
        return f"score: {need.method}"
    if need.kind is None:
        return need.field
    folds = getattr(need, "folds", None)
    return (
        f"{need.kind} ({folds} folds)"
        if folds
        else f"{need.kind}" + (f": {need.field}" if need.field != need.kind else "")
    )


def linked(source: str) -> str:
    """A source with its arXiv number as a link."""
    return re.sub(r"arXiv:(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", source)


def row(one: Method) -> str:
    """One line of the table."""
    serves = ", ".join(one.tasks) + (f" ({', '.join(one.modalities)})" if one.modalities else "")
    needs = ", ".join(dict.fromkeys(evidence(need) for need in one.needs))
    higher = f"{one.higher}, exact" if one.exact else one.higher
    cells = (f"`{one.name}`", one.summary, higher, needs, serves, linked(one.source))
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def methods_page() -> str:
    """The page `reference/methods.md`, from the registry."""
    parts = [METHODS]
    for verb in sorted({one.verb for one in registered()}, reverse=True):
        lines = [row(one) for one in registered(verb)]
        parts.append(
            f"## {verb}\n\n{VERBS.get(verb, '')}\n\n| name | what it computes | higher = | needs | serves | source |\n"
            "|---|---|---|---|---|---|\n" + "\n".join(lines) + "\n"
        )
    return "\n".join(parts)


def help_of(*command: str) -> str:
    """The help of a command, as it stands in a terminal of 80 columns."""
    words = [sys.executable, "-m", "imprint.cli", *command, "--help"]
    plain = {**os.environ, "COLUMNS": "80", "NO_COLOR": "1", "TERM": "dumb"}
    return subprocess.check_output(words, text=True, env=plain).strip()


def cli_page() -> str:
    """The page `reference/cli.md`, from the commands' own help."""
    parts = [COMMAND_LINE.format(overview=help_of())]
    parts += [f"## {name}\n\n```text\n{help_of(name)}\n```\n" for name in COMMANDS]
    return "\n".join(parts)


PAGES = {"methods.md": methods_page, "cli.md": cli_page}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (REFERENCE / name).write_text(page(), encoding="utf-8")
