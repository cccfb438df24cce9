"""The page in headless Chromium: silent, offline, inert to hostile data, and doing what its buttons say."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
from browser import Browser, chromium
from materials import HOSTILE, SHARED, images, texts, tiny

from imprint.reporting import Material, write_report

pytestmark = pytest.mark.skipif(chromium() is None, reason="Chromium is not installed")

STICKS_OUT = """[...document.querySelectorAll('main *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1
  && !e.closest('.scroll, pre, svg, .bar nav')).map(e => e.outerHTML.slice(0, 120))"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as one:
        yield one


@pytest.fixture
def page(browser: Browser, tmp_path: Path) -> Browser:
    browser.errors.clear()
    browser.requests.clear()
    browser.resize(1280, 900)
    browser.dark(False)
    browser.downloads(tmp_path)
    return browser


def show(page: Browser, folder: Path, material: Material) -> Path:
    path = write_report(folder / "report.html", material)
    page.open(path)
    return path


def silent(page: Browser, path: Path) -> None:
    assert page.errors == []
    assert page.requests == [path.resolve().as_uri()]


def downloaded(folder: Path, suffix: str) -> Path:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        if found := [one for one in folder.iterdir() if one.name.endswith(suffix)]:
            return found[0]
        time.sleep(0.05)
    raise AssertionError(f"nothing ending in {suffix} was downloaded")


def test_the_watch_itself_sees_errors_and_requests(page: Browser, tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text(
        "<img src='http://127.0.0.1:9/x.png'><script>console.error('told'); setTimeout(() => missing(), 0); alert(1)</script>"
    )
    page.open(bad)
    assert any("told" in error for error in page.errors)
    assert any("missing" in error for error in page.errors)
    assert any("dialog" in error for error in page.errors)
    assert "http://127.0.0.1:9/x.png" in page.requests


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1280])
def test_a_full_report_is_silent_and_fits(page: Browser, tmp_path: Path, width: int, dark: bool) -> None:
    page.resize(width, 844)
    page.dark(dark)
    path = show(page, tmp_path, tiny())
    silent(page, path)
    # Also in a font as wide as they come.
    page.evaluate("document.documentElement.style.setProperty('--sans', '\"DejaVu Sans\", Verdana, sans-serif')")
    assert page.evaluate(STICKS_OUT) == []
    assert (
        page.evaluate("document.querySelectorAll('#trial svg, #effect svg, #curves svg, #reliability svg').length") == 5
    )
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(22, 22, 21)" if dark else "rgb(250, 249, 247)")


def test_an_empty_report_is_silent(page: Browser, tmp_path: Path) -> None:
    full = tiny()
    examples = full.examples.select("id", "position", "split", "label")
    path = show(page, tmp_path, Material(name="nothing", examples=examples, findings=full.findings.clear()))
    silent(page, path)


def test_findings_about_the_whole_set_only_are_shown(page: Browser, tmp_path: Path) -> None:
    findings = tiny().findings[-1:].with_columns(id=pl.lit(None, pl.String))
    path = show(page, tmp_path, tiny(findings=findings))
    silent(page, path)
    assert "whole data set" in page.evaluate("document.querySelector('#browser .card').textContent")


def test_regression_is_silent(page: Browser, tmp_path: Path) -> None:
    examples = (
        tiny().examples.drop("confidence", "variability", "predicted").with_columns(label=pl.int_range(pl.len()) * 1.5)
    )
    path = show(page, tmp_path, tiny(task="regression", examples=examples, predictions=None, classes=()))
    silent(page, path)
    assert page.evaluate("document.querySelectorAll('#target svg').length") == 2


def test_hostile_words_are_seen_and_do_nothing(page: Browser, tmp_path: Path) -> None:
    path = show(page, tmp_path, tiny(HOSTILE))
    page.evaluate("document.querySelectorAll('#groups .window, .more').forEach(e => e.click())")
    page.evaluate("showAll = document.querySelector('#browser .card'); showAll.focus()")
    page.key("Enter")
    assert page.evaluate("document.querySelector('#detail').open")
    shown = page.evaluate("document.body.innerText")
    for word in HOSTILE[:6]:
        assert word in shown
    assert "49" not in page.evaluate("document.querySelector('h1').textContent")
    assert page.evaluate("document.querySelectorAll('main img, main script, main b b').length") == 0
    silent(page, path)


def test_the_policy_stops_what_escaping_might_miss(page: Browser, tmp_path: Path) -> None:
    path = write_report(tmp_path / "report.html", tiny())
    injected = "<main id=\"main\"><script>document.title = 'broken in'</script><img src='http://127.0.0.1:9/x.png'>"
    path.write_text(path.read_text("utf-8").replace('<main id="main">', injected), "utf-8")
    page.open(path)
    assert "broken in" not in page.evaluate("document.title")
    assert sum("Content Security Policy" in error for error in page.errors) >= 2
    assert page.evaluate("document.querySelectorAll('#browser .card').length") == 6  # its own script still runs


