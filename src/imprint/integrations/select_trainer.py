"""A Hugging Face `Trainer` that follows an Imprint sampler: its order, its weights, and the losses told back to it.

    trainer = SelectTrainer(model, arguments, train_dataset=dataset, sampler=selection.sampler())
    trainer.train()

Visits come in the order in which `imprint.fit` takes them for the same seed (`TrainingArguments.data_seed`, else `seed`), cut into the
Trainer's batches. A sampler without weights that reads nothing changes the order alone: the loss is the model's own. Else the loss is
computed from the logits, example by example; with all weights one it is what the model would have said.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from imprint.errors import LearnerError, MissingExtra
from imprint.fitting import Feed, Sampler, gradient_bound
from imprint.models.features import last_input

try:
    from transformers import Trainer
except ImportError as error:  # pragma: no cover - depends on the installation
    raise MissingExtra("transformers", "Following a sampler with a Hugging Face Trainer") from error

# The key under which a batch says which examples it holds; the model never sees it.
PLACE = "imprint_place"
STATE = "imprint_sampler.safetensors"
IGNORED = -100
# Losses of a batch: sums over the labels of each example, and how many labels each has.
Losses = Callable[[Tensor, Tensor], tuple[Float[Tensor, " example"], Float[Tensor, " example"]]]


class SelectTrainer(Trainer):  # type: ignore[misc]
    """A `Trainer` that visits what a sampler says.

    Args:
        *args: As of `Trainer`.
        sampler: The policy; indices are places in `train_dataset`.
        losses: From logits and labels the summed loss of each example and its number of labels; None for `losses_of`, which serves
            classification (also with several labels), regression and language modelling.
        features: Gives features of all training examples by the current model, for a sampler that reads them; None for the input
            of the model's last linear layer, averaged over positions.
        **kwargs: As of `Trainer`.

    Raises:
        LearnerError: The data set has no length, or the sampler reads losses and there are several processes.
    """

    def __init__(
        self,
        *args: Any,
        sampler: Sampler,
        losses: Losses | None = None,
        features: Callable[[], Float[Tensor, "example d"]] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        dataset: Any = self.train_dataset  # type: ignore[has-type]
        collate: Any = self.data_collator  # type: ignore[has-type]
        if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
            raise LearnerError(
                f"{type(dataset).__name__} cannot be asked for an example by its number.",
                "Give a data set with a length, not a stream.",
            )
        self.sampler, self.losses = sampler, losses
        self.feed: Feed | None = None
        self._features = features or self._last_features
        self._dataset = dataset
        self.train_dataset = Placed(dataset)
        self.data_collator = Placing(collate)

    def _get_train_sampler(self, *_: Any) -> Feed:
        batch = self.args.train_batch_size * self.args.gradient_accumulation_steps * max(1, self.args.world_size)
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        epochs = math.ceil(self.args.num_train_epochs)
        feed = Feed(self.sampler, len(self._dataset), epochs=max(1, epochs), seed=seed, features=self._features)
        if self.args.max_steps > 0:
            feed.epochs = math.ceil(self.args.max_steps / math.ceil(len(feed) / batch))
        if feed.feedback.reads and self.args.world_size > 1:
            raise LearnerError(
                "The sampler reads the losses of all examples, and each of several processes sees its own only.",
                "Train in one process, or use a sampler that reads nothing.",
            )
        self.feed = feed
        return feed

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The weighted loss of a batch, told to the sampler; of an evaluation, the model's own."""
        places = inputs.pop(PLACE, None)
        plain = places is None or not model.training or self.feed is None
        if plain or not (self.feed.weighted or self.feed.feedback.values):  # type: ignore[union-attr]
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        assert self.feed is not None
        if self.losses is None and (self.compute_loss_func is not None or self.label_smoother is not None):
            raise LearnerError(
                "The loss of each example is needed, and the Trainer's own loss function gives one for the batch.",
                "Give SelectTrainer(losses=...): from logits and labels, the loss of each example and its number of labels.",
            )
        labels = inputs["labels"]
        outputs = model(**inputs)
        logits = outputs["logits"] if isinstance(outputs, Mapping) else outputs[1]
        said = self.losses or (lambda logits, labels: losses_of(logits, labels, self._loss_is_shifted()))
        sums, counts = said(logits, labels)
        weights = self.feed.weights(places).to(sums.device)
        divisor = counts.sum() if num_items_in_batch is None else num_items_in_batch
        loss = (weights * sums).sum() / divisor
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes
        bounds = None
        if "bound" in self.feed.feedback.values:
            bounds = gradient_bound(lambda logits: _mean(*said(logits, labels)), logits)
        self.feed.tell(places, _mean(sums, counts), bounds)
        return (loss, outputs) if return_outputs else loss

    def _loss_is_shifted(self) -> bool:
        name = type(self.accelerator.unwrap_model(self.model)).__name__
        return name.endswith(("ForCausalLM", "LMHeadModel"))

    @torch.no_grad()
    def _last_features(self) -> Float[Tensor, "example d"]:
        model, found = self.accelerator.unwrap_model(self.model), []
        training = model.training
        model.eval()
        for begin in range(0, len(self._dataset), self.args.eval_batch_size):
            end = min(begin + self.args.eval_batch_size, len(self._dataset))
            collate = self._get_collator_with_removed_columns(self.data_collator, description="features")
            inputs = self._prepare_inputs(collate([self._dataset[place] for place in range(begin, end)]))
            hidden = last_input(model, lambda inputs=inputs: model(**inputs))  # type: ignore[misc]
            if hidden.dim() == 3:
                mask = inputs.get("attention_mask")
                real = torch.ones(hidden.shape[:2], device=hidden.device) if mask is None else mask.to(hidden.dtype)
                hidden = (hidden * real[..., None]).sum(1) / real.sum(1, keepdim=True).clamp(min=1)
            found.append(hidden.flatten(1).float().cpu())
        model.train(training)
        return torch.cat(found)

    # ------------------------------------------------------------------------------------------------- columns and checkpoints

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        columns: list[str] = self._signature_columns  # type: ignore[has-type]
        if PLACE not in columns:
            self._signature_columns = [*columns, PLACE]

    def _save_checkpoint(self, model: Any, trial: Any, *args: Any, **kwargs: Any) -> None:
        super()._save_checkpoint(model, trial, *args, **kwargs)
        folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
        if self.feed is not None and self.args.should_save and folder.is_dir():
            save_file({name: value.contiguous() for name, value in self.feed.state_dict().items()}, folder / STATE)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and self.feed is not None and (Path(checkpoint) / STATE).exists():
            self.feed.load_state_dict(load_file(Path(checkpoint) / STATE))


