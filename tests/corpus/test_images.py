"""Folders of images and images in tables: where the label comes from, what is read back, what is set aside."""

from __future__ import annotations

import builtins
import io
import os
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

import imprint
from imprint.corpus import Corpus
from imprint.corpus.images import look, look_at_all, read_file
from imprint.corpus.store import _file_bytes
from imprint.errors import ColumnError, MissingExtra, SourceError


def png(seed: int, side: int = 6) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (side, side + 2, 3), dtype=np.uint8)).save(
        buffer, "PNG"
    )
    return buffer.getvalue()


def fill(root: Path, names: list[str]) -> dict[str, bytes]:
    files = {name: png(seed) for seed, name in enumerate(names)}
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return files


CLASSES = [f"{name}/{k}.png" for name in ("cat", "dog") for k in range(5)]


def test_a_folder_per_class(tmp_path: Path, store: Path) -> None:
    files = fill(tmp_path / "pets", CLASSES)
    corpus = imprint.open(tmp_path / "pets")
    assert corpus.ids.to_list() == corpus.positions.to_list() == sorted(CLASSES)
    assert corpus.target.to_list() == ["cat"] * 5 + ["dog"] * 5
    assert (corpus.modality, corpus.kinds, corpus.shape) == ("image", {"image": "image"}, None)
    assert corpus.splits == {"train": 8, "test": 2}
    assert corpus.read(np.array([7, 1]))["image"].to_list() == [files["dog/2.png"], files["cat/1.png"]]
    sizes = corpus.read(np.array([0]), ["image.width", "image.height"])
    assert sizes.row(0) == (8, 6)
    stored = sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
    assert stored < 64 << 10, "the images stay where they are"


def test_a_saved_corpus_of_images_holds_them(tmp_path: Path) -> None:
    files = fill(tmp_path / "pets", CLASSES)
    corpus = imprint.open(tmp_path / "pets").drop(["cat/0.png"]).relabel({"cat/1.png": "dog"})
    corpus.save(tmp_path / "saved")
    for name in files:
        (tmp_path / "pets" / name).unlink()
    back = Corpus.load(tmp_path / "saved")
    assert back.fingerprint == corpus.fingerprint
    assert back.read(back.rows())["image"].to_list() == [files[name] for name in sorted(files) if name != "cat/0.png"]
    assert back.read(np.array([0]), ["image.width"]).item() == 8
    with pytest.raises(SourceError, match=r"cat/1\.png was there"):
        corpus.read(np.array([0]))


def test_split_folders(tmp_path: Path) -> None:
    fill(tmp_path, [f"{split}/{name}" for split in ("train", "val", "test") for name in CLASSES])
    corpus = imprint.open(tmp_path)
    assert corpus.splits == {"train": 10, "test": 10, "valid": 10}
    assert corpus.target.unique().sort().to_list() == ["cat", "dog"]


def test_metadata_describes_the_images(tmp_path: Path) -> None:
    fill(tmp_path, [f"{k}.png" for k in range(6)] + ["left.png"])
    rows = "".join(f"{k}.png,{'a' if k % 2 else 'b'},p{k // 2}\n" for k in range(6))
    (tmp_path / "metadata.csv").write_text("file_name,label,person\n" + rows + "gone.png,a,p9\n")
    corpus = imprint.open(tmp_path, group="person")
    assert corpus.target.to_list() == ["b", "a"] * 3
    assert corpus.set_aside.rows() == [("gone.png", "named in the metadata, but there is no such file")]
    assert corpus.roles.inputs == ("image",)
    assert any("1 images are not in the metadata" in note for note in corpus.notes)
    more = imprint.open(tmp_path, inputs=["image", "person"])
    assert more.modality == "image"
    assert more.kinds == {"image": "image", "person": "categorical"}


def test_metadata_per_split_in_json_lines(tmp_path: Path) -> None:
    for split in ("train", "test"):
        fill(tmp_path / split, [f"{k}.png" for k in range(4)])
        lines = "".join(f'{{"file_name": "{k}.png", "label": {k % 2}}}\n' for k in range(4))
        (tmp_path / split / "metadata.jsonl").write_text(lines)
    corpus = imprint.open(tmp_path)
    assert corpus.splits == {"train": 4, "test": 4}
    assert corpus.ids[0] == "test/0.png"


