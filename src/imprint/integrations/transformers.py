"""Record a Hugging Face `Trainer`: a callback, and a column that says which example is which.

    from imprint.integrations.transformers import RecordTrainer

    dataset = dataset.add_column("imprint_row", corpus.rows("train"))       # or a column of ids, named with `column=`
    arguments = TrainingArguments(..., remove_unused_columns=False)
    trainer = Trainer(model, arguments, train_dataset=dataset, callbacks=[RecordTrainer("runs/mine", corpus)])
    trainer.train()

The column travels in the batch up to the model, where a hook takes it out again and reads the logits of the same forward pass: no
second pass is needed, and the model never sees the column.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from imprint.errors import EvidenceError, LearnerError, MissingExtra
from imprint.recording import Run, Watch, watch

try:
    from transformers import TrainerCallback
except ImportError as error:  # pragma: no cover - depends on the installation
    raise MissingExtra("transformers", "Recording a Hugging Face Trainer") from error

if TYPE_CHECKING:
    from imprint.corpus import Corpus


class RecordTrainer(TrainerCallback):  # type: ignore[misc]
    """A `Trainer` callback that records the training as a run.

    Args:
        path: Folder of the run.
        corpus: Whose examples are trained on.
        column: Column of the training set with rows of the corpus (integers) or ids (strings). Strings need a collator that keeps them.
        task: As in `imprint.watch`.
        classes: As in `imprint.watch`: values of the target in the order of the model's outputs.
    """

    def __init__(
        self, path: str | Path, corpus: Corpus, *, column: str = "imprint_row", task: str = "auto", classes: Any = None
    ) -> None:
        self.path, self.corpus, self.column, self.task, self.classes = path, corpus, column, task, classes
        self.recorder: Watch | None = None
        self._hooks: list[Any] = []
        self._ids: Any = None

    @property
    def run(self) -> Run:
        """The recorded run, after the training."""
        if self.recorder is None:
            raise EvidenceError("Nothing was recorded yet.", "Call trainer.train() first.")
        return self.recorder.run

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Open the run and hook into the model."""
        if args.remove_unused_columns:
            raise LearnerError(
                f"The Trainer drops the column '{self.column}' before it reaches the model.",
                "Set TrainingArguments(remove_unused_columns=False).",
            )
        # A sampler may repeat examples; the Trainer says when an epoch ends.
        self.recorder = watch(
            self.path, self.corpus, model, task=self.task, classes=self.classes, infer_epochs=False
        ).__enter__()
        self._hooks = [
            model.register_forward_pre_hook(self._before, with_kwargs=True),
            model.register_forward_hook(self._after),
        ]

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Close the epoch."""
        if self.recorder is not None:
            self.recorder.epoch()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Close the run."""
        for hook in self._hooks:
            hook.remove()
        if self.recorder is not None:
            self.recorder.__exit__(None, None, None)

    def _before(self, model: nn.Module, positional: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        named = dict(named)
        self._ids = named.pop(self.column, None)
        if model.training and self._ids is None:
            raise EvidenceError(
                f"The batches have no column '{self.column}'.",
                f"Add it: dataset.add_column({self.column!r}, corpus.rows('train')), and let the collator keep it.",
            )
        return positional, named

    def _after(self, model: nn.Module, _: Any, output: Any) -> None:
        if not model.training or self.recorder is None:
            return
        logits = output["logits"] if isinstance(output, dict) else getattr(output, "logits", None)
        if not isinstance(logits, Tensor):
            raise EvidenceError(f"{type(model).__name__} gives no logits.", "Use a model whose output has `.logits`.")
        self.recorder.batch(self._ids, logits)
