"""Majority against minority accuracy: fits against NumPy and the F test, planted moons and lines, checkpoints and fleets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import stats

import imprint
from imprint.cleaning import subpopulations
from imprint.cleaning.subpopulations import association, fitted, major_cells
from imprint.errors import EvidenceError, MethodError
from imprint.fleets import sizes


def test_fits_are_those_of_least_squares(rng: np.random.Generator) -> None:
    """Coefficients as NumPy's; p as of the F test of the larger model against the smaller."""
    x = rng.uniform(0.5, 0.99, 12)
    y = 0.2 + 0.5 * x + 0.3 * x**2 + rng.normal(0, 0.02, 12)
    fit = fitted(x, y)
    line, parabola = np.polynomial.polynomial.polyfit(x, y, 1), np.polynomial.polynomial.polyfit(x, y, 2)
    np.testing.assert_allclose(fit.line, line, rtol=1e-8)
    np.testing.assert_allclose(fit.parabola, parabola, rtol=1e-6)
    errors = [float(((y - np.polynomial.polynomial.polyval(x, one)) ** 2).sum()) for one in (line, parabola)]
    assert fit.bend == pytest.approx(1 - errors[1] / errors[0])
    assert fit.r2_line == pytest.approx(stats.linregress(x, y).rvalue ** 2)
    assert fit.p == pytest.approx(stats.f.sf((errors[0] - errors[1]) / (errors[1] / 9), 1, 9), rel=1e-6)


def test_a_moon_bends_upwards_and_a_line_does_not(rng: np.random.Generator) -> None:
    x = np.linspace(0.6, 0.98, 15)
    noise = rng.normal(0, 0.01, 15)
    moon = fitted(x, 3 * (x - 0.65) ** 2 + 0.3 + noise)
    assert moon.moon
    assert moon.bend > 0.9
    line = fitted(x, 0.8 * x + noise)
    assert not line.moon
    assert not fitted(x, 0.9 - 3 * (x - 0.98) ** 2 + noise).moon  # it bends, downwards


def test_exact_lines_have_no_bend() -> None:
    x = np.linspace(0.5, 0.9, 7)
    fit = fitted(x, 2 * x - 0.4)
    assert (fit.bend, fit.p) == (0.0, 1.0)
    assert fit.line == pytest.approx((-0.4, 2.0))


def test_lines_are_rarely_taken_for_moons() -> None:
    """100 noisy lines: a two-sided test at 5 % calls about 2.5 of them upward moons; 8 or more happen once in 300."""
    called = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        x = rng.uniform(0.6, 0.95, 12)
        called += fitted(x, 0.7 * x + rng.normal(0, 0.03, 12)).moon
    assert called < 8


def test_few_models_are_refused() -> None:
    with pytest.raises(EvidenceError, match="5 models"):
        fitted(np.linspace(0.5, 0.9, 5), np.linspace(0.5, 0.9, 5))
    with pytest.raises(EvidenceError, match="3 different"):
        fitted(np.array([0.5, 0.6, 0.7] * 3), np.arange(9) / 10)


@given(arrays.arrays(np.int64, st.tuples(st.integers(2, 5), st.integers(2, 5)), elements=st.integers(1, 50)))
def test_association_is_cramers_v(count: np.ndarray) -> None:
    assert association(count) == pytest.approx(stats.contingency.association(count, method="cramer"), abs=1e-9)


@given(arrays.arrays(np.int64, st.tuples(st.integers(1, 5), st.integers(1, 5)), elements=st.integers(0, 50)))
def test_no_class_is_all_majority_unless_it_lies_in_one_group(count: np.ndarray) -> None:
    """The mean of a class's cells is no less than its smallest and no more than its largest."""
    major = major_cells(count)
    for own, there in zip(major, count, strict=True):
        held = there[there > 0]
        assert own[there == 0].sum() == 0
        assert own.sum() < max(1, len(held))
        assert own.any() == (len(held) > 0 and held.max() > held.mean())


def test_checkpoints_of_a_run(grouped_run: Any) -> None:
    found = subpopulations(grouped_run, by="group")
    frame = found.frame()
    assert frame.columns == ["model", "majority", "minority", "accuracy", "line", "parabola"]
    assert len(frame) == len([one for one in grouped_run.checkpoints.all() if one.complete])
    cells = found.cells
    many, few = (cells.filter(cells["majority"] == side)["held_out"].sum() for side in (True, False))
    assert many + few == 750
    np.testing.assert_allclose(frame["accuracy"], (many * frame["majority"] + few * frame["minority"]) / 750)
    assert frame["accuracy"][-1] == pytest.approx(grouped_run.metrics("test")["accuracy"])
    # The smallest group, whose labels are turned around, is the minority of both classes.
    assert set(cells.filter(~cells["majority"])["group"]) == {"odd"}
    assert "checkpoints of one training" in found.summary()
    assert len(found.plot().data) == 3


def test_members_of_a_fleet(grouped_run: Any, tmp_path: Path) -> None:
    fleet = imprint.fleet(
        grouped_run, plan=sizes([20, 40, 80, 160, 320, 600, 700]), path=tmp_path / "fleet", progress=False
    )
    found = subpopulations(grouped_run, by="group", fleet=tmp_path / "fleet")
    assert found.frame()["accuracy"].to_list() == pytest.approx(fleet.metrics()["accuracy"].to_list())
    assert "members of a fleet" in found.summary()


def test_a_minority_too_small_to_judge_is_refused(grouped_run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The group "odd" holds about 150 of the 750 held-out examples."""
    monkeypatch.setitem(subpopulations.__globals__, "LEAST", 400)
    with pytest.raises(EvidenceError, match=r"in the minority[^$]*Each needs 400"):
        subpopulations(grouped_run, by="group")


def test_other_tasks_are_refused() -> None:
    from types import SimpleNamespace

    with pytest.raises(MethodError, match="regression"):
        subpopulations(SimpleNamespace(task=SimpleNamespace(name="regression")))
