"""Write the report: one self-contained HTML file.

Nothing in the file can reach out or be made to run: text is escaped by Jinja, data travels as JSON in a block that is not
executed, the page's scripts only ever set text (never markup), and a content security policy allows this page's own script by its
hash and nothing else, so that even a mistake in escaping could not execute what a data set contains.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import polars as pl
from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from imprint.reporting import words
from imprint.reporting.material import Material
from imprint.reporting.payload import payload, split_order

PAGE = files("imprint.reporting") / "page"
SCRIPTS = ("elements.js", "charts.js", "datamap.js", "findings.js", "sections.js")

NOUNS = {"image": "image", "text": "text", "table": "row", "array": "array"}


def write_report(path: str | os.PathLike[str], material: Material) -> Path:
    """Write the report of an audit.

    Args:
        path: The HTML file to write; its folder is made if need be. A file that exists is replaced at once, never half.
        material: What to show.

    Returns:
        The path of the file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(render(material), encoding="utf-8", errors="replace")
    draft.replace(path)
    return path


def render(material: Material) -> str:
    """The report as HTML text."""
    data = payload(material)
    script = Markup('"use strict";\n(() => {\n' + "\n".join(part(name) for name in SCRIPTS) + "\n})();")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = environment().get_template("report.html")
    return page.render(
        material=material,
        words=words,
        kinds=words.KINDS,
        colours={kind: k for k, kind in enumerate(words.KINDS)},
        created=f"{material.created.day} {material.created:%B %Y, %H:%M %Z}".rstrip() if material.created else "",
        noun=NOUNS.get(material.modality, "row"),
        data=data,
        hero=hero(material),
        splits=splits(material),
        roles=roles(material),
        verdict=words.verdict(material.verdict) if material.verdict else None,
        json=embed(data),
        style=Markup(part("report.css")),
        script=script,
        digest=digest,
    )


def embed(data: Any) -> Markup:
    """JSON that may stand inside a script element: no `<`, so neither `</script>` nor `<!--` can occur in it.

    >>> embed({"label": "</script>"})
    Markup('{"label":"\\\\u003c/script>"}')
    """
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c"))


def splits(material: Material) -> dict[str, int]:
    """Rows per split, as given or counted."""
    counts = material.splits or dict(material.examples.group_by("split", maintain_order=True).len().rows())
    return {name: counts[name] for name in sorted(counts, key=split_order)}


def roles(material: Material) -> list[tuple[str, str]]:
    """Role -> columns, in words."""
    named = []
    for role, columns in material.roles.items():
        if columns:
            names = [columns] if isinstance(columns, str) else list(columns)
            more = f" and {len(names) - 12} more" if len(names) > 12 else ""
            named.append((role, ", ".join(names[:12]) + more))
    return named


def hero(material: Material) -> dict[str, Any]:
    """The figures at the top: findings by kind, flagged examples, suspect share of the training labels."""
    findings = material.findings
    counts = findings.group_by("kind").len().sort(["len", "kind"], descending=[True, False]).rows()
    in_train = material.examples.filter(pl.col("split") == "train").select("id")
    suspects = findings.filter(pl.col("kind") == "label").select("id").unique()
    suspect_count = in_train.join(suspects, on="id", how="semi").height
    flagged = findings.join(material.examples.select("id"), on="id", how="semi")["id"].n_unique()
    suggested = findings.group_by("suggestion").len()
    return {
        "counts": counts,
        "findings": len(findings),
        "flagged": flagged,
        "train": in_train.height,
        "suspects": suspect_count,
        "suspect_share": suspect_count / in_train.height if in_train.height else 0.0,
        "suggested": dict(suggested.rows()),
    }


def part(name: str) -> str:
    """The text of a file of the page."""
    return (PAGE / name).read_text(encoding="utf-8")


@cache
def environment() -> Environment:
    """Templates of pages; what they are given is escaped."""
    return Environment(
        loader=FunctionLoader(part), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
