"""Record a Hugging Face `Trainer`: a callback, and a column that says which example is which.

    from imprint.integrations.transformers import RecordTrainer

    dataset = dataset.add_column("imprint_row", corpus.rows("train"))       # or a column of ids, named with `column=`
    arguments = TrainingArguments(..., remove_unused_columns=False)
    recording = RecordTrainer("runs/mine", corpus, tokenizer=tokenizer)
    Trainer(model, arguments, train_dataset=dataset, callbacks=[recording]).train()

The column travels in the batch up to the model, where a hook takes it out again and reads the logits of the same forward pass: no
second pass is needed, and the model never sees the column.

With the tokenizer (or `inputs=`) the run can be asked later what the model says of any example, and for gradients: `Classifier` calls the
model as Imprint calls a module, with one tensor. Opened again, `imprint.load(path, corpus, model=Classifier(model))`.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from imprint.errors import EvidenceError, LearnerError, MissingExtra
from imprint.integrations.select_trainer import SelectTrainer
from imprint.models.features import last_input
from imprint.models.subwords import PADDING, Subwords
from imprint.recording import Run, Watch, watch

try:
    from transformers import TrainerCallback
except ImportError as error:  # pragma: no cover - depends on the installation
    raise MissingExtra("transformers", "Recording a Hugging Face Trainer") from error

if TYPE_CHECKING:
    from imprint.corpus import Corpus

# Tokens that go through the model at a time in inference mode.
TOKENS_AT_A_TIME = 2**15


class Classifier(nn.Module):
    """A Hugging Face classification model as Imprint calls modules: one tensor in, logits out.

    A model with `input_ids` is given codes `[example, position]` in which `PADDING` (-1) stands behind the end: what the model sees there
    is its own padding code, and a mask that leaves it out. Any other model is given the tensor as it is (pixels, features).

    Args:
        model: What `Trainer` trains: its output has `.logits`, a key "logits", or is the logits. Its weights keep their names.

    >>> from transformers import BertConfig, BertForSequenceClassification
    >>> small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    >>> model = Classifier(BertForSequenceClassification(BertConfig(vocab_size=50, num_labels=3, **small)).eval())
    >>> alone, padded = torch.tensor([[7, 9]]), torch.tensor([[7, 9, -1, -1]])
    >>> torch.allclose(model(alone), model(padded), atol=1e-6)
    True
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        takes = inspect.signature(type(model).forward).parameters
        self.codes, self.masked = "input_ids" in takes, "attention_mask" in takes
        padding = getattr(getattr(model, "config", None), "pad_token_id", None)
        self.padding = 0 if padding is None or padding < 0 else int(padding)

    def forward(self, inputs: Shaped[Tensor, "example ..."]) -> Float[Tensor, "example class"]:
        """Logits; in inference mode some examples at a time, and no longer than the longest of them."""
        if not (torch.is_inference_mode_enabled() and self.codes):
            return self._logits(inputs)
        return torch.cat([self._logits(part) for part in self._parts(inputs)])

    def features(self, inputs: Shaped[Tensor, "example ..."]) -> Float[Tensor, "example feature"]:
        """What the last linear layer decides on; where it decides at every position (GPT-2), that of the last token."""
        found = []
        for part in self._parts(inputs) if self.codes else [inputs]:
            hidden = last_input(self.model, lambda part=part: self._logits(part))  # type: ignore[misc]
            if self.codes and hidden.dim() == 3:
                last = (part != PADDING).sum(1).clamp(min=1) - 1
                hidden = hidden[torch.arange(len(part), device=part.device), last]
            found.append(hidden.flatten(1))
        return torch.cat(found)

    def narrow(self, inputs: Shaped[Tensor, "example ..."]) -> Shaped[Tensor, "example ..."]:
        """Inputs less the positions that are padding in all of them."""
        if not self.codes or not len(inputs):
            return inputs
        return inputs[:, : max(1, int((inputs != PADDING).sum(1).max()))]

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The model's own: a run keeps its weights under the names that they have without Imprint."""
        return self.model.state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """The model's own."""
        return self.model.load_state_dict(state_dict, strict=strict, assign=assign)

    def _parts(self, inputs: Tensor) -> list[Tensor]:
        size = max(1, TOKENS_AT_A_TIME // max(1, inputs.shape[1]))
        return [self.narrow(part) for part in torch.split(inputs, size)]

    def _logits(self, inputs: Tensor) -> Tensor:
        if self.codes:
            real = inputs != PADDING
            named = {"attention_mask": real.long()} if self.masked else {}
            output = self.model(input_ids=inputs.long().masked_fill(~real, self.padding), **named)
        else:
            output = self.model(inputs)
        return output if isinstance(output, Tensor) else logits_of(output, self.model)


class RecordTrainer(TrainerCallback):  # type: ignore[misc]
    """A `Trainer` callback that records the training as a run.

    Args:
        path: Folder of the run.
        corpus: Whose examples are trained on.
        column: Column of the training set with rows of the corpus (integers) or ids (strings). Strings need a collator that keeps them.
        task: As in `imprint.watch`.
        classes: As in `imprint.watch`: values of the target in the order of the model's outputs.
        tokenizer: What turned the corpus' texts into the codes that the Trainer feeds: a fast tokenizer. With it (or `inputs`), outputs,
            features and gradients of all examples can be had from the run. The first batch is held against it.
        length: After how many tokens texts were cut; None for the tokenizer's own limit, or the model's.
        inputs: In place of a tokenizer, as in `imprint.watch`: what `Classifier` is called with, a tensor with one row of codes per row of
            the corpus, -1 where a text has ended, or a function of rows.
    """

    def __init__(
        self,
        path: str | Path,
        corpus: Corpus,
        *,
        column: str = "imprint_row",
        task: str = "auto",
        classes: Any = None,
        tokenizer: Any = None,
        length: int | None = None,
        inputs: Any = None,
    ) -> None:
        self.path, self.corpus, self.column, self.task, self.classes = path, corpus, column, task, classes
        self.tokenizer, self.length, self.inputs = tokenizer, length, inputs
        self.recorder: Watch | None = None
        self._hooks: list[Any] = []
        self._rates: list[float] = []
        self._ids: Any = None
        self._checked = False

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
            self.path,
            self.corpus,
            Classifier(model),
            task=self.task,
            classes=self.classes,
            encoder=self._encoder(model),
            inputs=self.inputs,
            infer_epochs=False,
        ).__enter__()
        self._hooks = [
            model.register_forward_pre_hook(self._before, with_kwargs=True),
            model.register_forward_hook(self._after),
        ]

    def on_step_begin(self, args: Any, state: Any, control: Any, lr_scheduler: Any = None, **_: Any) -> None:
        """Take note of the learning rate."""
        if lr_scheduler is not None:
            self._rates.append(float(lr_scheduler.get_last_lr()[0]))

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Close the epoch."""
        if self.recorder is not None:
            self.recorder.epoch(sum(self._rates) / len(self._rates) if self._rates else None)
            self._rates = []

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Close the run."""
        for hook in self._hooks:
            hook.remove()
        if self.recorder is not None:
            self.recorder.__exit__(None, None, None)

    def _encoder(self, model: nn.Module) -> Subwords | None:
        if self.tokenizer is None:
            return None
        places = getattr(getattr(model, "config", None), "max_position_embeddings", None)
        limit = getattr(self.tokenizer, "model_max_length", None)
        length = self.length
        if length is None and places is not None and (limit is None or places < limit):
            length = int(places)
        return Subwords(self.tokenizer, length).fit(self.corpus, self.corpus.rows())

    def _before(self, model: nn.Module, positional: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        named = dict(named)
        self._ids = named.pop(self.column, None)
        if model.training and self._ids is None:
            raise EvidenceError(
                f"The batches have no column '{self.column}'.",
                f"Add it: dataset.add_column({self.column!r}, corpus.rows('train')), and let the collator keep it.",
            )
        if model.training and not self._checked and self.recorder is not None:
            self._check(named)
            self._checked = True
        return positional, named

    def _check(self, named: dict[str, Any]) -> None:
        """Hold what the Trainer feeds against what the run will feed the model later."""
        codes = named.get("input_ids")
        encoder = self.recorder.encoder if self.recorder is not None else None
        if encoder is None or not isinstance(codes, Tensor):
            return
        mask = named.get("attention_mask")
        fed = codes if mask is None else codes.masked_fill(mask == 0, PADDING)
        rows = self.recorder._rows(self._ids).numpy()  # type: ignore[union-attr]
        for row, own, said in zip(rows, encoder.encode(self.corpus.read(rows)), fed.cpu(), strict=True):
            if not torch.equal(own[own != PADDING].long(), said[said != PADDING].long()):
                raise EvidenceError(
                    f"The Trainer feeds the example {self.corpus.ids[int(row)]!r} other codes than the tokenizer gives for its text.",
                    "Give length= as the texts were cut, and an attention_mask where they are padded; or inputs= in place of tokenizer=.",
                )

    def _after(self, model: nn.Module, _: Any, output: Any) -> None:
        if not model.training or self.recorder is None:
            return
        self.recorder.batch(self._ids, logits_of(output, model))


def logits_of(output: Any, model: nn.Module) -> Tensor:
    """The logits in what a model returns.

    Raises:
        EvidenceError: There are none.
    """
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if not isinstance(logits, Tensor):
        raise EvidenceError(f"{type(model).__name__} gives no logits.", "Use a model whose output has `.logits`.")
    return logits


__all__ = ["Classifier", "RecordTrainer", "SelectTrainer", "logits_of"]
