"""erase: after it, no byte of a forgotten example is left in the folder, and the run still answers."""

from __future__ import annotations

import gzip
import json
import re
import zipfile
from pathlib import Path

import lance
import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

import imprint
from imprint.answers import Findings
from imprint.corpus import Corpus
from imprint.errors import RunError
from imprint.forgetting import leftovers, patterns
from imprint.forgetting.child import scrubbed
from imprint.forgetting.leftovers import pieces, search
from imprint.forgetting.patterns import Patterns
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
    for one in ("parent", "origin"):
        manifest[one] |= {"path": str(tmp_path / "moved"), "beside": "../moved"}
    (child.path / "manifest.json").write_text(json.dumps(manifest))
    erased = imprint.erase(imprint.load(child.path))
    assert erased.manifest["erased"]["searched"] is None
    left = everything(child.path)
    assert not any(one in left for one in secrets(diaries, ids))


def test_there_must_be_something_to_erase(parent: Run) -> None:
    with pytest.raises(RunError, match="forgotten nothing"):
        imprint.erase(parent)


def test_pieces_are_of_the_rows_alone(parent: Run, diaries: Corpus, tmp_path: Path) -> None:
    rows = parent.rows()[:2]
    ids = diaries.ids.gather(rows)
    found = {one.value for one in pieces(parent, diaries, rows)}
    assert set(secrets(diaries, ids)) <= found
    scrubbed(diaries.drop(ids)).save(tmp_path / "others")
    assert search(tmp_path / "others", [(parent, diaries, rows)]).found == []
    diaries.save(tmp_path / "all")
    told = search(tmp_path / "all", [(parent, diaries, rows)])
    assert {one.split(": ")[1] for one in told.found} >= {"id", "value of note", *(f"value of x{n}" for n in range(4))}
    assert (told.rows, told.unread) == (2, [])


def test_a_value_that_reads_like_an_id_stays(tmp_path: Path) -> None:
    """Ids that are small numbers are classes and categories elsewhere, which nobody asked to forget."""
    random = np.random.default_rng(0)
    kind = random.integers(0, 3, 120)
    frame = pl.DataFrame(
        {"key": [str(number) for number in range(120)], "kind": [str(one) for one in kind], "x": random.normal(size=120) + 2 * kind,
         "label": [str(one) for one in kind], "split": ["test" if number % 4 == 0 else "train" for number in range(120)]}
    )  # fmt: skip
    corpus = imprint.open(frame, target="label", id="key", split="split", store=tmp_path / "store")
    run = imprint.fit(imprint.Learner("mlp", epochs=2), corpus, tmp_path / "base", progress=False)
    child = imprint.forget(run, ["1", "2", "5"], method="nothing", path=tmp_path / "gone", progress=False)
    child.save_answer(imprint.score(run, "knn-shapley", progress=False), "of-the-parent")
    child.save_answer(imprint.clean(run), "told")
    before = child.model().outputs(child.corpus)
    opened = imprint.load(imprint.erase(child).path)
    assert opened.corpus.fingerprint == corpus.drop(["1", "2", "5"]).fingerprint
    assert set(opened.corpus.read(opened.corpus.rows(), ["kind"])["kind"].cast(pl.String)) == {"0", "1", "2"}
    assert opened.task.classes == run.task.classes
    assert torch.equal(opened.model().outputs(opened.corpus), before)
    scored = opened.answer("of-the-parent").frame()
    assert set(scored["id"]) == set(run.ids) - {"1", "2", "5"}
    assert not set(opened.answer("told").frame()["id"].drop_nulls()) & {"1", "2", "5"}


# ------------------------------------------------------------------------------------------------------------------ leftovers


def row_of(diaries: Corpus, run: Run, place: int = 1) -> tuple[int, str, str, np.ndarray]:
    """Row, id, note and numbers of a training example."""
    row = int(run.rows()[place])
    frame = diaries.read(np.array([row]))
    return row, diaries.ids[row], frame["note"][0], frame.select("x0", "x1", "x2", "x3").to_numpy()[0]


