"""`Learner(model=...)`: which encoder and which module a user's choice means.

A name is ENCODER, MODULE or ENCODER/MODULE: "mlp", "wordllama", "tfidf/linear", "image:96/resnet", "efficientnet-lite0/mlp".
Anything that is not a string is a module (or a `Frozen` backbone, or a scikit-learn estimator) on the corpus's own encoder.
"""

from __future__ import annotations

from typing import Any

from imprint.errors import LearnerError, nearest
from imprint.models import text
from imprint.models.array import ArrayEncoder
from imprint.models.encoder import Encoder, Source
from imprint.models.frozen import Frozen, FrozenEncoder, is_named_backbone, named_backbone
from imprint.models.image import LONGEST, ImageEncoder
from imprint.models.modules import HEADS, SOLVED, TRANSFORMER, Shape
from imprint.models.table import TableEncoder
from imprint.models.tokens import TokenEncoder

DEFAULT = "auto"
KNOWN = [
    "auto", *HEADS, TRANSFORMER, "table", "array", "image", "image:SIZE", "wordllama", "tfidf", "wordllama+tfidf", "minilm", "tokens",
    "sentence-transformers:NAME", "efficientnet-lite0", "timm:NAME",
]  # fmt: skip
# Which modality each encoder reads.
READS = {"table": ("table",), "array": ("array",), "image": ("image",), "tokens": ("text",)}
# The encoder of what the transformer reads, and nothing else does: codes of words.
TOKENS = "tokens"


def split(model: Any) -> tuple[Any, Any]:
    """(encoder, module) of a choice; "auto" where it leaves one open.

    >>> split("wordllama/linear"), split("mlp"), split("tfidf"), split("sentence-transformers:org/name")
    (('wordllama', 'linear'), ('auto', 'mlp'), ('tfidf', 'auto'), ('sentence-transformers:org/name', 'auto'))
    >>> split("transformer"), split("tokens")
    (('tokens', 'transformer'), ('tokens', 'transformer'))
    """
    if isinstance(model, Frozen):
        return model, model.head
    if not isinstance(model, str):
        return DEFAULT, model
    encoder, slash, head = model.rpartition("/")
    if slash and (head in HEADS or head == TRANSFORMER):
        return _paired(_checked(encoder), head)
    if model in HEADS or model == TRANSFORMER:
        return _paired(DEFAULT, model)
    return _paired(_checked(model), DEFAULT)


def encoder_for(corpus: Source, model: Any = DEFAULT, seed: int = 0) -> Encoder:
    """The encoder, not fitted yet, that this choice means for this corpus.

    Args:
        corpus: Its modality decides the default: skrub features for tables, word vectors and TF-IDF for texts, pixels for images.
        model: `Learner.model`.
        seed: Of everything that fitting draws.

    Raises:
        LearnerError: Unknown name (the nearest one is given), or an encoder of another modality.
        MissingExtra: What the encoder needs is not installed.
    """
    name, _ = split(model)
    if isinstance(name, Frozen):
        return FrozenEncoder(_own_encoder(corpus, name.size, seed), name)
    if name == DEFAULT:
        return _own_encoder(corpus, None, seed)
    if is_named_backbone(name):
        _must_read(name, corpus, ("image", "array"))
        backbone = named_backbone(name)
        return FrozenEncoder(_own_encoder(corpus, backbone.size, seed), backbone)
    if text.known(name):
        _must_read(name, corpus, ("text",))
        return text.TextEncoder(name, seed)
    if name == TOKENS:
        _must_read(name, corpus, READS[name])
        return TokenEncoder(seed)
    kind, _, size = name.partition(":")
    _must_read(name, corpus, READS[kind])
    return _own_encoder(corpus, int(size) if size else None, seed)


def resolve(model: Any, corpus: Source) -> Any:
    """The choice without "auto": "ENCODER/MODULE" for names; anything else is returned as it is.

    This is what a manifest holds.
    """
    encoder, head = split(model)
    if not isinstance(model, str):
        return model
    if encoder == TOKENS:
        _must_read(encoder, corpus, READS[encoder])
    if encoder == DEFAULT:
        encoder = text.default_name() if corpus.modality == "text" else corpus.modality
    if head == DEFAULT:
        images = corpus.modality == "image" or (corpus.modality == "array" and len(corpus.shape or ()) in (2, 3))
        head = "cnn" if images and not is_named_backbone(encoder) else "mlp"
    return f"{encoder}/{head}"


def head_of(model: Any, shape: Shape) -> Any:
    """The module of a choice; an open one is "cnn" for images and "mlp" for vectors."""
    _, head = split(model)
    if isinstance(head, str) and head != DEFAULT and head in ("cnn", "resnet") and len(shape) != 3:
        raise LearnerError(
            f"The model '{head}' reads images; these inputs are vectors of shape {shape}.", "Use 'mlp' or 'linear'."
        )
    if isinstance(head, str) and head == "nmtune" and len(shape) == 3:
        raise LearnerError(
            f"The model 'nmtune' reads features; these inputs are images of shape {shape}.",
            "Put a frozen backbone before it: 'efficientnet-lite0/nmtune', or Frozen(backbone, head='nmtune').",
        )
    return ("cnn" if len(shape) == 3 else "mlp") if isinstance(head, str) and head == DEFAULT else head


def solver_of(model: Any) -> str | None:
    """ "ridge", "logistic" or "rcal" if that is the module of a choice: a head that is solved at once; None for anything else.

    >>> solver_of("tfidf/ridge"), solver_of("logistic"), solver_of("wordllama/linear")
    ('ridge', 'logistic', None)
    """
    if isinstance(model, str) and model.startswith("python:"):  # a user's own model, as a manifest names it
        return None
    _, head = split(model)
    return head if isinstance(head, str) and head in SOLVED else None


def _own_encoder(corpus: Source, size: int | None, seed: int) -> Encoder:
    """The plain encoder of the corpus's modality."""
    if corpus.modality == "image":
        return ImageEncoder(size or LONGEST, seed)
    if corpus.modality == "text":
        return text.TextEncoder("", seed)
    return ArrayEncoder(seed) if corpus.modality == "array" else TableEncoder(seed)


def _paired(encoder: str, head: str) -> tuple[str, str]:
    """Codes of words and the transformer belong together, and either means both."""
    if encoder != TOKENS and head != TRANSFORMER:
        return encoder, head
    if encoder in (TOKENS, DEFAULT) and head in (TRANSFORMER, DEFAULT):
        return TOKENS, TRANSFORMER
    raise LearnerError(
        f"'{encoder}/{head}' is no model: the encoder 'tokens' gives codes of words, which only the module 'transformer' reads.",
        "Use model='transformer', or another encoder and module.",
    )


def _checked(name: str) -> str:
    kind, colon, size = name.partition(":")
    plain = name in (DEFAULT, *READS) or (kind == "image" and colon and size.isdecimal())
    if not (plain or text.known(name) or is_named_backbone(name)):
        raise LearnerError(f"Unknown model '{name}'.", nearest(name, KNOWN))
    return name


def _must_read(name: str, corpus: Source, modalities: tuple[str, ...]) -> None:
    if corpus.modality not in modalities:
        raise LearnerError(
            f"The encoder '{name}' reads {' or '.join(modalities)} inputs; this corpus is of the modality '{corpus.modality}'.",
            "Use model='auto', or choose other inputs=[...].",
        )
