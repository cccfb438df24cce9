"""erase: after it, no byte of a forgotten example is left in the folder, and the run still answers."""

from __future__ import annotations

import json
from pathlib import Path

import lance
import numpy as np
import polars as pl
import pytest
import torch

import imprint
from imprint.answers import Findings
from imprint.corpus import Corpus
from imprint.errors import RunError
from imprint.forgetting.child import scrubbed
from imprint.forgetting.erasing import needles, traces
from imprint.recording import Run

from .conftest import clouds


@pytest.fixture(scope="module")
def diaries(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Each example has a text of its own, besides its numbers."""
    notes = pl.Series([f"the diary of somebody who lives at {row * 7919 % 99991:05d}" for row in range(200)])
    return clouds(tmp_path_factory.mktemp("diaries"), note=notes)


@pytest.fixture(scope="module")
def parent(diaries: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Run:
    learner = imprint.Learner("mlp", epochs=2, batch_size=32)
    return imprint.fit(learner, diaries, tmp_path_factory.mktemp("erase") / "base", progress=False)


def everything(folder: Path) -> bytes:
    """All bytes of a folder, and what its tables say when they are decoded."""
    said = [one.read_bytes() for one in folder.rglob("*") if one.is_file()]
    for one in folder.rglob("_versions"):
        table = lance.dataset(str(one.parent))
        for version in table.versions():
            frame = pl.from_arrow(lance.dataset(str(one.parent), version=version["version"]).to_table())
            assert isinstance(frame, pl.DataFrame)
            for column in frame:
                if column.dtype == pl.String:
                    said.append("\0".join(column.drop_nulls()).encode())
                elif column.dtype.is_float():
                    said.append(column.drop_nulls().cast(pl.Float64).to_numpy().tobytes())
    return b"\1".join(said)


def secrets(corpus: Corpus, ids: pl.Series) -> list[bytes]:
    """Ids, texts and numbers of these examples, each of which is theirs alone."""
    frame = corpus.read(corpus.rows_of(ids))
    numbers = np.concatenate([frame[f"x{column}"].to_numpy() for column in range(4)])
    texts = [*ids.to_list(), *frame["note"].to_list()]
    return [*(one.encode() for one in texts), *(np.float64(one).tobytes() for one in numbers)]


@pytest.mark.parametrize("method", ["nothing", "retrain"])
def test_no_byte_is_left(parent: Run, diaries: Corpus, tmp_path: Path, method: str) -> None:
    ids = parent.ids[3:9]
    hidden = secrets(diaries, ids)
    # The search finds them where they are: in the parent's table, and in the store of its corpus.
    there = everything(parent.path) + everything(diaries.stores[0].folder)
    assert sum(one in there for one in hidden) == len(hidden)

    child = imprint.forget(parent, ids, method=method, path=tmp_path / "gone", progress=False)
    child.save_answer(imprint.score(parent, "knn-shapley", progress=False), "of-the-parent")
    finding = pl.DataFrame(
        {
            "id": [child.ids[0]], "position": [0], "kind": ["duplicate"], "severity": [0.9], "suggestion": ["drop"],
            "suggested_value": [None], "method": ["by-hand"], "evidence": [f"a copy of '{ids[0]}'"], "related": [ids[0]],
        },
        schema_overrides={"suggested_value": pl.String},
    )  # fmt: skip
    told = Findings("clean", ("by-hand",), {}, {}, {}, {}, finding, notes=(f"{ids[1]} is odd",))
    child.save_answer(told, "told")
    before = everything(child.path)
    assert any(one in before for one in hidden)

    erased = imprint.erase(child)
    left = everything(child.path)
    assert [one for one in hidden if one in left] == []
    done = erased.manifest["erased"]
    assert done["found"] == []
    assert done["searched"]["rows"] == 6
    assert done["searched"]["values"] >= len(hidden)
    assert any("corpus" in one for one in done["did"])
    assert any("of-the-parent" in one for one in done["did"])
    assert erased.answer("told").notes == ("(erased) is odd",)
    assert len(erased.answer("of-the-parent").frame()) == len(parent) - 6

    opened = imprint.load(child.path)
    assert opened.corpus.stores[0].folder == (child.path / "corpus").resolve()
    assert opened.corpus.fingerprint == diaries.drop(ids).fingerprint
    assert all(torch.equal(a, b) for a, b in zip(
        opened.model().module.state_dict().values(), child.model().module.state_dict().values(), strict=True
    ))  # fmt: skip
    assert [one.epoch for one in opened.checkpoints.all()] == ([1] if method == "nothing" else [1, 2])
    assert len(imprint.score(opened, progress=False).frame()) == len(parent) - 6
    assert imprint.clean(opened).methods
    assert imprint.forget(opened, opened.ids[:2], method="nothing", path=tmp_path / "next", progress=False)


def test_erasing_twice_changes_nothing_more(parent: Run, tmp_path: Path) -> None:
    child = imprint.forget(parent, parent.ids[:2], method="nothing", path=tmp_path / "gone", progress=False)
    first = imprint.erase(child)
    again = imprint.erase(first)
    assert again.manifest["erased"]["did"] == []
    assert again.manifest["erased"]["found"] == []


def test_what_is_left_is_said(parent: Run, tmp_path: Path) -> None:
    """A file of the user's own is not ours to rewrite: it is found and named."""
    child = imprint.forget(parent, parent.ids[:2], method="nothing", path=tmp_path / "gone", progress=False)
    (child.path / "notes.txt").write_text(f"asked by {parent.ids[1]}")
    assert imprint.erase(child).manifest["erased"]["found"] == ["notes.txt: id"]


def test_without_the_parent_hashes_still_tell_whom_to_erase(parent: Run, diaries: Corpus, tmp_path: Path) -> None:
    ids = parent.ids[:3]
    child = imprint.forget(parent, ids, method="nothing", path=tmp_path / "gone", progress=False)
    child.save_answer(imprint.score(parent, "knn-shapley", progress=False), "scores")
    manifest = json.loads((child.path / "manifest.json").read_text())
    manifest["parent"] |= {"path": str(tmp_path / "moved"), "beside": "../moved"}
    (child.path / "manifest.json").write_text(json.dumps(manifest))
    erased = imprint.erase(imprint.load(child.path))
    assert erased.manifest["erased"]["searched"] is None
    left = everything(child.path)
    assert not any(one in left for one in secrets(diaries, ids))


def test_there_must_be_something_to_erase(parent: Run) -> None:
    with pytest.raises(RunError, match="forgotten nothing"):
        imprint.erase(parent)


def test_needles_are_of_the_rows_alone(parent: Run, diaries: Corpus) -> None:
    rows = parent.rows()[:2]
    found = needles(parent, diaries, rows)
    assert set(secrets(diaries, diaries.ids.gather(rows))) <= set(found)
    rest = diaries.drop(diaries.ids.gather(rows))
    others = everything(scrubbed(rest).save(parent.path.parent / "others"))
    assert not [value for value in found if value in others]
    assert traces(parent.path.parent / "others", found) == []
