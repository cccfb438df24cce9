"""The file: complete in itself, escaped, small, the same each time."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from materials import HOSTILE, tiny

from imprint.reporting import Comparison, write_report
from imprint.reporting.report import render
from imprint.reporting.words import verdict


class Page(HTMLParser):
    """What a browser would make of the file: tags with attributes, text, scripts."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self._inside: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag if tag in ("script", "style") else None
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_endtag(self, tag: str) -> None:
        self._inside = None

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            about, text = self.scripts[-1]
            self.scripts[-1] = (about, text + data)
        elif self._inside is None:
            self.text.append(data)


def test_hostile_words_are_text_and_nothing_else() -> None:
    hostile, plain = Page(render(tiny(HOSTILE))), Page(render(tiny(tuple("abcdefg"))))
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in plain.tags]  # not one element more
    assert [sorted(about) for _, about in hostile.tags] == [sorted(about) for _, about in plain.tags]
    assert len(hostile.scripts) == 2
    shown = "".join(hostile.text)
    for word in HOSTILE:
        assert f"target: {HOSTILE[0]}" in shown
        assert f"column {word}" in shown
    data = json.loads(hostile.scripts[0][1])
    assert set(data["examples"]["label"]["values"]) == set(HOSTILE)
    assert data["previews"]["columns"] == [f"column {word}" for word in HOSTILE]


def test_only_the_pages_own_script_may_run() -> None:
    page = Page(render(tiny(HOSTILE)))
    (about, _), (attributes, script) = page.scripts
    assert about["type"] == "application/json"
    assert attributes == {}
    policy = next(
        a["content"] for tag, a in page.tags if tag == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    )
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy
    assert f"script-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")
    # Code that could turn data into markup or code has no place in the page.
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|fetch\(|XMLHttp", script
    )


def test_nothing_is_loaded_from_elsewhere() -> None:
    page = Page(render(tiny()))
    for tag, attributes in page.tags:
        for name in ("src", "href", "action", "srcset", "poster"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:")), (tag, value)


def test_links_of_the_page_lead_somewhere() -> None:
    page = Page(render(tiny()))
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(set(ids)) == len(ids)
    for _, attributes in page.tags:
        if (attributes.get("href") or "").startswith("#"):
            assert (attributes["href"] or "")[1:] in ids
        if "aria-labelledby" in attributes:
            assert attributes["aria-labelledby"] in ids


def test_the_same_material_gives_the_same_bytes() -> None:
    assert render(tiny()) == render(tiny())


def test_empty_parts_say_so() -> None:
    full = tiny()
    text = render(
        tiny(
            findings=full.findings.clear(), duplicates=None, predictions=None, curves=None, verdict=None, set_aside=None, seconds={},
            examples=full.examples.select("id", "position", "split", "label"),
        )
    )  # fmt: skip
    for sentence in (
        "none of the checks found a problem", "No duplicates found", "No data map", "No learning curves", "There are no test rows",
        "not tried", "No costs were recorded", "Every row could be read",
    ):  # fmt: skip
        assert sentence in text


def test_what_is_not_shown_is_counted() -> None:
    one = tiny().findings[:1]
    findings = pl.concat([one] * 6000)
    text = " ".join(render(tiny(findings=findings)).split())
    assert "carries the 5,000 most severe of 6,000 findings" in text
    assert "1,000 are not shown" in text


def test_an_audit_of_ten_thousand_photos_can_be_mailed(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    n = 10_000
    from PIL import Image

    # Smooth noise: about as hard to compress as a photo.
    base = rng.integers(0, 255, (64, 6, 6, 3), dtype=np.uint8)
    photos = [Image.fromarray(one).resize((120, 120), Image.Resampling.BICUBIC) for one in base]
    files = [io.BytesIO() for _ in photos]
    for photo, file in zip(photos, files, strict=True):
        photo.save(file, "JPEG")
    ids = [f"class-{k % 10}/photo-{k:06d}.jpg" for k in range(n)]
    examples = pl.DataFrame(
        {
            "id": ids, "position": ids, "split": "train", "label": [f"class-{k % 10}" for k in range(n)],
            "confidence": rng.random(n), "variability": rng.random(n) / 2, "correctness": rng.random(n),
        }
    )  # fmt: skip
    findings = pl.DataFrame(
        {
            "id": ids[:1500], "position": ids[:1500], "kind": "label", "severity": rng.random(1500), "suggestion": "relabel",
            "suggested_value": "class-3", "method": "trajectory", "evidence": "It was never predicted in 12 epochs.",
        }
    )  # fmt: skip
    report = write_report(
        tmp_path / "report.html",
        tiny(
            examples=examples, findings=findings, duplicates=None, modality="image", kinds={"image": "image"},
            read=lambda wanted: pl.DataFrame({"image": [files[int(one[-10:-4]) % 64].getvalue() for one in wanted]}),
        ),
    )  # fmt: skip
    assert report.stat().st_size < 3_000_000
    data = json.loads(Page(report.read_text("utf-8")).scripts[0][1])
    assert len(data["map"]["example"]) == n
    assert len(data["previews"]["images"]["size"]) == 4000


def test_the_file_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out" / "report.html"
    assert write_report(path, tiny()) == path
    before = path.read_bytes()
    monkeypatch.setattr(
        Path, "write_text", lambda self, *_, **__: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    with pytest.raises(OSError, match="No space"):
        write_report(path, tiny(("x", "y")))
    assert path.read_bytes() == before
    assert [one.name for one in path.parent.iterdir()] == ["report.html"]


@pytest.mark.parametrize(
    ("effect", "interval", "higher", "headline"),
    [
        (0.01, (0.002, 0.02), "better", "The edits help"),
        (-0.01, (-0.02, -0.002), "better", "The edits do harm"),
        (0.01, (-0.001, 0.02), "better", "No clear effect"),
        (-0.3, (-0.4, -0.2), "worse", "The edits help"),
        (0.3, (0.2, 0.4), "worse", "The edits do harm"),
    ],
)
def test_the_verdict_says_what_the_interval_says(
    effect: float, interval: tuple[float, float], higher: str, headline: str
) -> None:
    told = verdict(Comparison("accuracy" if higher == "better" else "rmse", effect, interval, [0.8], [0.8 + effect]))
    assert told["headline"] == headline
    assert ("includes zero" in told["sentence"]) == (headline == "No clear effect")