def plant(path: Path, kind: str, identity: str, note: str, numbers: np.ndarray) -> None:
    """A file that somebody left behind."""
    retained = [f"the diary of nobody {number}" for number in range(300)]
    frame = pl.DataFrame({"a": [*retained[:150], note, *retained[150:]], "b": np.linspace(0, 1, 301)})
    if kind == "parquet":
        frame.write_parquet(path / "left.parquet", compression="zstd")
    elif kind == "dictionary":
        frame.cast({"a": pl.Categorical}).write_parquet(path / "left.parquet")
    elif kind == "numbers":
        pl.DataFrame({"x": np.r_[np.linspace(0, 1, 100), numbers[2]]}).write_parquet(path / "left.parquet")
    elif kind == "arrow":
        frame.write_ipc(path / "left.arrow", compression="zstd")
    elif kind == "lance":
        lance.write_dataset(frame.to_arrow(), str(path / "left.lance"))
    elif kind == "deleted":  # a row that is deleted from a table is on the disk all the same
        table = lance.write_dataset(frame.to_arrow(), str(path / "left.lance"))
        table.delete("a LIKE '%lives%'")
    elif kind == "npy":
        np.save(path / "left.npy", np.stack([numbers + 1, numbers, numbers - 1]).astype(np.float32))
    elif kind == "npz":
        np.savez_compressed(path / "left.npz", features=np.stack([numbers + 1, numbers]))
    elif kind == "safetensors":
        save_file({"w": torch.from_numpy(np.stack([numbers, numbers + 1]))}, path / "left.safetensors")
    elif kind == "json":
        (path / "left.json").write_text(json.dumps({"x": numbers[0], "text": "nothing"}))
    elif kind == "gzip":
        with gzip.open(path / "left.csv.gz", "wt") as file:
            file.write("\n".join([*retained, identity, *retained]))
    elif kind == "zip":
        with zipfile.ZipFile(path / "left.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("inside.txt", note)


@pytest.mark.parametrize(
    "kind",
    ["parquet", "dictionary", "numbers", "arrow", "lance", "deleted", "npy", "npz", "safetensors", "json", "gzip", "zip"],
)  # fmt: skip
def test_a_planted_leftover_is_found(parent: Run, diaries: Corpus, tmp_path: Path, kind: str) -> None:
    row, identity, note, numbers = row_of(diaries, parent)
    plant(tmp_path, kind, identity, note, numbers)
    sought = [(parent, diaries, np.array([row]))]
    told = search(tmp_path, sought)
    assert told.found
    assert all(one.startswith("left.") for one in told.found)
    assert told.unread == []
    # The same file of a retained example is nobody's trace.
    other = row_of(diaries, parent, 40)
    clean = tmp_path / "clean"
    clean.mkdir()
    plant(clean, kind, *other[1:])
    assert search(clean, sought).found == []


def test_recorded_evidence_is_found(parent: Run, diaries: Corpus, tmp_path: Path) -> None:
    """Outputs and features of a forgotten row, copied from the parent, in any float type."""
    row = int(parent.rows()[1])
    sought = [(parent, diaries, np.array([row]))]
    features = parent.evidence("features").read(np.array([row])).numpy()
    assert features.size >= 8
    for dtype in (np.float16, np.float32, np.float64):
        np.save(tmp_path / f"{np.dtype(dtype)}.npy", np.r_[features[0] + 1, features[0]].astype(dtype))
    found = search(tmp_path, sought).found
    assert {one.split(":")[0] for one in found} == {"float16.npy", "float32.npy", "float64.npy"}


def test_what_a_retained_row_has_as_well_is_no_trace(tmp_path: Path) -> None:
    """Ids that begin another's, texts that are a part of another's, and exact duplicates tell of nobody by themselves."""
    texts = ["please refund", "please refund me now", "a copy of each", "a copy of each", "quite alone", "last words"]
    frame = pl.DataFrame(
        {"id": ["user-1", "user-12", "user-2", "user-3", "user-4", "user-5"], "text": texts, "label": list("ababab"),
         "split": ["train"] * 6}
    )  # fmt: skip
    corpus = imprint.open(frame, target="label", id="id", split="split", inputs="text", store=tmp_path / "store")
    run = imprint.fit(imprint.Learner("linear", epochs=1), corpus, tmp_path / "base", progress=False)
    gone = corpus.ids.filter(corpus.ids.is_in(["user-1", "user-2"]))
    folder = tmp_path / "there"
    scrubbed(corpus.drop(gone)).save(folder / "corpus")
    sought = [(run, corpus, corpus.rows_of(gone))]
    assert search(folder, sought).found == []
    (folder / "mail.txt").write_text("user-12 wrote: please refund me now")
    assert search(folder, sought).found == []
    (folder / "mail.txt").write_text("user-12 wrote, and user-1.")
    assert search(folder, sought).found == ["mail.txt: id"]


def test_a_picture_is_known_by_its_pixels(tmp_path: Path) -> None:
    Image = pytest.importorskip("PIL.Image")
    random = np.random.default_rng(0)
    rows = []
    for number in range(6):
        picture = Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        (tmp_path / "data" / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        picture.save(tmp_path / "data" / "ab"[number % 2] / f"{number}.png")
        rows.append(picture)
    corpus = imprint.open(tmp_path / "data", split={"train": 1.0}, store=tmp_path / "store")
    run = imprint.fit(imprint.Learner("mlp", epochs=1), corpus, tmp_path / "base", progress=False)
    gone = corpus.rows()[:1]
    number = int(Path(str(corpus.positions[0])).stem)
    folder = tmp_path / "there"
    folder.mkdir()
    rows[number].save(folder / "again.bmp")
    rows[(number + 1) % 6].save(folder / "other.bmp")
    np.save(folder / "array.npy", np.asarray(rows[number]))
    found = {one.split(":")[0] for one in search(folder, [(run, corpus, gone)]).found}
    assert found == {"again.bmp", "array.npy"}


def test_a_search_has_bounded_passes(
    parent: Run, diaries: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the number of rows, windows and passes, the same is found."""
    rows = parent.rows()[:60]
    plant(tmp_path, "parquet", *row_of(diaries, parent, 57)[1:])
    plant(tmp_path, "json", *row_of(diaries, parent, 3)[1:])
    whole = search(tmp_path, [(parent, diaries, rows)])
    assert {one.split(",")[0].split(":")[0] for one in whole.found} == {"left.parquet", "left.json"}
    monkeypatch.setattr(leftovers, "PASS", 2000)
    monkeypatch.setattr(leftovers, "ROWS", 7)
    monkeypatch.setattr(leftovers, "PIECE", 64)
    monkeypatch.setattr(patterns, "WINDOW", 100)
    assert sorted(search(tmp_path, [(parent, diaries, rows)]).found) == sorted(whole.found)


def test_what_cannot_be_read_is_said(parent: Run, diaries: Corpus, tmp_path: Path) -> None:
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and then nothing")
    (tmp_path / "broken.gz").write_bytes(b"\x1f\x8b and then nothing")
    (tmp_path / "broken.zip").write_bytes(b"PK\x03\x04 and then nothing")
    told = search(tmp_path, [(parent, diaries, parent.rows()[:2])])
    assert (told.found, told.files) == ([], 3)
    assert told.unread == ["broken.gz", "broken.parquet", "broken.zip"]


@given(
    st.binary(max_size=300), st.lists(st.binary(min_size=6, max_size=40), max_size=12, unique=True), st.integers(1, 90),
    st.lists(st.tuples(st.integers(0, 290), st.integers(6, 40)), max_size=5),
)  # fmt: skip
def test_patterns_are_what_a_plain_search_finds(
    data: bytes, others: list[bytes], window: int, parts: list[tuple[int, int]]
) -> None:
    own = [data[begin : begin + size] for begin, size in parts if len(data[begin : begin + size]) >= patterns.LEAST]
    values = list(dict.fromkeys([*own, *others]))
    chunks = [data[begin : begin + window] for begin in range(0, len(data), window)]
    assert Patterns(values).found(chunks) == {number for number, one in enumerate(values) if one in data}
    word = rb"[0-9A-Za-z_-]"
    alone = {
        number
        for number, one in enumerate(values)
        if re.search(rb"(?<!" + word + rb")" + re.escape(one) + rb"(?!" + word + rb")", data, re.DOTALL)
    }
    assert Patterns(values, [True] * len(values)).found(chunks) == alone
