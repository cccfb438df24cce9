"""The command group: names and one-line help are known here, a command's module is imported when it is asked for.

Help is plain text, written as it stands in the docstrings of the commands: every line fits in 80 columns, examples can be
pasted, and nothing is boxed or re-wrapped.
"""

from __future__ import annotations

import importlib
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command as build

from imprint import __version__

# Name -> what it does, in the order in which a new user meets them.
COMMANDS = {
    "audit": "find what is wrong with a training set, and prove that fixing it helps",
    "fit": "train a model and record the training",
    "score": "score each training example: how hard, how late learned, how unsure",
    "trace": "find the training examples that help or harm a prediction",
    "clean": "list wrong labels, duplicates, leaks, outliers; suggest edits",
    "select": "choose the training examples to train on under a budget",
    "forget": "make a model as if it had never seen some examples",
    "erase": "take forgotten examples out of the folder of a run",
    "verify": "hold edits, a trace or a forgetting against retrained models",
    "fleet": "train many variations of a model, and keep what each says",
    "show": "look into a corpus, a run, an answer, or one example",
    "runs": "list the runs under a folder",
    "methods": "list the methods: sign, needs, source; explain one",
    "price": "say the seconds, memory and disk that a command will take",
    "doctor": "check this installation and this machine",
    "run": "repeat an audit from its recipe",
}

HEADER = """Imprint: what every training example does to your model.

Start here:
  imprint audit data.csv --target label --out audit     then open audit/report.html
  imprint audit photos/ --out audit                     one folder per class
"""
FOOTER = """Every command has --help, with examples, and --json for machines: one JSON
document on standard output, everything else on standard error.
Exit status: 0 done, 1 a check failed or Imprint has a bug, 2 something that you
can mend (the message says how), 130 interrupted (run again to resume)."""


class Command(TyperCommand):
    """A command whose help shows its docstring as it is written."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        self.format_usage(ctx, formatter)
        formatter.write(f"\n{(self.help or '').strip()}\n")
        self.format_options(ctx, formatter)


class Group(TyperGroup):
    """A group that imports `imprint.cli.NAME` when NAME is called, and never before."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        if cmd_name not in self.commands:
            self.commands[cmd_name] = load(cmd_name)
        return self.commands[cmd_name]

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            ctx.fail(unknown(name, args[1:]))
        return super().resolve_command(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        width = max(map(len, COMMANDS))
        formatter.write(f"{HEADER}\nCommands:\n")
        formatter.write("".join(f"  {name:<{width}}  {text}\n" for name, text in COMMANDS.items()))
        formatter.write(f"\n{FOOTER}\n")
        self.format_options(ctx, formatter)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Already in `format_help`."""


def load(name: str) -> Any:
    """Import a command's module and build the command from its function, which has the command's name."""
    module = importlib.import_module(f"imprint.cli.{name}")
    one = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    one.command(name, cls=Command, context_settings={"help_option_names": ["-h", "--help"]})(module.command)
    return build(one)


def unknown(name: str, rest: list[str]) -> str:
    """What to say of a word that is no command: the nearest one, or the audit of what looks like data."""
    close = get_close_matches(name, COMMANDS, n=1)
    if close and not Path(name).exists():
        return f"No command '{name}'. Did you mean: imprint {close[0]}"
    if Path(name).exists() or Path(name).suffix or "/" in name:
        words = " ".join(f'"{word}"' if " " in word else word for word in [name, *rest])
        return f"No command '{name}'. Did you mean: imprint {'run' if Path(name).suffix in ('.yaml', '.yml') else 'audit'} {words}"
    return f"No command '{name}'. Known: {', '.join(COMMANDS)}."


app = typer.Typer(
    cls=Group,
    add_completion=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"imprint {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=show_version, is_eager=True)
    ] = False,
) -> None:
    """Imprint: what every training example does to your model."""