def test_duplicates_share_their_content_across_classes(tmp_path: Path) -> None:
    fill(tmp_path, CLASSES)
    (tmp_path / "dog" / "copy.png").write_bytes((tmp_path / "cat" / "3.png").read_bytes())
    corpus = imprint.open(tmp_path)
    same = corpus.content == corpus.content[corpus.rows_of(["cat/3.png"])[0]]
    assert corpus.ids.filter(pl.Series(same)).to_list() == ["cat/3.png", "dog/copy.png"]


@pytest.mark.parametrize("structs", [True, False], ids=["structs", "bytes"])
def test_images_in_a_table(tmp_path: Path, structs: bool) -> None:
    images = [png(k) for k in range(8)]
    column = [{"bytes": data, "path": f"{k}.png"} for k, data in enumerate(images)] if structs else images
    pl.DataFrame({"image": column, "label": ["a", "b"] * 4}).write_parquet(tmp_path / "t.parquet")
    corpus = imprint.open(tmp_path / "t.parquet")
    assert corpus.modality == "image"
    assert corpus.read(np.array([5, 0]))["image"].to_list() == [images[5], images[0]]
    assert len(set(corpus.ids)) == 8


def test_folder_and_table_agree_on_content(tmp_path: Path) -> None:
    fill(tmp_path / "pets", CLASSES)
    folder = imprint.open(tmp_path / "pets")
    table = imprint.open(folder.frame().select("image", "label"))
    assert (table.content == folder.content).all()


def test_pillow_images_from_a_torch_data_set() -> None:
    class Items:
        def __len__(self) -> int:
            return 4

        def __getitem__(self, k: int) -> tuple[Image.Image, str]:
            return Image.open(io.BytesIO(png(k))), "ab"[k % 2]

    corpus = imprint.open(Items())
    assert corpus.modality == "image"
    with Image.open(io.BytesIO(corpus.read(np.array([2]))["x"][0])) as image:
        assert np.array_equal(np.asarray(image), np.asarray(Image.open(io.BytesIO(png(2)))))


def test_a_changed_file_is_opened_anew(tmp_path: Path) -> None:
    fill(tmp_path, CLASSES)
    first = imprint.open(tmp_path)
    assert imprint.open(tmp_path).fingerprint == first.fingerprint
    (tmp_path / "cat" / "0.png").write_bytes(png(99))
    os.utime(tmp_path / "cat" / "0.png", ns=(1, 1))
    assert imprint.open(tmp_path).fingerprint != first.fingerprint


def test_many_are_looked_at_and_read_in_their_order(tmp_path: Path) -> None:
    """Several files at a time per thread: what is broken, missing or of another size is told of the right one."""
    names = [f"{k:03d}.png" for k in range(340)]
    files = fill(tmp_path, names) | {"037.png": b"hello", "038.png": png(38, side=9)}
    for name in ("037.png", "038.png"):
        (tmp_path / name).write_bytes(files[name])
    (tmp_path / "039.png").unlink()
    looks = list(look_at_all(iter(names), read_file(tmp_path)))
    assert len(looks) == len(names)
    assert [k for k, one in enumerate(looks) if one.reason] == [37, 39]
    assert "cannot be read" in str(looks[39].reason)
    assert [k for k, one in enumerate(looks) if one.width == 11] == [38]
    there = [name for name in names if name != "039.png"]
    for count in (1, 20, 339):
        assert _file_bytes(tmp_path, there[:count]) == [files[name] for name in there[:count]]
    with pytest.raises(SourceError, match=r"039\.png was there when the corpus was opened"):
        _file_bytes(tmp_path, names)


def test_reasons_name_what_is_wrong() -> None:
    assert look(png(0)).reason is None
    assert "0 bytes" in str(look(b"").reason)
    assert "not an image" in str(look(b"hello").reason)
    assert "decoded" in str(look(png(0)[:-30]).reason)
    large = io.BytesIO()
    Image.new("1", (20000, 10000)).save(large, "PNG")
    assert "Pillow's limit" in str(look(large.getvalue()).reason)


def test_without_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, CLASSES)
    real = builtins.__import__

    def refuse(name: str, *arguments, **options):
        if name == "PIL" or name.startswith("PIL."):
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(MissingExtra, match="image"):
        imprint.open(tmp_path)


def test_metadata_that_hides_the_images(tmp_path: Path) -> None:
    fill(tmp_path, CLASSES)
    (tmp_path / "metadata.csv").write_text("file_name,image,label\ncat/0.png,x,a\n")
    with pytest.raises(ColumnError, match="'image'"):
        imprint.open(tmp_path)
