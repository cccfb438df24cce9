"""The learner: everything that decides a training, and no weights.

`Learner("auto")` names nothing; `resolve(corpus)` replaces each "auto" by what fits the corpus, so that a manifest says in full
what was trained.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import torch

from imprint import tasks
from imprint.errors import LearnerError, nearest
from imprint.fitting.augment import AUGMENTS
from imprint.fitting.deletable import scheme
from imprint.fitting.losses import Loss, loss_from
from imprint.fitting.losses import resolved as resolved_loss
from imprint.fitting.samplers import Sampler, has_spec, sampler_from
from imprint.fitting.schedule import SCHEDULES
from imprint.fitting.sequenced import HEADS, Sequencing
from imprint.models import Frozen, is_estimator, resolve, solver_of
from imprint.models.frozen import is_named_backbone
from imprint.models.modules import TRANSFORMER

if TYPE_CHECKING:
    from imprint.corpus import Corpus

# How a manifest marks a model or sampler that is the user's own object.
OBJECT = "python:"
LONGEST_NAME = 400
OPTIMIZERS = ("adamw", "sgd")
# Of solved heads: the best or near it on seven data sets (digits, cancer, diabetes, Banking77 and TREC-6 by two encoders), whose
# features have a mean square of one; ridge hardly depends on it between 1e-3 and 1e-1.
WEIGHT_DECAY = {"adamw": 1e-2, "sgd": 5e-4, "ridge": 1e-2, "logistic": 3e-3, "rcal": 3e-3}
PRECISIONS = ("float32", "bfloat16", "float16")
RECORDS = ("logits", "summary", "none")
# Above this many bytes of logits over all epochs, loss, margin, confidence and correctness are recorded instead.
LOGITS_BYTES = 4 * 2**30

# Usual passes, bounded by the number of examples seen, so that 5M rows take one epoch. Measured on held-out rows: a classifier of
# a table starts to overfit after about 15 (Adult: .861 at its best, .855 after 25), a regression still gains at 50 (California
# housing: R2 .780 after 25, .799 after 50).
IMAGE_EPOCHS, IMAGE_VISITS = 12, 1_500_000
HEAD_EPOCHS, QUANTITY_EPOCHS, HEAD_VISITS = 15, 30, 6_000_000
# A transformer that is trained from nothing on TREC-6 (5,452 questions) has its best held-out loss after 3 epochs and its best accuracy
# after 5 or 6 (.864 to .868); beyond, it only learns the training examples by heart.
SEQUENCE_EPOCHS, SEQUENCE_VISITS = 6, 500_000
# Small corpora get more epochs, until an optimizer has taken this many steps.
LEAST_STEPS, MOST_EPOCHS = 300, 60


@dataclass(frozen=True)
class Learner:
    """A specification of a training.

    Attributes:
        model: "auto", a name known to `imprint.models`, a factory `(shape, width) -> nn.Module`, an `nn.Module` class or instance
            (copied with its weights), a `Frozen` backbone, or a scikit-learn estimator.
        task: "auto", "classification", "multilabel" or "regression".
        epochs: Passes over the training set; None chooses by modality and size.
        batch_size: Examples per step; None chooses by modality and size.
        optimizer: "adamw" or "sgd" (with Nesterov momentum 0.9).
        learning_rate: Peak learning rate; None chooses by optimizer, modality and batch size.
        weight_decay: Decoupled (adamw) or L2 (sgd) weight decay, or the penalty of a solved head (`imprint.fitting.heads`); None chooses
            by optimizer or solver.
        schedule: "onecycle", "cosine" or "constant".
        loss: What the training makes small: "auto" (the task's own: cross-entropy or squared error), "dice", "adaptive-dice", "focal",
            for labels also "weak-negatives" and "positive-unlabelled", or one of `imprint.fitting.losses` with numbers of its own.
        sampler: A `Sampler`; None visits every example once per epoch in a fresh order.
        augment: "auto" (mirror and shift natural colour images), "none" or "flip-crop".
        ema: Decay of an exponential moving average of the weights, which then is the final model; None for no average.
        precision: "auto", "float32", or on a GPU "bfloat16" or "float16" for mixed precision.
        device: "auto", or what `torch.device` takes.
        seed: Of initial weights, order, dropout and augmentation.
        record: "auto", "logits", "summary" (for very many classes) or "none".
        deletable: "sisa(shards=5, slices=4)" trains so that examples can be taken back exactly at a part of the cost
            (`imprint.fitting.sharded`); "s3t(shards=2, slices=4, orders=4)" so that they can be taken back at none, as often as there are
            stages left, for a training of `orders` times the cost (`imprint.fitting.sequenced`); None trains one module on everything.
    """

    model: Any = "auto"
    task: str = "auto"
    epochs: int | None = None
    batch_size: int | None = None
    optimizer: str = "adamw"
    learning_rate: float | None = None
    weight_decay: float | None = None
    schedule: str = "onecycle"
    sampler: Sampler | str | None = None
    augment: str = "auto"
    ema: float | None = None
    precision: str = "auto"
    device: str = "auto"
    seed: int = 0
    record: str = "auto"
    loss: str | Loss = "auto"
    deletable: str | None = None

    def __post_init__(self) -> None:
        _one_of("task", self.task, ("auto", *tasks.TASKS))
        _one_of("optimizer", self.optimizer, OPTIMIZERS)
        _one_of("schedule", self.schedule, SCHEDULES)
        _one_of("augment", self.augment, ("auto", *AUGMENTS))
        _one_of("precision", self.precision, ("auto", *PRECISIONS))
        _one_of("record", self.record, ("auto", *RECORDS))
        for name in ("epochs", "batch_size"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise LearnerError(
                    f"{name}={value!r} is not a whole number above 0.", f"Give {name} as 1 or more, or leave it out."
                )
        if isinstance(self.loss, Mapping):  # as manifests and recipes hold it
            object.__setattr__(self, "loss", loss_from(self.loss))
        loss_from(self.loss)
        if self.deletable is not None:
            scheme(self.deletable)
        if self.learning_rate is not None and not 0 < self.learning_rate < math.inf:
            raise LearnerError(f"learning_rate={self.learning_rate!r} is not a number above 0.", "Try 0.001.")
        if self.weight_decay is not None and not 0 <= self.weight_decay < math.inf:
            raise LearnerError(f"weight_decay={self.weight_decay!r} is not a number from 0.", "Try 0.01.")
        if self.ema is not None and not 0 < self.ema < 1:
            raise LearnerError(f"ema={self.ema!r} is not between 0 and 1.", "Try 0.999, or leave it out.")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise LearnerError(f"seed={self.seed!r} is not a whole number.", "Give an integer.")
        named = isinstance(self.sampler, str) and self.sampler.startswith(OBJECT)  # as read from a manifest
        if self.sampler is not None and not named and not hasattr(self.sampler, "epoch"):
            raise LearnerError(
                f"sampler={self.sampler!r} has no method 'epoch'.", "See imprint.fitting.Sampler for the contract."
            )
        if self.device != "auto":
            try:
                torch.device(self.device)
            except RuntimeError as error:
                raise LearnerError(f"device={self.device!r}: {error}", "Try 'cpu', 'cuda' or 'auto'.") from error

    def resolve(self, corpus: Corpus) -> Learner:
        """The same learner with every "auto" and None replaced by what fits the corpus; this is what a manifest holds.

        Raises:
            LearnerError: A setting does not fit the corpus or this machine.
        """
        if corpus.roles.target is None:
            raise LearnerError("The corpus has no target column.", "Open it with target=COLUMN.")
        task = tasks.infer(corpus.target) if self.task == "auto" else self.task
        n = len(corpus.rows("train")) if "train" in corpus.splits else len(corpus)
        model = resolve(self.model, corpus)
        solver = solver_of(model)
        if self.deletable is not None:
            self._check_deletable(model, solver or (type(model).__name__ if is_estimator(model) else None))
        at_once = f"A {solver} head" if solver else type(model).__name__ if is_estimator(model) else None
        images = _reads_pixels(model, corpus) and solver is None
        head = model.rpartition("/")[2] if isinstance(model, str) else ""
        kind = "images" if images else "words" if head == TRANSFORMER else "vectors"
        device = self.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        on_gpu = torch.device(device).type == "cuda"
        if on_gpu and not torch.cuda.is_available():
            raise LearnerError(f"device={device!r}, but PyTorch sees no CUDA device.", "Use device='cpu' or 'auto'.")
        if self.precision == "float16" and not on_gpu:
            raise LearnerError("precision='float16' needs a CUDA device.", "Use precision='auto'.")
        precision = self.precision
        if precision == "auto":
            precision = ("bfloat16" if torch.cuda.is_bf16_supported() else "float16") if on_gpu else "float32"
        batch_size = min(self.batch_size or _batch_size(n, kind), max(1, n))
        epochs = 1 if solver else self.epochs or _epochs(n, batch_size, kind, task)
        augment = self.augment
        if augment == "auto":
            augment = "flip-crop" if images and corpus.modality == "image" and is_natural(corpus) else "none"
        if augment != "none" and not images:
            raise LearnerError(f"augment={augment!r} needs a model that reads pixels.", "Use augment='none'.")
        record = self.record
        if solver or self.deletable is not None:
            record = "none"
        elif record == "auto":
            record = "logits" if 2 * epochs * n * _width(task, corpus) <= LOGITS_BYTES else "summary"
        return replace(
            self,
            model=model,
            task=task,
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=self.learning_rate or _learning_rate(self.optimizer, batch_size, head),
            weight_decay=WEIGHT_DECAY[solver or self.optimizer] if self.weight_decay is None else self.weight_decay,
            augment=augment,
            precision=precision,
            device=device,
            record=record,
            loss=resolved_loss(self.loss, task, at_once),
        )

    def _check_deletable(self, model: Any, at_once: str | None) -> None:
        """Raise `LearnerError` if this learner cannot be trained in shards."""
        if at_once is not None:
            other = (
                "Forget from it with method='analytic'" if at_once == "ridge" else "Forget with 'newton' or 'retrain'"
            )
            raise LearnerError(
                f"deletable={self.deletable!r}, but a {at_once} has no stages.", f"{other}, which need no shards."
            )
        if self.sampler is not None:
            raise LearnerError(
                f"deletable={self.deletable!r} has no place for a sampler: each stage visits what is its own.",
                "Leave one out.",
            )
        if not isinstance(scheme(str(self.deletable)), Sequencing):
            return
        head = model.head if isinstance(model, Frozen) else model
        if not isinstance(head, str) or head.rpartition("/")[2] not in HEADS:
            named = head if isinstance(head, str) else qualified_name(head).removeprefix(OBJECT)
            raise LearnerError(
                f"deletable={self.deletable!r} trains small changes of a head on frozen features, and '{named}' learns its features.",
                "Use model='mlp' or 'linear' (on images behind a frozen backbone: 'efficientnet-lite0/mlp'), or "
                "deletable='sisa(shards=5, slices=4)', which serves any module.",
            )

    def spec(self) -> dict[str, Any]:
        """JSON-able description: our samplers by their own; user's factories, samplers and estimators by qualified name."""
        return {field.name: _described(getattr(self, field.name)) for field in fields(self)}

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any], *, model: Any = None, sampler: Sampler | None = None) -> Learner:
        """Rebuild a learner from `spec()`. Nothing is imported by name: user's objects are passed in again, or left as names."""
        known = {field.name for field in fields(cls)}
        values = {name: value for name, value in spec.items() if name in known}
        if isinstance(values.get("sampler"), Mapping):
            values["sampler"] = sampler_from(values["sampler"])
        if sampler is not None:
            values["sampler"] = sampler
        if model is not None:
            values["model"] = model
        return cls(**values)


