"""The page of a comparison: it says what the answer holds, whatever that is, and asks nothing of the network."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from browser import Browser, chromium
from hypothesis import given
from hypothesis import strategies as st
from materials import HOSTILE

from imprint.answers import Comparison
from imprint.reporting import write_comparison
from imprint.reporting.comparison import Measured, laid_out, targets_of
from imprint.reporting.comparison_page import Drawing, render_comparison, title
from imprint.reporting.svg import ticks

FULL = 0.9
SEEDS = 3


def around(value: float | None, reach: float = 0.02) -> tuple[float | None, float | None, float | None]:
    return (value, None, None) if value is None else (value, value - reach, value + reach)


def comparison(
    leads: dict[str, list[float | None]], budgets: tuple[float, ...] = (0.1, 0.5), regimes: tuple[str, ...] = ("epochs", "steps"),
    curves: bool = False, **more: Any,
) -> Comparison:  # fmt: skip
    """Methods with these leads over random by budget; None: no model. Random is at 0.7, 0.8, ... by budget."""
    rows, summaries, points = [], [], []
    for regime in regimes:
        arms = [("full", 1.0, FULL, None), *(("random", b, 0.7 + 0.1 * i, None) for i, b in enumerate(budgets))]
        arms += [
            (name, b, None if lead is None else 0.7 + 0.1 * i + lead, lead)
            for name, by_budget in leads.items()
            for i, (b, lead) in enumerate(zip(budgets, by_budget, strict=True))
        ]
        for method, budget, value, lead in arms:
            trained = value is not None
            cell = {"method": method, "budget": budget, "regime": regime}
            summaries.append({
                **cell, "anew": method == "rs2",
                "examples": int(1000 * budget), "steps": 40.0 * trained, "seeds": SEEDS, "select_seconds": 0.5,
                "recorded_seconds": 0.0, "train_seconds": 2.0 if trained else None,
                **dict(zip(("accuracy", "accuracy_low", "accuracy_high"), around(value), strict=True)),
                **dict(zip(("over_random", "over_random_low", "over_random_high"), around(lead), strict=True)),
                **dict(zip(("over_full", "over_full_low", "over_full_high"), around(value and value - FULL), strict=True)),
                **dict(zip(("worst_group", "worst_group_low", "worst_group_high"), around(value and value - 0.2), strict=True)),
                **dict(zip(("ece", "ece_low", "ece_high"), around(0.05 if trained else None, 0.01), strict=True)),
                "nll": 0.4 if trained else None,
            })  # fmt: skip
            for seed in range(SEEDS):
                rows.append({**cell, "seed": seed, "accuracy": value})
                points += [
                    {**cell, "seed": seed, "epoch": epoch, "step": 10 * epoch, "seconds": 0.5 + 0.5 * epoch,
                     "accuracy": value * epoch / 4}
                    for epoch in range(1, 5) if trained and curves
                ]  # fmt: skip
    columns = {name: [one[name] for one in summaries] for name in summaries[0]}
    about = {
        "verb": "verify", "methods": tuple(leads), "source": {}, "higher": {"accuracy": "better"},
        "run": {"path": "runs/base", "corpus": "0"},
        "cost": {"seconds": 12.0, "trainings": 30.0}, "table": pl.DataFrame(rows, infer_schema_length=None), "metric": "accuracy",
        "examples": 500, "training": 1000, "worst": "class", "full_seconds": 2.5, "full_steps": 40, "intervals": columns,
        "points": {name: [one[name] for one in points] for name in points[0]} if points else {},
    }  # fmt: skip
    return Comparison(**{**about, **more})


@pytest.fixture(scope="module")
def page() -> Iterator[Browser]:
    if chromium() is None:
        pytest.skip("no chromium")
    with Browser() as browser:
        yield browser


def test_methods_stand_by_their_lead_and_controls_apart() -> None:
    found = comparison({"worse": [-0.1, -0.05], "better": [0.1, 0.05], "late": [0.01, None]})
    sections = laid_out(found)
    assert [one.regime for one in sections] == ["epochs", "steps"]
    for section in sections:
        assert [row.method for row in section.rows] == ["better", "late", "worse"]
        assert (section.random.method, section.full.method) == ("random", "full")
        assert [cell.budget for cell in section.rows[0].cells] == [0.1, 0.5]
        assert section.rows[1].cells[1].metric == Measured(None)
    assert title(sections[0]) == "better is better than random"
    assert title(laid_out(comparison({"worse": [-0.1, -0.05]}))[0]) == "Nothing is clearly better than random"


def test_the_page_holds_the_numbers(tmp_path: Path) -> None:
    found = comparison({"rs2": [0.123, 0.05]}, notes=("a note",))
    html = write_comparison(tmp_path / "new" / "page.html", found).read_text()
    for word in (
        "rs2",
        "+12.3",
        "82.3",
        "a note",
        "Weakest Class".lower(),
        "Calibration error",
        "runs/base",
        "30 trainings",
    ):
        assert word in html
    assert "--curves" in html  # how to get what is not there
    assert "by time" not in html
    assert re.findall(r'(?:src|href)="(?!data:|#)', html) == []


def test_curves_are_drawn_with_the_times(tmp_path: Path) -> None:
    found = comparison({"rs2": [0.2, 0.05]}, curves=True)
    assert targets_of(found) == pytest.approx((0.81, 0.855, 0.891))
    (row,) = laid_out(found)[0].rows
    assert [len(line.seconds) for line in row.lines] == [4, 4]
    # 0.9 at the end, after 2.5 s; three quarters of it after 2 s.
    assert row.times[0] == (2.5, 2.5, 2.5)
    assert row.times[1] == (2.5, None, None)
    html = render_comparison(found)
    assert "by time" in html
    assert "2.5 s" in html


def test_what_was_not_measured_is_left_out() -> None:
    found = comparison({"rs2": [None, None]})
    html = render_comparison(found)
    assert "no model" in html
    none = replace(
        found,
        worst="",
        intervals={
            **found.intervals,
            **{f"ece{end}": [None] * len(found.intervals["ece"]) for end in ("", "_low", "_high")},
        },
    )
    html = render_comparison(none)
    assert "Calibration error" not in html
    assert "eakest" not in html


def test_a_single_budget_and_a_metric_that_is_no_share() -> None:
    found = comparison({"rs2": [0.2]}, budgets=(0.3,), regimes=("time",))
    renamed = {name.replace("accuracy", "r2"): values for name, values in found.intervals.items()}
    r2 = replace(found, metric="r2", intervals=renamed, table=found.table.rename({"accuracy": "r2"}))
    html = render_comparison(r2)
    assert "+0.200" in html
    assert "in points" not in html


def test_random_alone_is_a_row() -> None:
    (section,) = laid_out(comparison({}, regimes=("steps",)))
    assert [row.method for row in section.rows] == ["random"]
    assert section.random is None
    assert "What random examples are worth" in render_comparison(comparison({}))


@given(st.floats(-2, 2), st.floats(1e-3, 3))
def test_ticks_are_few_and_within(low: float, width: float) -> None:
    found = ticks(low, low + width)
    assert 1 <= len(found) <= 5
    assert all(low - 1e-6 <= one <= low + width + 1e-6 for one in found)
    assert found == sorted(set(found))


def test_one_bad_method_and_one_wide_interval_do_not_flatten_the_others() -> None:
    good = {f"good {number}": [0.05, 0.02] for number in range(4)}
    found = comparison({**good, "terrible": [-0.65, -0.7], "wide": [0.0, 0.0]})
    wide = found.intervals["method"].index("wide")
    for name, reach in (("accuracy", 3.0), ("over_random", 3.0)):
        for end, sign in (("low", -1), ("high", 1)):
            found.intervals[f"{name}_{end}"][wide] += sign * reach
    drawing, section = Drawing(found), laid_out(found)[0]
    low, high = drawing.range(section)
    assert 0.5 < low < 0.7
    assert FULL <= high < FULL + 0.1
    least, largest = drawing.scale(section, "lead")
    assert 0.05 < largest < 0.1
    assert least > -0.5


def test_hostile_names_stay_text(page: Browser, tmp_path: Path) -> None:
    found = comparison(
        {word: [0.01 * number, 0.0] for number, word in enumerate(HOSTILE)}, notes=tuple(HOSTILE), curves=True,
        run={"path": HOSTILE[0], "corpus": "0"},
    )  # fmt: skip
    path = write_comparison(tmp_path / "page.html", found)
    page.errors.clear()
    page.requests.clear()
    page.open(path)
    shown = page.evaluate("[...document.querySelectorAll('#steps figcaption')].map(e => e.textContent)")
    assert set(shown) == set(HOSTILE)
    assert page.evaluate("document.scripts.length") == 0
    assert page.errors == []
    assert page.requests == [path.resolve().as_uri()]


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_it_fits_the_screen(page: Browser, tmp_path: Path, width: int, dark: bool) -> None:
    leads = {
        f"a-method-with-a-long-name-{number}": [0.02 * number - 0.1, 0.01 * number, -0.01, 0.0] for number in range(12)
    }
    found = comparison(leads, budgets=(0.05, 0.1, 0.3, 0.9), curves=True)
    path = write_comparison(tmp_path / "page.html", found)
    page.resize(width, 844)
    page.dark(dark)
    page.open(path)
    outside = page.evaluate(
        "[...document.querySelectorAll('main *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1"
        " && !e.closest('.scroll, svg, .bar nav')).map(e => e.outerHTML.slice(0, 90))"
    )
    assert outside == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
