"""`imprint erase`: the bytes of forgotten examples leave the folder of a child."""

from __future__ import annotations

import typer

from imprint.cli import options as o
from imprint.cli.forget import deletion_report
from imprint.cli.output import emit, paragraph, say


def command(run: o.RunPath, as_json: o.Json = False) -> None:
    """Erase forgotten examples from the folder of RUN, a child of imprint forget.

    Use it after imprint forget, when not only the model but the record has to
    forget. RUN gets a corpus of its own without the rows, loses weights that were
    made with them, and its answers lose their ids; then all files are searched
    for their ids, texts, contents and numbers.

    A deletion report that is in RUN (deletion.html) is written anew, with what
    was erased, what the search looked at and what it found.

    Outside RUN nothing is touched: the parent run, its corpus and the source file
    hold the examples as before. Delete them yourself when nothing needs them.

    Examples:
      imprint forget runs/base --ids u-1832 --out runs/without
      imprint erase runs/without
      imprint erase runs/without --json | jq .found

    What the output means:
      found  what is still there, file by file; an encoder may hold a word or a
             number of an example that it was fitted on: method retrain fits it
             again. Exit status 1 if anything was found.

    JSON: {"run", "did": [str], "searched": {"rows", "values", "files"},
          "found": [str], "note", "report"}
    """
    from imprint.forgetting import erase
    from imprint.recording import load

    child = erase(load(o.run_folder(run)))
    done = child.manifest["erased"]
    report = deletion_report(child) if (child.path / "deletion.html").exists() else None
    document = {"run": str(child.path), "note": None, **done, "report": None if report is None else str(report)}
    if as_json:
        emit(document)
    else:
        say(*(f"{one[0].upper()}{one[1:]}." for one in done["did"]))
        searched = done["searched"]
        if searched is None:
            say(done["note"])
        else:
            found = f"{len(done['found'])} found" if done["found"] else "none found"
            say(
                *paragraph(
                    f"Searched {searched['files']:,} files for {searched['values']:,} values of {searched['rows']:,} "
                    f"forgotten rows: {found}."
                )
            )
            say(*(f"  {one}" for one in done["found"]))
        if report is not None:
            say(f"The report is written anew: {report}.")
    if done["found"]:
        raise typer.Exit(1)