def _described(value: Any) -> Any:
    if value is None or isinstance(value, str | int | float):
        return value
    return value.spec() if has_spec(value) or isinstance(value, Loss) else qualified_name(value)


def shown(value: Any) -> str:
    """A value of `spec()` as messages show it: a sampler by its name and not by all that it visits.

    >>> shown(0.1), shown({"sampler": "repeated", "fraction": 0.1})
    ('0.1', 'Repeated(fraction=0.1, replace=False)')
    """
    if isinstance(value, Mapping):
        return repr(sampler_from(value) if "sampler" in value else loss_from(value))
    return repr(value)


def qualified_name(value: Any) -> str:
    """`python:module:name` of a factory or class; of other objects their class, with parameters where printing shows them."""
    if isinstance(value, type) or hasattr(value, "__qualname__"):
        return f"{OBJECT}{value.__module__}:{value.__qualname__}"
    shown = f"{OBJECT}{type(value).__module__}:{type(value).__qualname__}"
    printed = " ".join(repr(value).split())[:LONGEST_NAME]
    return shown if isinstance(value, torch.nn.Module) or printed.startswith("<") else f"{shown} {printed}"


def _reads_pixels(model: Any, corpus: Corpus) -> bool:
    """Whether the module is trained on images themselves, and not on tables, texts or the features of a frozen backbone."""
    pictures = corpus.modality == "image" or (corpus.modality == "array" and len(corpus.shape or ()) in (2, 3))
    if isinstance(model, str):
        return pictures and not is_named_backbone(model.rpartition("/")[0])
    return pictures and not isinstance(model, Frozen)


