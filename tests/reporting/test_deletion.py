"""The deletion report: it is true, it names nobody, it can be repeated, and it asks nothing of the network."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from browser import Browser, chromium
from markupsafe import escape
from materials import HOSTILE

import imprint
from imprint.answers import Forgetfulness
from imprint.cli import main
from imprint.corpus import Corpus
from imprint.errors import RunError
from imprint.forgetting.leftovers import pieces, search
from imprint.forgetting.telling import masked
from imprint.recording import Run
from imprint.reporting import write_deletion
from imprint.reporting.deletion import Deletion, facts
from imprint.reporting.deletion_page import render_deletion, stream

ROWS = 120


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Each example has an id, a text and numbers of its own."""
    random = np.random.default_rng(0)
    label = random.integers(0, 3, ROWS)
    values = (random.normal(size=(3, 3)) * 2)[label] + random.normal(size=(ROWS, 3))
    frame = pl.DataFrame({f"x{column}": values[:, column] for column in range(3)}).with_columns(
        key=pl.Series([f"person-{row:04d}" for row in range(ROWS)]),
        note=pl.Series([f"{'Jane Doe' if row in (7, 8) else 'somebody'} of number {row * 7919 % 9973}" for row in range(ROWS)]),
        label=pl.Series([f"kind {value}" for value in label]),
        split=pl.Series(["test" if row % 5 == 0 else "train" for row in range(ROWS)]),
    )  # fmt: skip
    return imprint.open(frame, target="label", id="key", split="split", store=tmp_path_factory.mktemp("deletion"))


