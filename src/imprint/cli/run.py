"""`imprint run`: repeat an audit from its recipe."""

from __future__ import annotations

from typing import Annotated

import typer

from imprint.cli import options as o
from imprint.cli.audit import Fresh, Open, perform
from imprint.errors import RecipeError


def command(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe.yaml, as an audit writes it.")],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a setting; may be given several times."),
    ] = None,
    out: Annotated[
        str | None, typer.Option("--out", "-o", metavar="DIR", help="Folder for the results. Default: the recipe's.")
    ] = None,
    fresh: Fresh = False,
    open_report: Open = False,
    as_json: o.Json = False,
) -> None:
    """Repeat an audit from its recipe.

    Use it to repeat an audit on another machine, after the data has changed, or
    with a setting changed. The recipe holds all settings; unknown keys are
    refused. Relative paths in it are relative to the recipe's folder.

    Examples:
      imprint run audit/recipe.yaml --out again
      imprint run audit/recipe.yaml --set seeds=10 --set learner.epochs=40 -o longer
      imprint run audit/recipe.yaml --set source=newer.csv --out newer
      imprint run audit/recipe.yaml               resumes an interrupted audit

    Keys of a recipe:
      source, target, inputs, id, split, group, weight     as in imprint audit
      task, methods, seeds, folds, verify, out             as in imprint audit
      learner.KEY   model, epochs, batch_size, optimizer, learning_rate,
                    weight_decay, schedule, augment, ema, precision, device, seed,
                    record
      fingerprint   of the data; a note tells when it is no longer the same

    A path given on the command line (--out, --set source=) is relative to where you
    are.

    The output and --json are those of imprint audit.
    """
    from imprint.auditing.recipe import Recipe

    loaded = Recipe.load(recipe).override(settings or [])
    if out is not None:
        loaded = loaded.override([]).model_copy(update={"out": out})
    if loaded.source is None:
        raise RecipeError(
            "This recipe names no source: the audit was of data in memory.", "Give one: --set source=PATH"
        )
    loaded = loaded.model_copy(update={"source": o.source_of(loaded.source)})
    perform(loaded, fresh=fresh, open_report=open_report, as_json=as_json)