def _one_of(name: str, value: Any, known: tuple[str, ...]) -> None:
    if value not in known:
        raise LearnerError(f"{name}={value!r} is unknown.", nearest(str(value), known))


def _power_of_two(value: float) -> int:
    return 2 ** max(0, round(math.log2(max(1.0, value))))


def _batch_size(n: int, kind: str) -> int:
    """Images and words: 128, less for small sets. Vectors: about n/64 up to 512, and beyond 250k examples grown on to 8192."""
    if kind != "vectors":
        return min(128, max(16, _power_of_two(n / (32 if kind == "images" else 64))))
    return min(512, max(64, _power_of_two(n / 64))) if n <= 250_000 else min(8192, _power_of_two(n / 512))


def _epochs(n: int, batch_size: int, kind: str, task: str = "classification") -> int:
    usual, visits = {
        "images": (IMAGE_EPOCHS, IMAGE_VISITS),
        "words": (SEQUENCE_EPOCHS, SEQUENCE_VISITS),
        "vectors": (QUANTITY_EPOCHS if task == "regression" else HEAD_EPOCHS, HEAD_VISITS),
    }[kind]
    steps = math.ceil(n / batch_size)
    least = min(MOST_EPOCHS, math.ceil(LEAST_STEPS / max(1, steps)))
    return max(1, least, min(usual, round(visits / max(1, n)))) if n else 1


