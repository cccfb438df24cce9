"""Record a Lightning training: a callback that reads ids from the batch and logits from what `training_step` returns.

from imprint.integrations.lightning import Record

class Net(LightningModule):
    def training_step(self, batch, _):
        rows, inputs, target = batch
        logits = self(inputs)
        return {"loss": F.cross_entropy(logits, target), "logits": logits}

Trainer(callbacks=[Record("runs/mine", corpus, ids=lambda batch: batch[0])]).fit(net, loader)
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from imprint.errors import EvidenceError, MissingExtra
from imprint.recording import Run, Watch, watch

try:
    from lightning.pytorch import Callback
except ImportError:
    try:
        from pytorch_lightning import Callback
    except ImportError as error:  # pragma: no cover - depends on the installation
        raise MissingExtra("lightning", "Recording a Lightning training") from error

if TYPE_CHECKING:
    from imprint.corpus import Corpus


class Record(Callback):  # type: ignore[misc]
    """A Lightning callback that records the training as a run.

    Args:
        path: Folder of the run.
        corpus: Whose examples are trained on.
        ids: Takes ids (strings) or rows of the corpus (integers) out of a batch.
        outputs: Takes logits out of what `training_step` returned.
        task: As in `imprint.watch`.
        classes: As in `imprint.watch`: values of the target in the order of the module's outputs.
    """

    def __init__(
        self,
        path: str | Path,
        corpus: Corpus,
        *,
        ids: Callable[[Any], Any],
        outputs: Callable[[Any], Tensor] = lambda returned: returned["logits"],
        task: str = "auto",
        classes: Any = None,
    ) -> None:
        self.path, self.corpus, self.ids, self.outputs = path, corpus, ids, outputs
        self.task, self.classes = task, classes
        self.recorder: Watch | None = None

    @property
    def run(self) -> Run:
        """The recorded run, after the training."""
        if self.recorder is None:
            raise EvidenceError("Nothing was recorded yet.", "Call trainer.fit(...) first.")
        return self.recorder.run

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Open the run."""
        self.recorder = watch(
            self.path, self.corpus, pl_module, task=self.task, classes=self.classes, infer_epochs=False
        ).__enter__()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Record the batch."""
        try:
            logits = self.outputs(outputs)
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            raise EvidenceError(
                f"training_step returned {type(outputs).__name__} without logits.",
                'Return {"loss": loss, "logits": logits}, or give Record(outputs=...).',
            ) from error
        assert self.recorder is not None
        self.recorder.batch(self.ids(batch), logits)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Close the epoch."""
        if self.recorder is not None:
            self.recorder.epoch()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Close the run."""
        if self.recorder is not None:
            self.recorder.__exit__(None, None, None)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """The run ends as interrupted."""
        if self.recorder is not None:
            self.recorder.__exit__(type(exception), exception, None)
            self.recorder = None
