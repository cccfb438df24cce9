"""One finder of near duplicates, alone in its process: imprint or a peer. `benchmarks/duplicates.py` runs it and judges what it found.

    PYTHON benchmarks/duplicate_finders.py NAME GIVEN FOUND.npz [--threads 2] [--near 0.85] ...

GIVEN is a JSON list of texts, or a folder of images. FOUND holds `pairs` `[pair, 2]` of rows (of files in sorted order), `flagged` rows,
`seconds` and `processor` (of all threads), `peak` MiB of the process while it worked and `new` MiB of it, and `version`. The peers come
from an environment of their own, which needs nothing of imprint's:

    python -m venv /tmp/venv-duplicates
    /tmp/venv-duplicates/bin/pip install semhash==0.5.0 rensa==0.5.0 datasketch==2.0.0 ImageHash==4.3.2 scikit-learn matplotlib
    /tmp/venv-duplicates/bin/pip install --no-deps imagededup==0.3.3.post2

What is timed: all work from data in memory (texts) or files (images) to pairs; not the start of the process, the imports, and the loading
of an encoder. Texts reach the peers in lower case and without signs, for nothing; imprint does that within its time.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np

SHINGLE, HASHES, BANDS = 6, 96, 16


@dataclass
class Settings:
    """What the command line says, beside the data."""

    near: float
    hamming: int
    encoder: Path
    threads: int


Found = tuple[Iterable[tuple[int, int]], Iterable[int]]
Work = Callable[[], Found]


def plain(text: str) -> str:
    """Lower case, runs of anything but letters and digits as one space."""
    return re.sub(r"[\W_]+", " ", text.lower()).strip()


def runs(text: str) -> list[bytes]:
    """All runs of six bytes."""
    data = text.encode()
    return [data[at : at + SHINGLE] for at in range(len(data) - SHINGLE + 1)]


# imprint: exact and near duplicates, from opening the corpus to flags.


def imprint_texts(texts: list[str], settings: Settings) -> Work:
    import polars as pl

    import imprint
    from imprint.cleaning.duplicates import exact_duplicates
    from imprint.cleaning.texts import near_duplicate_texts

    def work() -> Found:
        frame = pl.DataFrame({"text": texts, "label": np.arange(len(texts)) % 2})
        with tempfile.TemporaryDirectory() as store:
            corpus = imprint.open(frame, target="label", store=store)
            place = corpus.positions.to_numpy().astype(np.int64)
            found = [exact_duplicates(corpus), near_duplicate_texts(corpus)]
        return _flagged(found, place)

    return work


def imprint_images(folder: Path, settings: Settings) -> Work:
    import faiss
    import PIL.Image  # noqa: F401  (imported before the clock starts, as the peers' modules are)

    import imprint
    from imprint.cleaning.duplicates import exact_duplicates
    from imprint.cleaning.images import near_duplicate_images, thumbnails

    faiss.omp_set_num_threads(settings.threads)

    def work() -> Found:
        with tempfile.TemporaryDirectory() as store:
            corpus = imprint.open(folder, store=store)
            place = np.array([int(Path(str(position)).stem) for position in corpus.positions])
            found = [exact_duplicates(corpus), near_duplicate_images(corpus, thumbnails(corpus))]
        return _flagged(found, place)

    return work


def _flagged(found: list[Any], place: np.ndarray) -> Found:
    pairs = np.concatenate([np.stack([flags.row, flags.related], 1) for flags in found if len(flags)])
    return place[pairs].tolist(), place[np.unique(pairs)].tolist()


# Texts


def datasketch(texts: list[str], settings: Settings) -> Work:
    """With the bands that imprint has: those that it would choose by itself find fewer. Then the similarity of signatures."""
    from datasketch import MinHash, MinHashLSH

    def work() -> Found:
        lsh, signatures, pairs = MinHashLSH(num_perm=HASHES, params=(BANDS, HASHES // BANDS)), [], []
        # Of the sets, not the lists, of runs: what is said twice is hashed once.
        for row, signature in enumerate(MinHash.generator((set(runs(text)) for text in texts), num_perm=HASHES)):
            near = (other for other in lsh.query(signature) if signature.jaccard(signatures[other]) >= settings.near)
            pairs += [(other, row) for other in near]
            lsh.insert(row, signature)
            signatures.append(signature)
        return pairs, {row for pair in pairs for row in pair}

    return work


def rensa(texts: list[str], settings: Settings, tokens: Callable[[str], Any] = runs) -> Work:
    """The deduplicator of its readme: banding, then the similarity of signatures; each text beside those that were kept."""
    from rensa import RMinHash, RMinHashDeduplicator

    def work() -> Found:
        # One object per text in bulk, and the pairs from the index: the quickest way that still says what is near what.
        signatures = RMinHash.from_token_sets((tokens(text) for text in texts), num_perm=HASHES, seed=42)
        finder = RMinHashDeduplicator(threshold=settings.near, num_perm=HASHES, use_lsh=True, num_bands=BANDS)
        names = [str(row) for row in range(len(texts))]
        kept = finder.add_pairs(zip(names, signatures, strict=True))
        copies = [row for row, unique in enumerate(kept) if not unique]
        sets = finder.get_duplicate_sets([signatures[row] for row in copies])
        pairs = [(int(other), row) for row, near in zip(copies, sets, strict=True) for other in near]
        return pairs, {*copies, *(row for pair in pairs for row in pair)}

    return work


def rensa_words(texts: list[str], settings: Settings) -> Work:
    """The same over words, as its readme has it."""
    return rensa(texts, settings, str.split)


def rensa_rho(texts: list[str], settings: Settings, tokens: Callable[[str], Any] = runs) -> Work:
    """Its quickest way, with eight bands as in its benchmark: flags without pairs, from sampled positions."""
    from rensa import RMinHash, RMinHashLSH

    def work() -> Found:
        matrix = RMinHash.digest_matrix_from_token_sets_rho([tokens(text) for text in texts], num_perm=128, seed=42)
        flags = RMinHashLSH(settings.near, 128, 8).query_duplicate_flags_matrix_one_shot(matrix)
        return [], np.flatnonzero(flags).tolist()

    return work


def rensa_rho_words(texts: list[str], settings: Settings) -> Work:
    return rensa_rho(texts, settings, str.split)


def semhash(texts: list[str], settings: Settings) -> Work:
    """At its default threshold. Its encoder has to be downloaded; here it gets static vectors that are at hand."""
    import lzma

    from model2vec import StaticModel
    from semhash import SemHash
    from tokenizers import Tokenizer

    with lzma.open(settings.encoder / "tokenizer.json.xz") as file:
        tokenizer = Tokenizer.from_str(file.read().decode())
    (path,) = settings.encoder.glob("*.npz")
    vectors = np.load(path)
    matrix = vectors[vectors.files[0]].astype(np.float32)
    model = StaticModel(matrix[: tokenizer.get_vocab_size()], tokenizer, normalize=True)

    def work() -> Found:
        # The row is carried along in a column that is not compared.
        records = [{"text": text, "row": str(row)} for row, text in enumerate(texts)]
        result = SemHash.from_records(records, columns=["text"], model=model).self_deduplicate()
        pairs = [(int(one.duplicate_of["row"]), int(one.record["row"])) for one in result.filtered]
        return pairs, {row for pair in pairs for row in pair}

    return work


# Images


def imagehash(folder: Path, settings: Settings) -> Work:
    """pHash of 64 bits, all pairs by exclusive or."""
    import imagehash as hashes
    from PIL import Image

    def work() -> Found:
        files = sorted(folder.rglob("*.*"), key=lambda file: file.stem)
        found = np.array([np.packbits(hashes.phash(Image.open(file)).hash).view(np.uint64)[0] for file in files])
        parts = []
        for start in range(0, len(found), 1024):
            near = np.bitwise_count(found[start : start + 1024, None] ^ found[None, start:]) <= settings.hamming
            left, right = np.nonzero(near)
            parts.append(np.stack([left, right], 1)[right > left] + start)
        pairs = np.concatenate(parts)
        return pairs.tolist(), np.unique(pairs).tolist()

    return work


def imagededup(folder: Path, settings: Settings) -> Work:
    """Its PHash and its own search. Its networks, which want torch and torchvision, are left out."""
    for absent in ("imagededup.methods.cnn", "imagededup.utils.models", "imagededup.utils.data_generator"):
        sys.modules[absent] = MagicMock()
    from imagededup.methods import PHash

    def work() -> Found:
        finder = PHash(verbose=False)
        codes = finder.encode_images(folder, recursive=True, num_enc_workers=settings.threads)
        near = finder.find_duplicates(
            encoding_map=codes, max_distance_threshold=settings.hamming, num_dist_workers=settings.threads
        )
        pairs = [(int(Path(name).stem), int(Path(other).stem)) for name, others in near.items() for other in others]
        return pairs, {row for pair in pairs for row in pair}

    return work


TEXTS: dict[str, tuple[str, Callable[[list[str], Settings], Work]]] = {
    "imprint": ("imprint", imprint_texts),
    "datasketch": ("datasketch", datasketch),
    "rensa": ("rensa", rensa),
    "rensa-words": ("rensa", rensa_words),
    "rensa-rho": ("rensa", rensa_rho),
    "rensa-rho-words": ("rensa", rensa_rho_words),
    "semhash": ("semhash", semhash),
}
IMAGES: dict[str, tuple[str, Callable[[Path, Settings], Work]]] = {
    "imprint": ("imprint", imprint_images),
    "imagehash": ("ImageHash", imagehash),
    "imagededup": ("imagededup", imagededup),
}


def memory(of: str) -> float:
    """MiB from the kernel's account of this process: `VmRSS` now, `VmHWM` the peak."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(of))
    return int(line.split()[1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("given", type=Path)
    parser.add_argument("found", type=Path)
    parser.add_argument("--near", type=float, default=0.85)
    parser.add_argument("--hamming", type=int, default=2)
    parser.add_argument("--encoder", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    settings = Settings(options.near, options.hamming, options.encoder, options.threads)
    if options.given.is_dir():
        package, finder = IMAGES[options.name]
        work = finder(options.given, settings)
    else:
        package, of_texts = TEXTS[options.name]
        texts = json.loads(options.given.read_text())
        work = of_texts(texts if options.name == "imprint" else [plain(text) for text in texts], settings)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = memory("VmRSS")
    began, processor = time.perf_counter(), sum(os.times()[:4])
    pairs, flagged = work()
    np.savez(
        options.found,
        seconds=time.perf_counter() - began,
        processor=sum(os.times()[:4]) - processor,
        peak=memory("VmHWM"),
        new=memory("VmHWM") - before,
        pairs=np.array(list(pairs), np.int64).reshape(-1, 2),
        flagged=np.array(sorted(flagged), np.int64),
        version=version(package),
    )


if __name__ == "__main__":
    main()