@pytest.fixture(scope="module")
def base(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("deletion-run")
    return imprint.fit(imprint.Learner("mlp", epochs=2, batch_size=32), corpus, folder / "base", progress=False)


@pytest.fixture(scope="module")
def children(base: Run) -> list[Run]:
    """A stream: ids by gradient ascent, a condition by fine-tuning, a class by nothing."""
    folder = base.path.parent
    first = imprint.forget(base, base.ids[:4], method="gradient-ascent", path=folder / "first", progress=False)
    where = "note LIKE '%Jane Doe%' OR x0 > 4.5 AND note LIKE '%somebody%'"
    second = imprint.forget(first, where=where, method="fine-tune", path=folder / "second", progress=False)
    third = imprint.forget(second, classes="kind 1", method="nothing", path=folder / "third", progress=False)
    return [first, second, third]


@pytest.fixture(scope="module")
def page() -> Iterator[Browser]:
    if chromium() is None:
        pytest.skip("no chromium")
    with Browser() as browser:
        yield browser


def judged(child: Run, apart: bool = True, conclusions: tuple[str, ...] = ("It still knows them.",)) -> Forgetfulness:
    """A verdict on a child, with numbers that can be recognised."""
    method = child.manifest["forgot"]["method"]
    rows = []
    for measure, name, better, values in (
        ("klom", "forget", "lower", (2.25, 6.5, 0.375)), ("klom", "retain", "lower", (0.5, 0.25, 0.125)),
        ("accuracy", "forget", "oracle", (0.8125, 0.9375, 0.6875)), ("lira-auroc", "forget", "lower", (0.5625, 0.71875, 0.5)),
        ("lira-tpr-1", "forget", "lower", (float("nan"), 0.09375, 0.015625)),
    ):  # fmt: skip
        for arm, value in zip((method, "nothing", "oracle"), values, strict=True):
            gap = None if arm == "oracle" else 1.0 if apart else 0.0
            rows.append({
                "measure": measure, "set": name, "arm": arm, "value": value, "low": value * 0.9, "high": value * 1.1, "better": better,
                "change": 0.0, "change_low": -1.0, "change_high": 1.0, "gap": gap, "gap_low": gap and 0.5, "gap_high": gap and 1.5,
            })  # fmt: skip
    return Forgetfulness(
        verb="verify", methods=(method,), source={}, higher={}, run={"path": str(child.path), "corpus": child.fingerprint},
        cost={"seconds": 12.0, "trainings": 60.0}, table=pl.DataFrame(rows), count=child.manifest["forgot"]["count"], oracles=24,
        models=8, shadows=32, examples={"forget": 4}, seconds={}, conclusions=conclusions, notes=("a note of the verdict",),
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------- facts


def test_a_stream_is_told_as_it_was(children: list[Run], base: Run) -> None:
    found = facts(imprint.load(children[-1].path))
    assert [one.method for one in found.steps] == ["gradient-ascent", "fine-tune", "nothing"]
    assert [one.kind for one in found.steps] == ["approximate", "approximate", "control"]
    assert found.steps[0].words == "the examples of a list of ids"
    assert found.own.words == "all training examples of the class 'kind 1'"
    assert found.own.count == len(children[1]) - len(children[2])
    assert not found.stream_exact
    # The fingerprints are of the models that are there.
    assert found.origin is not None
    assert [found.origin["weights"], *(one.weights for one in found.steps)] == [
        children[0].manifest["parent"]["weights"], children[1].manifest["parent"]["weights"],
        children[2].manifest["parent"]["weights"], found.child["weights"],
    ]  # fmt: skip
    assert found.child["weights"] == found.parent["weights"]  # nothing was done to them
    # The drift is the distance of outputs on the retained examples, from the model before and from the first one.
    frame = base.corpus.read(base.corpus.rows_of(children[2].ids))
    outputs = [one.model().outputs(frame).double() for one in (base, *children)]
    assert "has changed nothing" not in render_deletion(found)  # which is said of a method that meant to change them
    assert "has changed nothing" in render_deletion(replace(found, steps=(replace(found.own, method="ssd"),)))
    for step, before, after in ((found.steps[2], outputs[2], outputs[3]), (found.steps[2], outputs[0], outputs[3])):
        distance = float((after - before).square().mean().sqrt())
        told = step.drift if before is outputs[2] else step.drift_from_first
        assert told is not None
        assert told["outputs"] == pytest.approx(distance, abs=1e-6)
    assert found.steps[0].drift == found.steps[0].drift_from_first


def test_exact_methods_after_an_approximate_one(children: list[Run], base: Run, tmp_path: Path) -> None:
    again = imprint.forget(children[0], children[0].ids[:2], method="retrain", path=tmp_path / "again", progress=False)
    found = facts(again)
    assert found.stream_exact  # trained from scratch: what went before does not matter
    assert found.own.encoder == "fitted again"
    assert any("fitted again" in one for one in found.left_out)
    assert found.own.drift is not None
    other = replace(found, steps=(*found.steps[:-1], replace(found.own, method="sisa")))
    assert not other.stream_exact
    assert "1 earlier request" in render_deletion(other)
    assert any("may still tell" in one for one in facts(children[0]).left_out)


def test_only_a_proved_bound_is_called_certified(children: list[Run], corpus: Corpus, tmp_path: Path) -> None:
    logistic = imprint.fit(imprint.Learner("logistic"), corpus, tmp_path / "logistic", progress=False)
    ridge = imprint.fit(imprint.Learner("ridge"), corpus, tmp_path / "ridge", progress=False)
    newton = imprint.forget(logistic, logistic.ids[:2], method="newton", path=tmp_path / "newton", progress=False)
    analytic = imprint.forget(ridge, ridge.ids[:2], path=tmp_path / "analytic", progress=False)
    for child, certified in ((newton, True), (analytic, False), *((one, False) for one in children)):
        text = write_deletion(child, tmp_path / "out" / "report.html").read_text()
        assert ("certif" in text.lower()) == certified
        assert ("certif" in (tmp_path / "out" / "report.json").read_text().lower()) == certified
    found = facts(newton)
    assert found.own.bound == newton.manifest["forgot"]["measured"]["bound"]
    assert f"within {found.own.bound:.3g}" in render_deletion(found)
    unproved = replace(found, steps=(replace(found.own, bound=None),))
    assert "certif" not in render_deletion(unproved).lower()


def test_without_a_deletion_there_is_no_report(base: Run, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no deletion to report"):
        write_deletion(base, tmp_path / "report.html")
    assert not list(tmp_path.iterdir())


# --------------------------------------------------------------------------------------------------------------------- secrets


def test_the_report_names_nobody(children: list[Run], base: Run, corpus: Corpus, tmp_path: Path) -> None:
    """No id, text or number of a forgotten row is in the bytes, though a condition, a path and an answer named some."""
    child = imprint.forget(
        children[1], [children[1].ids[3]], method="nothing", path=tmp_path / f"without{children[1].ids[3]}", progress=False
    )  # fmt: skip
    child.save_answer(judged(child, conclusions=(f"{base.ids[0]} is still known.",)))
    out = tmp_path / "report"
    text = write_deletion(imprint.load(child.path), out / "report.html").read_text()
    gone = base.rows()[~base.ids.is_in(child.ids.implode()).to_numpy()]
    assert len(gone) == sum(one.count for one in facts(child).steps)
    told = search(out, [(base, corpus, gone)])
    assert (told.found, told.files) == ([], 2)
    assert told.values > 10 * len(gone)
    everything = text + (out / "report.json").read_text()
    assert not [
        one.value for one in pieces(base, corpus, gone, {"id", "value of note"}) if one.value.decode() in everything
    ]
    assert "Jane" not in everything
    assert "(erased) is still known." in text
    assert "without(erased)" in text


def test_a_condition_is_told_without_what_would_tell(children: list[Run], base: Run) -> None:
    step = facts(children[1]).own
    assert step.words == "all training examples with note LIKE '…' OR x0 > 4.5 AND note LIKE '%somebody%'"
    where = "note LIKE '%Jane Doe%' OR x0 > 4.5 AND note LIKE '%somebody%'"
    request = children[1].manifest["forgot"]["request"]
    words = [sys.executable, "-c", "import hashlib, sys; print(hashlib.blake2b(sys.argv[1].encode(), digest_size=16, "
             "salt=bytes.fromhex(sys.argv[2])).hexdigest())", where, request["salt"]]  # fmt: skip
    assert subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip() == step.condition
    number = float(base.corpus.read(base.rows()[:1], ["x0"])["x0"][0])
    place = np.array([0])
    assert masked(base, place, f"x0 = {number!r}") == ("x0 = -…" if number < 0 else "x0 = …")
    assert masked(base, place, f"id = '{base.ids[0]}' AND x0 > 0.25") == "id = '…' AND x0 > 0.25"
    assert (
        masked(base, place, "LOWER(note) LIKE '%JANE%'") == "LOWER(note) LIKE '%JANE%'"
    )  # a retained row has it as well
    assert (
        masked(base, np.flatnonzero(base.ids.is_in(["person-0007", "person-0008"])), "note LIKE '%jane%'")
        == "note LIKE '…'"
    )
    assert masked(base, place, "split = 'train'") == "split = '…'"  # better too little than too much


def test_whoever_holds_an_id_can_try_it(children: list[Run], base: Run, tmp_path: Path) -> None:
    """The commands of the report are true, of this request and of earlier ones."""
    path = write_deletion(children[2], tmp_path / "the report.html")
    found = facts(children[2], "the report.json")
    html = path.read_text()
    forgotten = [
        base.ids[0],
        children[0].ids.filter(~children[0].ids.is_in(children[1].ids.implode()))[0],
        children[1].ids.filter(~children[1].ids.is_in(children[2].ids.implode()))[0],
    ]
    for number, command in enumerate(found.check):
        assert str(escape(command)) in html
        line = shlex.split(command)
        assert (line[0], line[-2:]) == ("python3", ["the report.json", "ID"])
        for place, one in enumerate(forgotten):
            words = [sys.executable, *line[1:-1], one]
            said = subprocess.run(words, check=True, capture_output=True, text=True, cwd=tmp_path).stdout.strip()
            assert said == str(place == number)


# ---------------------------------------------------------------------------------------------------------------------- repeat


def test_the_commands_repeat_it(
    children: list[Run], base: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = imprint.forget(
        base, base.ids[:5], method="fine-tune", epochs=1, seed=3, path=tmp_path / "a b", progress=False
    )
    (_, again), (why, compare), (_, verify), (_, erase) = facts(child).repeat
    (tmp_path / "ids.txt").write_text("\n".join(base.ids[:5]))
    monkeypatch.chdir(tmp_path)
    words = shlex.split(again)
    assert words[:2] == ["imprint", "forget"]
    assert main(words[1:]) == 0
    assert imprint.load(tmp_path / "a b-again").manifest["forgot"]["weights"] == facts(child).child["weights"]
    line = shlex.split(compare)
    said = subprocess.run([sys.executable, *line[1:]], check=True, capture_output=True, text=True).stdout.strip()
    assert said == facts(child).child["weights"]
    assert said in why
    assert shlex.split(verify) == ["imprint", "verify", str(child.path.resolve()), "--report"]
    assert main(shlex.split(erase)[1:]) == 0


# ------------------------------------------------------------------------------------------------------------------------ page


def test_erasure_and_verdict_are_told_or_missed(base: Run, tmp_path: Path) -> None:
    child = imprint.forget(base, base.ids[:3], method="gradient-ascent", path=tmp_path / "gone", progress=False)
    before = write_deletion(child).read_text()
    for words in (
        "The record was not erased",
        "there is no verdict",
        "This is the first request",
        "Approximate",
        "Not verified",
    ):
        assert words in before
    child = imprint.erase(child)
    child.save_answer(judged(child))
    (child.path / "left.txt").write_text(f"of {base.ids[1]}")
    erased = imprint.erase(imprint.load(child.path))
    html = write_deletion(erased).read_text()
    document = json.loads((child.path / "deletion.json").read_text())
    assert [len(one["found"]) for one in document["erasures"]] == [0, 1]
    assert document["erasures"][0]["did"]
    assert document["erasures"][1]["searched"]["rows"] == 3
    for words in ("1 trace left", "left.txt: id", "Nothing was found.", "copied the corpus", "2.25", "0.7", "It still knows them.",
                  "a note of the verdict", "against 24 models", "Told apart", "--oracles 24 --models 8 --shadows 32"):  # fmt: skip
        assert words in html, words
    for words in ("there is no verdict", "The record was not erased", "nan"):
        assert words not in html, words
    assert document["verdict"]["rows"][-3]["value"] is None  # no NaN in JSON
    assert document["format"] == 1
    erased.save_answer(judged(erased, apart=False))
    assert "nor are models that still know them" in write_deletion(erased).read_text()


def test_settings_that_were_searched_are_told(children: list[Run]) -> None:
    found = facts(children[0])
    assert "no: the settings above were given" in render_deletion(found)
    trials = [
        {"settings": {"rate": 0.1}, "value": 1.5, "seconds": 2.0},
        {"settings": {}, "value": None, "seconds": None},
    ]
    told = {"on": "another class", "count": 40, "chosen": {"rate": 0.1}, "trials": trials}
    html = render_deletion(replace(found, steps=(replace(found.own, search=told),)))
    for words in ("the best of 2 trials on 40 other examples (another class)", "rate=0.1", "defaults"):
        assert words in html


def test_drift_is_drawn_for_every_request(children: list[Run]) -> None:
    found = facts(children[2])
    drawn = str(stream(found.steps))
    assert (drawn.count('class="step"'), drawn.count("<circle")) == (3, 3)
    assert stream(found.steps[:1]) is None
    unknown = tuple(replace(one, drift_from_first=None, drift=None) for one in found.steps)
    assert stream(unknown) is None
    render_deletion(replace(found, steps=unknown, origin=None))


def hostile(found: Deletion) -> Deletion:
    step = replace(
        found.own, words=HOSTILE[0], settings={HOSTILE[1 % len(HOSTILE)]: HOSTILE[0]}, guarantee=HOSTILE[0], notes=tuple(HOSTILE)
    )  # fmt: skip
    verdict = {**(found.verdict or {}), "conclusions": list(HOSTILE), "notes": list(HOSTILE)}
    for row in verdict["rows"]:
        row["arm"] = HOSTILE[0] if row["arm"] not in ("nothing", "oracle") else row["arm"]
    return replace(
        found,
        steps=(*found.steps[:-1], step),
        verdict=verdict,
        left_out=tuple(HOSTILE),
        child={**found.child, "path": HOSTILE[0]},
    )


def test_hostile_names_stay_text(page: Browser, children: list[Run], tmp_path: Path) -> None:
    children[2].save_answer(judged(children[2]))
    found = hostile(facts(imprint.load(children[2].path)))
    path = tmp_path / "page.html"
    path.write_text(render_deletion(found), encoding="utf-8", errors="replace")
    page.errors.clear()
    page.requests.clear()
    page.open(path)
    shown = page.evaluate("[...document.querySelectorAll('.conclusions li')].map(e => e.textContent)")
    assert shown == list(HOSTILE)
    assert page.evaluate("document.scripts.length") == 0
    assert page.errors == []
    assert page.requests == [path.resolve().as_uri()]
    assert re.findall(r'(?:src|href)="(?!data:|#)', path.read_text(errors="replace")) == []


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_it_fits_the_screen(page: Browser, children: list[Run], tmp_path: Path, width: int, dark: bool) -> None:
    children[2].save_answer(judged(children[2]))
    path = write_deletion(imprint.load(children[2].path), tmp_path / "page.html")
    page.resize(width, 844)
    page.dark(dark)
    page.open(path)
    outside = page.evaluate(
        "[...document.querySelectorAll('main *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1"
        " && !e.closest('.scroll, svg, pre, .bar nav')).map(e => e.outerHTML.slice(0, 90))"
    )
    assert outside == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