def _learning_rate(optimizer: str, batch_size: int, head: str) -> float:
    """Peak rate, by the square root of the batch for Adam (Malladi et al., arXiv:2205.10287), linear for SGD (1706.02677).

    A linear head on standardised features has a long way to go and nothing that could break: it takes ten times the rate. A transformer
    takes half of it.
    """
    if optimizer == "adamw":
        scale = {"linear": 10.0, TRANSFORMER: 0.5}.get(head, 1.0)
        return min(1e-2, 3e-3 * math.sqrt(batch_size / 128)) * scale
    return min(1.0, 0.1 * batch_size / 128)


def _width(task: str, corpus: Corpus) -> int:
    if task == "regression":
        return 1
    target = corpus.target.explode() if task == "multilabel" else corpus.target
    return int(target.n_unique())


def is_natural(corpus: Corpus) -> bool:
    """Whether images look like natural colour photographs: a sample decodes to pictures whose channels differ."""
    import io

    import numpy as np

    try:
        from PIL import Image
    except ImportError:
        return False
    column = next((name for name, kind in corpus.kinds.items() if kind == "image"), None)
    if column is None or not len(corpus):
        return False
    rows = corpus.rows()
    frame = corpus.read(rows[np.linspace(0, len(rows) - 1, min(16, len(rows))).astype(np.int64)], columns=[column])
    coloured = 0
    for content in frame[column]:
        try:
            with Image.open(io.BytesIO(content)) as image:
                pixels = np.asarray(image.convert("RGB").resize((16, 16)), dtype=np.int16)
        except (OSError, ValueError, TypeError):
            continue
        coloured += int(np.ptp(pixels, axis=2).mean() > 4)  # of 255: JPEG noise in a grey picture stays below
    return coloured * 2 > len(frame)
