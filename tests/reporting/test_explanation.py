"""A prediction beside its examples: what is marked and why, and a page that is inert, silent and fits any screen."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from browser import Browser, chromium
from materials import HOSTILE
from PIL import Image

import imprint
from imprint.answers import Trust
from imprint.errors import IdError
from imprint.recording import Run
from imprint.reporting import Explanation, explain, write_explanation
from imprint.reporting.explanation import Explained, Shown
from imprint.reporting.explanation_page import render_explanation
from imprint.tracing import tokens

LEARNER = imprint.Learner("linear", epochs=2, batch_size=16)


def trained(folder: Path, frame: pl.DataFrame) -> Run:
    frame = frame.with_columns(
        id=pl.Series([f"e{number}" for number in range(len(frame))]) if "id" not in frame.columns else pl.col("id"),
        split=pl.Series(["test" if number % 4 == 0 else "train" for number in range(len(frame))]),
    )
    corpus = imprint.open(frame, target="label", id="id", split="split", store=folder / "store")
    return imprint.fit(LEARNER, corpus, folder / "run", progress=False)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Run:
    rows = range(40)
    frame = pl.DataFrame(
        {
            "amount": [float(row % 10) for row in rows],
            "colour": [("red", "blue")[row // 2 % 2] for row in rows],
            "label": [("low", "high")[row % 10 > 4] for row in rows],
        }
    )
    return trained(tmp_path_factory.mktemp("table"), frame)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """`the` is in every text, `refund` in one in ten, each number in one."""
    wants = [
        "the refund",
        "the transfer",
        "the card",
        "the fee",
        "the loan",
        "the rate",
        "the branch",
        "the limit",
        "the code",
        "the app",
    ]
    frame = pl.DataFrame(
        {
            "text": [f"{wants[row % 10]} of <b>case</b> {row}." for row in range(40)],
            "label": [("one", "two")[row % 10 > 4] for row in range(40)],
        }
    )
    return trained(tmp_path_factory.mktemp("texts"), frame)


@pytest.fixture(scope="module")
def read(texts: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The same texts, read word by word."""
    learner = imprint.Learner("transformer", epochs=3, batch_size=16)
    return imprint.fit(learner, texts.corpus, tmp_path_factory.mktemp("read") / "run", progress=False)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Run:
    def encoded(row: int) -> bytes:
        file = io.BytesIO()
        Image.new("RGB", (16, 12), (6 * row, 40, 90)).save(file, "PNG")
        return file.getvalue()

    frame = pl.DataFrame(
        {"image": [encoded(row) for row in range(40)], "label": [("dark", "light")[row // 20] for row in range(40)]}
    )
    return trained(tmp_path_factory.mktemp("pictures"), frame)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Ids, labels, columns and values that would be markup, scripts or templates."""
    rows = range(8 * len(HOSTILE))
    words = [HOSTILE[row % len(HOSTILE)] for row in rows]
    frame = pl.DataFrame(
        {
            "id": [f"{word}#{row}" for row, word in zip(rows, words, strict=True)],
            HOSTILE[0]: words,
            "{{ column }}": [float(row) for row in rows],
            "label": [HOSTILE[row % 2] for row in rows],
        }
    )
    return trained(tmp_path_factory.mktemp("hostile"), frame)


def traced(run: Run, method: str = "embedding", count: int = 1, k: int = 3) -> imprint.Attribution:
    queries = run.examples["id"].gather(run.rows("test")[:count]).to_list()
    return imprint.trace(run, queries, method, k=k, progress=False)


def all_of(one: Explained) -> list[Shown]:
    return [one.query, *one.helpful, *one.harmful]


def test_it_shows_what_the_attribution_and_the_model_say(table: Run) -> None:
    attribution = traced(table, count=2)
    found = explain(table, attribution)
    assert [one.query.id for one in found.queries] == attribution.queries
    model, corpus = table.model(), table.corpus
    for one in found.queries:
        own = attribution.frame().filter(pl.col("query") == one.query.id)
        shown = [*one.helpful, *one.harmful]
        assert [(e.id, e.rank, e.score) for e in shown] == own.select("id", "rank", "score").rows()
        rows = corpus.rows_of([e.id for e in all_of(one)])
        assert [e.label for e in all_of(one)] == corpus.target.gather(rows).to_list()
        assert [e.predicted for e in all_of(one)] == model.predict(corpus.read(rows)).to_list()
        assert [e.probability for e in all_of(one)] == pytest.approx(
            model.probabilities(corpus.read(rows)).amax(1).tolist(), abs=1e-5
        )
        assert all(e.right == (e.predicted == e.label) for e in all_of(one))
        assert one.query.rank == 0


def test_cells_of_a_row_that_differ_are_marked(table: Run) -> None:
    found = explain(table, traced(table, k=30))
    assert found.columns == ("amount", "colour")
    assert found.marked == "columns"
    (one,) = found.queries
    spread = table.corpus.read(table.rows())["amount"].std()
    assert one.query.marks == ()
    query = table.corpus.frame(table.corpus.rows_of([one.query.id])).to_dicts()[0]
    seen = set()
    for shown in (*one.helpful, *one.harmful):
        row = table.corpus.frame(table.corpus.rows_of([shown.id])).to_dicts()[0]
        expected = {
            "amount": abs(row["amount"] - query["amount"]) > spread / 2,
            "colour": row["colour"] != query["colour"],
        }
        assert {name: cell.differs for name, cell in zip(found.columns, shown.cells, strict=True)} == expected
        assert list(shown.marks) == [name for name, differs in expected.items() if differs]
        seen |= set(expected.items())
    assert len(seen) == 4  # both columns were seen alike and different


def test_words_that_are_shared_are_marked_by_how_rare_they_are(texts: Run) -> None:
    attribution = traced(texts, "bm25", k=5)  # the query is "the refund of <b>case</b> 0."
    found = explain(texts, attribution)
    assert found.marked == "words"
    (one,) = found.queries
    for shown in one.helpful:
        assert (
            "".join(piece for piece, _ in shown.text) == texts.corpus.read(texts.corpus.rows_of([shown.id]))["text"][0]
        )
        marked = {piece: strength for piece, strength in shown.text if strength}
        if "refund" in {piece for piece, _ in shown.text}:
            assert marked == {"refund": 1}  # in a tenth of the texts; words that are in all of them are not marked
            assert shown.marks == ("refund",)
    assert any(shown.marks for shown in one.helpful)
    assert ("refund", 1) in one.query.text


def test_words_that_a_model_reads_are_marked_by_their_scores(read: Run, tmp_path: Path) -> None:
    found = explain(read, traced(read, "embedding", k=4))
    assert found.marked == "scores"
    (one,) = found.queries
    seen: set[int] = set()
    for shown in all_of(one):
        text = read.corpus.read(read.corpus.rows_of([shown.id]))["text"][0]
        assert "".join(piece for piece, _ in shown.text) == text
        table = tokens(read, one.query.id, None if shown.rank == 0 else shown.id)
        score = {
            text[start:end]: value for _, start, end, value in table.iter_rows() if text.count(text[start:end]) == 1
        }
        largest = table["score"].abs().max()
        for piece, strength in shown.text:
            if piece in score:
                share = abs(score[piece]) / largest
                assert abs(strength) == (2 if share >= 0.5 else 1 if share >= 0.15 else 0)
                assert strength * score[piece] >= 0
        ordered = table.sort(pl.col("score").abs(), descending=True).head(5)
        assert [name for name, _ in shown.words] == ordered["word"].to_list()
        assert [value for _, value in shown.words] == pytest.approx(ordered["score"].to_list(), rel=1e-3)
        seen |= {strength for _, strength in shown.text}
    assert {-2, -1, 0, 1, 2} >= seen
    assert len(seen) >= 4
    page = write_explanation(tmp_path / "page.html", found).read_text()
    assert "words are scored by gradient-dot all the same" in page
    assert page.count('<mark class="n') == 1 + sum(strength < 0 for shown in all_of(one) for _, strength in shown.text)


def test_a_long_text_is_cut_and_says_by_how_much(texts: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imprint.reporting.explanation.EXAMPLE_CHARACTERS", 8)
    (one,) = explain(texts, traced(texts, "bm25")).queries
    for shown in one.helpful:
        whole = texts.corpus.read(texts.corpus.rows_of([shown.id]))["text"][0]
        assert "".join(piece for piece, _ in shown.text) == whole[:8]
        assert shown.cut == len(whole) - 8


def test_pictures_are_in_the_file(pictures: Run, tmp_path: Path) -> None:
    found = explain(pictures, traced(pictures))
    (one,) = found.queries
    assert all(e.picture and (e.picture.width, e.picture.height) == (16, 12) for e in all_of(one))
    page = write_explanation(tmp_path / "page.html", found).read_text()
    assert page.count('src="data:image/webp;base64,') == 7
    assert re.findall(r'(?:src|href)="(?!data:|#)', page) == []


def test_numbers_that_are_no_picture_are_drawn_as_a_line(tmp_path: Path) -> None:
    waves = np.sin(np.arange(40 * 30).reshape(40, 30)).astype(np.float32)
    run = trained(tmp_path, pl.DataFrame({"x": pl.Series(waves), "label": ["a", "b"] * 20}))
    (one,) = explain(run, traced(run)).queries
    assert len(one.query.line) == 30
    assert (min(one.query.line), max(one.query.line)) == (0.0, 1.0)


def test_ends_of_similarities_are_not_called_harm(table: Run) -> None:
    assert explain(table, traced(table)).ends == ("Highest scores", "Lowest scores")
    assert explain(table, traced(table, "gradient-dot")).ends == ("Most helpful", "Most harmful")


def test_what_is_known_of_the_trust_is_said(table: Run) -> None:
    attribution = traced(table, "columns", count=8)
    said = render_explanation(explain(table, attribution))
    assert "Not measured yet" in said
    assert f"imprint verify {table.path} --answer attribution-columns" in said
    trust = imprint.verify(attribution, table, members=8, progress=False)
    table.save_answer(trust, "trust-columns")
    found = explain(table, attribution)
    assert isinstance(found.trust, Trust)
    said = render_explanation(found)
    assert "Not measured yet" not in said
    assert trust.summary().split(":")[0] in said
    assert said.count('class="name') == 1 + len(trust.controls)


def test_some_of_the_queries_can_be_shown(table: Run) -> None:
    attribution = traced(table, count=3)
    found = explain(table, attribution, attribution.queries[2:0:-1])
    assert [one.query.id for one in found.queries] == attribution.queries[2:0:-1]
    assert found.left_out == 1
    with pytest.raises(IdError, match="'nobody' was not traced"):
        explain(table, attribution, ["nobody"])


def test_hostile_text_is_escaped(hostile: Run) -> None:
    found = explain(hostile, traced(hostile, count=len(HOSTILE)))
    notes = replace(found, notes=HOSTILE, run=HOSTILE[0])
    page = render_explanation(notes)
    body = page[page.index("<body>") :]
    assert "<script" not in page
    assert "<img" not in body
    assert "<b>bold" not in body
    assert "&lt;script&gt;alert(1)" in body
    assert "{{7*7}}" in body  # shown as it is, and not taken for a template


# ---------------------------------------------------------------------------------------------------------------- in a browser

STICKS_OUT = """[...document.querySelectorAll('main *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1
  && !e.closest('.boxed, pre, svg, .bar nav')).map(e => e.outerHTML.slice(0, 120))"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if chromium() is None:
        pytest.skip("Chromium is not installed")
    with Browser() as one:
        yield one


def opened(browser: Browser, path: Path, found: Explanation, width: int = 1280, dark: bool = False) -> None:
    browser.errors.clear()
    browser.requests.clear()
    browser.resize(width, 844)
    browser.dark(dark)
    browser.open(write_explanation(path, found))
    assert browser.errors == []
    assert browser.requests == [path.resolve().as_uri()]


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("which", ["table", "texts", "read", "pictures", "hostile"])
def test_the_page_is_silent_and_fits(
    browser: Browser, tmp_path: Path, request: pytest.FixtureRequest, which: str, width: int, dark: bool
) -> None:
    run = request.getfixturevalue(which)
    opened(browser, tmp_path / "page.html", explain(run, traced(run, count=2)), width, dark)
    assert browser.evaluate(STICKS_OUT) == []
    light = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert light == ("rgb(22, 22, 21)" if dark else "rgb(250, 249, 247)")


def test_the_page_shows_the_text_as_it_is(browser: Browser, tmp_path: Path, hostile: Run) -> None:
    found = explain(hostile, traced(hostile, count=len(HOSTILE)))
    opened(browser, tmp_path / "page.html", found)
    headings = browser.evaluate("[...document.querySelectorAll('h2')].map(e => e.textContent)")
    assert headings == [f"Query {one.query.id}" for one in found.queries]
    assert browser.evaluate("document.querySelectorAll('main script, main img, main b b').length") == 0
    # The policy stops what escaping did not: a picture that is put in is not fetched.
    stopped = browser.evaluate(
        "new Promise(done => { document.addEventListener('securitypolicyviolation', e => done(e.effectiveDirective));"
        "document.body.insertAdjacentHTML('beforeend', '<img src=\"http://127.0.0.1:9/x.png\">') })"
    )
    assert stopped == "img-src"


def test_marks_can_be_seen(browser: Browser, tmp_path: Path, texts: Run) -> None:
    opened(browser, tmp_path / "page.html", explain(texts, traced(texts, "bm25", k=2)))
    assert browser.evaluate("[...document.querySelectorAll('article mark')].every(e => e.textContent === 'refund')")
    assert browser.evaluate("document.querySelectorAll('article mark').length") > 0
    assert browser.evaluate("getComputedStyle(document.querySelector('mark')).backgroundColor") != "rgba(0, 0, 0, 0)"