def test_filters_narrow_and_search_finds(page: Browser, tmp_path: Path) -> None:
    path = show(page, tmp_path, tiny())
    cards = "document.querySelectorAll('#browser .card').length"
    assert page.evaluate(cards) == 6
    page.evaluate("document.querySelector('[data-kind=label]').click()")
    assert page.evaluate(cards) == 2
    page.evaluate(
        "(r => { r.value = 0.9; r.dispatchEvent(new Event('input')) })(document.querySelector('#browser input[type=range]'))"
    )
    assert page.evaluate(cards) == 1
    page.evaluate("document.querySelector('[data-kind=label]').click()")
    assert page.evaluate(cards) == 2
    page.evaluate(
        "(s => { s.value = 'no such thing'; s.dispatchEvent(new Event('input')) })(document.querySelector('#browser input[type=search]'))"
    )
    assert page.evaluate(cards) == 0
    assert "No finding passes" in page.evaluate("document.querySelector('#browser').textContent")
    silent(page, path)


def test_decisions_are_made_by_key_kept_and_downloaded(page: Browser, tmp_path: Path) -> None:
    material = tiny(('cat, "big"', "dog", "hen"), fingerprint="decided0decided0")
    path = show(page, tmp_path, material)
    page.evaluate("document.querySelector('#browser .card').focus()")
    page.key("a")
    page.key("ArrowDown")
    page.key("r")
    assert page.evaluate("[...document.querySelectorAll('#browser .card')].map(c => c.className)")[:2] == [
        "card accepted",
        "card rejected",
    ]
    page.open(path)  # and they are still there
    assert page.evaluate("document.querySelectorAll('#browser .accepted, #browser .rejected').length") == 2
    page.evaluate(
        "[...document.querySelectorAll('#browser .tally button')].find(b => b.textContent === 'Decisions CSV').click()"
    )
    with downloaded(tmp_path, "decisions.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    worst = material.findings.sort("severity", descending=True)
    assert [(row["id"], row["decision"]) for row in sorted(rows, key=lambda r: -float(r["severity"]))] == [
        (worst["id"][0], "accept"), (worst["id"][1], "reject"),
    ]  # fmt: skip
    page.evaluate(
        "[...document.querySelectorAll('#browser .tally button')].find(b => b.textContent === 'JSON').click()"
    )
    told = json.loads(downloaded(tmp_path, "decisions.json").read_text("utf-8"))
    assert told["fingerprint"] == "decided0decided0"
    assert [row["decision"] for row in told["decisions"]].count("accept") == 1
    assert len(page.errors) == 0


def test_the_theme_can_be_switched_and_is_kept(page: Browser, tmp_path: Path) -> None:
    path = show(page, tmp_path, tiny())
    page.evaluate("document.querySelector('#theme').click()")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(22, 22, 21)"
    page.open(path)
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    page.evaluate("localStorage.removeItem('imprint:theme')")
    assert page.errors == []


def test_five_thousand_findings_stay_smooth(page: Browser, tmp_path: Path) -> None:
    full = tiny()
    findings = pl.concat([full.findings] * 850)  # 5,100
    path = show(page, tmp_path, tiny(findings=findings))
    took = page.evaluate(
        """(() => { const s = document.querySelector('#browser input[type=search]'); const t = performance.now();
        s.value = 'cat'; s.dispatchEvent(new Event('input')); document.body.offsetHeight; return performance.now() - t })()"""
    )
    # Typing feels immediate below a tenth of a second; the machine that runs this may be busy with six other jobs.
    assert took < 500
    assert page.evaluate("document.querySelectorAll('#browser .card').length") == 20
    silent(page, path)


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.exists(), reason="../shared/data is not at hand")
def test_real_images_are_shown_and_the_map_is_read_with_mouse_and_keys(page: Browser, tmp_path: Path) -> None:
    path = show(page, tmp_path, images(1200))
    page.evaluate("document.querySelector('#map').scrollIntoView({behavior: 'instant'})")
    x, y, _, height = page.evaluate(
        "(b => [b.left, b.top, b.width, b.height])(document.querySelector('.plot canvas').getBoundingClientRect())"
    )
    page.mouse("mousePressed", x + 50, y + height - 150)
    page.mouse("mouseMoved", x + 260, y + height - 45)
    page.mouse("mouseReleased", x + 260, y + height - 45)
    assert "in the box" in page.evaluate("document.querySelector('.picked .told').textContent")
    page.evaluate("document.querySelector('.plot canvas').focus({preventScroll: true})")
    page.key("ArrowRight")
    page.key("ArrowRight")
    assert not page.evaluate("document.querySelector('#tip').hidden")
    page.key("Enter")
    assert page.evaluate("document.querySelector('#detail').open")
    assert page.evaluate("document.querySelector('#detail .thumb') !== null")
    assert page.evaluate("document.querySelectorAll('#browser .card .thumb').length") == 36
    silent(page, path)


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.exists(), reason="../shared/data is not at hand")
def test_real_texts_with_many_classes_fit_a_phone(page: Browser, tmp_path: Path) -> None:
    page.resize(390, 844)
    path = show(page, tmp_path, texts(2000))
    assert page.evaluate(STICKS_OUT) == []
    silent(page, path)
