"""`imprint methods`: what can be asked, what a high value means, what it reads, where it is from."""

from __future__ import annotations

import inspect
import textwrap
from typing import Annotated, Any

import typer

from imprint.cli.options import Json
from imprint.cli.output import emit, pairs, say, table, width
from imprint.errors import MethodError, nearest


def command(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Explain this method.")] = None,
    verb: Annotated[
        str | None,
        typer.Option("--verb", metavar="VERB", help="Only those of this verb: score, clean, trace, select, forget."),
    ] = None,
    as_json: Json = False,
) -> None:
    """List the methods, or explain one.

    Use it to choose what to ask of a run. A method is a function from recorded
    evidence to an answer; for each one this says what a higher value means, which
    evidence it reads, and how many trainings it takes beyond the recorded one.

    Examples:
      imprint methods
      imprint methods --verb score
      imprint methods el2n
      imprint methods --json | jq -r '.methods[] | select(.trainings == 0).name'

    What the columns mean:
      higher     what a high value says of an example ("harder", "easier"); for
                 a clean method, of its severity, which runs from 0 to 1
      needs      evidence; what a run lacks is collected once, for all methods
      trainings  extra trainings, each as long as the recorded one; 0 = free

    JSON: {"methods": [{"verb", "name", "kind", "summary", "explanation", "higher",
          "needs": [str], "trainings", "exact", "tasks": [str], "modalities",
          "source"}]}
    """
    from imprint.methods import VERBS, registered

    if verb is not None and verb not in VERBS:
        raise MethodError(f"No verb '{verb}' has methods.", nearest(verb, VERBS))
    found = registered(verb)
    if name is not None:
        known = [one.name for one in found]
        found = [one for one in found if one.name == name]
        if not found:
            raise MethodError(f"No method '{name}'.", nearest(name, known))
    if as_json:
        emit({"methods": [document(one) for one in found]})
    elif name is not None:
        for one in found:
            say(*explain(one), "")
    else:
        for each in dict.fromkeys(one.verb for one in found):
            chosen = [one for one in found if one.verb == each]
            rows = [[one.name, one.kind, one.higher, needs(one), one.trainings] for one in chosen]
            names = ["name", "finds", "higher =", "needs", "trainings"]
            if all(one.kind is None for one in chosen):
                names, rows = [name for name in names if name != "finds"], [[row[0], *row[2:]] for row in rows]
            if each == "forget":  # which reads no evidence, and promises something or not
                names, rows = (
                    ["name", "exact", "what it does"],
                    [[one.name, exactness(one), one.summary] for one in chosen],
                )
            say(f"{each}:", *table(names, rows, indent=2, whole=["name", "finds"]), "")
        say("Explain one: imprint methods NAME")


def exactness(method: Any) -> str:
    """Whether a forget method gives what a training without the examples gives."""
    return "yes" if method.exact else "no"


def needs(method: Any) -> str:
    """The evidence that a method reads, in words."""
    return ", ".join(evidence(method))


def evidence(method: Any) -> list[str]:
    """The kinds of evidence that a method reads, also through values that are derived from them."""
    from imprint.methods import needs_of

    return sorted({(need.kind or need.field).replace("_", "-") for need in needs_of([method])})


def document(method: Any) -> dict[str, Any]:
    return {
        "verb": method.verb, "name": method.name, "kind": method.kind, "summary": method.summary,
        "explanation": explanation(method), "higher": method.higher, "needs": evidence(method),
        "trainings": method.trainings, "exact": method.exact, "tasks": list(method.tasks),
        "modalities": None if method.modalities is None else list(method.modalities), "source": method.source,
    }  # fmt: skip


def explanation(method: Any) -> str:
    """The docstring up to its example."""
    text = inspect.cleandoc(method.function.__doc__ or "")
    return text.split(">>>")[0].strip()


def wrapped(part: str) -> list[str]:
    """A paragraph at this width; one with indented lines (a formula, a list) stays as it is."""
    lines = part.split("\n")
    return lines if any(line.startswith(" ") for line in lines) else textwrap.wrap(" ".join(lines), width() - 2)


def explain(method: Any) -> list[str]:
    ask = (
        f"imprint {method.verb} RUN {'--method ' if method.verb in ('trace', 'select', 'forget') else ''}{method.name}"
    )
    return [
        f"{method.verb}: {method.name}", "",
*(f"  {line}".rstrip() for part in explanation(method).split("\n\n") for line in [*wrapped(part), ""]),
        *pairs(
            [
                ("higher =", method.higher), ("finds", method.kind),
                ("exact", None if method.exact is None else exactness(method)), ("needs", needs(method)),
                ("trainings", f"{method.trainings} beyond the recorded one"), ("tasks", list(method.tasks)),
                ("data", "any" if method.modalities is None else list(method.modalities)), ("source", method.source),
                ("ask", ask),
            ],
            indent=2,
        ),
    ]  # fmt: skip
