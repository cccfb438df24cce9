"""Write an explanation: one self-contained HTML file without any script.

Text is escaped by Jinja; what is drawn is SVG made of numbers; a content security policy allows pictures that are part of the file, and
nothing that is fetched or run.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from imprint.reporting import words
from imprint.reporting.explanation import Explanation, Picture, Shown
from imprint.reporting.report import environment, part


def write_explanation(path: str | os.PathLike[str], found: Explanation) -> Path:
    """Write an explanation.

    Args:
        path: The HTML file to write; its folder is made if need be. A file that exists is replaced at once, never half.
        found: What `explain` found.

    Returns:
        The path of the file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(render_explanation(found), encoding="utf-8", errors="replace")
    draft.replace(path)
    return path


def render_explanation(found: Explanation) -> str:
    """The explanation as HTML text."""
    first = found.queries[0].query if found.queries else None
    title = (
        f"Why {first.predicted}?" if len(found.queries) == 1 and first and first.predicted else "Why these predictions?"
    )
    trust = found.trust
    trusts = [] if trust is None else [(trust.method, trust.lds, *trust.interval, True)]
    trusts += [] if trust is None else [(name, *value, False) for name, value in trust.controls.items()]
    ends = [0.0, *(end for _, _, low, high, _ in trusts for end in (low, high))]

    def whisker_of(low: float, value: float, high: float, own: bool) -> Markup:
        return whisker(low, value, high, own, min(ends), max(ends))

    return environment().get_template("explanation.html").render(
        found=found, title=title, words=words, trusts=trusts, whisker=whisker_of, strip=strip, meter=meter, drawn=drawn, most=most,
        scale=scale, signed=signed, fixed=fixed, ranked=ranked, style=Markup(part("report.css") + part("explanation.css")),
        command=f"imprint verify {shlex.quote(found.run)} --answer {found.answer}",
    )  # fmt: skip


def signed(score: float) -> str:
    """A score with its sign.

    >>> signed(0.01234), signed(-12.0)
    ('+0.0123', '−12')
    """
    return f"{'+' if score >= 0 else words.MINUS}{abs(score):.3g}"


def fixed(value: float) -> str:
    """A value with its sign and three digits.

    >>> fixed(-0.25)
    '−0.250'
    """
    return f"{value:+.3f}".replace("-", words.MINUS)


def ranked(rank: int) -> str:
    """A rank with its sign.

    >>> ranked(1), ranked(-2)
    ('+1', '−2')
    """
    return f"{rank:+d}".replace("-", words.MINUS)


def scale(picture: Picture, pixels: int) -> int:
    """By how much a small picture is enlarged, in whole numbers so that its pixels stay squares."""
    return max(1, pixels // max(picture.width, picture.height))


def most(examples: Sequence[Shown]) -> float:
    """The largest score, by size."""
    return max((abs(one.score or 0.0) for one in examples), default=0.0) or 1.0


def meter(one: Shown, largest: float) -> Markup:
    """A bar as long as the score is large."""
    share = 100 * abs(one.score or 0.0) / largest
    kind = "help" if (one.score or 0.0) >= 0 else "harm"
    return Markup(
        '<svg class="meter" aria-hidden="true"><rect class="ground" width="100%" height="6"/>'
        '<rect class="{}" width="{:.1f}%" height="6"/></svg>'
    ).format(kind, share)


def strip(examples: Sequence[Shown]) -> Markup:
    """The scores of all examples that are shown, on one line with zero marked."""
    scores = [one.score or 0.0 for one in examples]
    low, high = min([0.0, *scores]), max([0.0, *scores])
    width = (high - low) or 1.0

    def place(score: float) -> float:
        return 2 + 96 * (score - low) / width

    dots = Markup("").join(
        Markup('<circle class="{}" cx="{:.2f}%" cy="22" r="5"><title>{}</title></circle>').format(
            "help" if one.rank > 0 else "harm", place(one.score or 0.0), f"{one.id} {signed(one.score or 0.0)}"
        )
        for one in examples
    )
    zero = place(0.0)
    labels = [(zero, "0")]
    labels += [(place(end), signed(end)) for end in (low, high) if abs(place(end) - zero) > 12]
    text = Markup("").join(
        Markup('<text x="{:.2f}%" y="52" text-anchor="{}">{}</text>').format(
            x, "start" if x < 10 else "end" if x > 90 else "middle", label
        )
        for x, label in labels
    )
    return Markup(
        '<svg class="strip" role="img" aria-label="Scores of the examples, from {} to {}">'
        '<line class="axis" x1="2%" x2="98%" y1="22" y2="22"/><line class="axis" x1="{:.2f}%" x2="{:.2f}%" y1="8" y2="36"/>{}{}</svg>'
    ).format(signed(low), signed(high), zero, zero, dots, text)


def whisker(low: float, value: float, high: float, own: bool, least: float, largest: float) -> Markup:
    """A value with its interval, on the common scale from `least` to `largest`."""
    width = (largest - least) or 1.0
    a, b, c, zero = (1 + 98 * (one - least) / width for one in (low, value, high, 0.0))
    return Markup(
        '<svg class="{}" aria-hidden="true"><line class="zero" x1="{:.2f}%" x2="{:.2f}%" y1="0" y2="18"/>'
        '<line x1="{:.2f}%" x2="{:.2f}%" y1="9" y2="9"/><circle cx="{:.2f}%" cy="9" r="4.5"/></svg>'
    ).format("lead" if own else "", zero, zero, a, c, b)


def drawn(one: Shown) -> Markup:
    """Numbers of an array as a line."""
    points = " ".join(
        f"{number / max(1, len(one.line) - 1):.4f},{1 - value:.4f}" for number, value in enumerate(one.line)
    )
    return Markup(
        '<svg class="drawn" viewBox="0 -0.05 1 1.1" preserveAspectRatio="none" role="img" aria-label="{}">'
        '<polyline points="{}"/></svg>'
    ).format(f"{len(one.line)} numbers", points)