class Placed(torch.utils.data.Dataset[dict[str, Any]]):
    """A data set whose examples say where they stand in it."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, place: int) -> dict[str, Any]:
        return {**self.dataset[place], PLACE: place}

    def __getitems__(self, places: Sequence[int]) -> list[dict[str, Any]]:
        many = getattr(self.dataset, "__getitems__", None)
        examples = [self.dataset[place] for place in places] if many is None else many(list(places))
        return [{**example, PLACE: place} for place, example in zip(places, examples, strict=True)]


class Placing:
    """A collator that carries the examples' places past another one."""

    def __init__(self, collate: Callable[[list[Any]], dict[str, Any]]) -> None:
        self.collate = collate

    def __call__(self, examples: list[Any]) -> dict[str, Any]:
        places = [example[PLACE] for example in examples if isinstance(example, Mapping) and PLACE in example]
        if len(places) < len(examples):
            return self.collate(examples)
        batch = self.collate([{key: value for key, value in example.items() if key != PLACE} for example in examples])
        return {**batch, PLACE: torch.tensor(places)}


def losses_of(
    logits: Tensor, labels: Tensor, shifted: bool = False
) -> tuple[Float[Tensor, " example"], Float[Tensor, " example"]]:
    """Summed loss of each example, and its number of labels: what Hugging Face models average over a batch.

    Args:
        logits: `[example, class]`, `[example, 1]`, or `[example, position, class]`.
        labels: Whole numbers for cross entropy (-100 = none); floats for squared errors (as many outputs as the task has quantities, if
            that is one) or, with several columns, for a binary cross entropy each.
        shifted: Whether the logits at a position are about the label at the next.

    >>> losses_of(torch.zeros(2, 4), torch.tensor([1, 3]))
    (tensor([1.3863, 1.3863]), tensor([1., 1.]))
    """
    logits = logits.float()
    if labels.is_floating_point():
        if logits.dim() == 1 or logits.shape[-1] == 1:
            losses = (logits.reshape(len(labels), -1) - labels.reshape(len(labels), -1)).square()
        else:
            losses = F.binary_cross_entropy_with_logits(logits, labels.float(), reduction="none")
        return losses.flatten(1).mean(1), torch.ones(len(labels), device=logits.device)
    if shifted:
        logits, labels = logits[:, :-1], labels[:, 1:]
    each = F.cross_entropy(logits.flatten(0, -2), labels.flatten(), ignore_index=IGNORED, reduction="none")
    each = each.view(len(labels), -1)
    return each.sum(1), (labels != IGNORED).view(len(labels), -1).sum(1).to(each.dtype)


def _mean(sums: Tensor, counts: Tensor) -> Float[Tensor, " example"]:
    return sums / counts.clamp(min=1)
