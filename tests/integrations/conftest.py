"""A small corpus of texts, a tokenizer made on the spot, and transformers with random weights: nothing is fetched."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest

import imprint
from imprint.corpus import Corpus

WORDS = {
    "card": "card stolen lost block pin",
    "money": "transfer money sent pending account",
    "rate": "exchange rate dollar euro today",
}
EXAMPLES = 48


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Texts of 2 to 9 words about three things, a third of them to ask about."""
    random = np.random.default_rng(0)
    common = ["my", "the", "please", "help", "why", "is"]
    labels = [list(WORDS)[number % 3] for number in range(EXAMPLES)]
    said = [
        " ".join(random.permutation([*random.choice(WORDS[label].split(), 2), *random.choice(common, number % 8)]))
        for number, label in enumerate(labels)
    ]
    frame = pl.DataFrame(
        {
            "id": [f"text-{number}" for number in range(EXAMPLES)],
            "text": said,
            "label": labels,
            "split": ["test" if number % 4 == 1 else "train" for number in range(EXAMPLES)],
        }
    )
    folder = tmp_path_factory.mktemp("texts")
    return imprint.open(frame, target="label", inputs="text", id="id", split="split", store=folder / "store")


@pytest.fixture(scope="session")
def tokenizer(texts: Corpus) -> Any:
    """A fast tokenizer that knows the words of the corpus: `[CLS] words [SEP]`."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    words = sorted({word for text in texts.read(texts.rows())["text"] for word in text.split()})
    vocabulary = {word: code for code, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words])}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, "[UNK]"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    inner.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", model_max_length=16
    )  # fmt: skip
