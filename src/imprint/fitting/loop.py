"""The training loop: plain PyTorch that reads from top to bottom.

What makes it fast is what it leaves out: batches are one `index_select` from a contiguous matrix, the optimizer is fused, the
learning rate is a pure function, and nothing is read back from the device within an epoch. What makes it exact is that
all randomness is derived from (seed, purpose, epoch or step): a training resumed from a checkpoint ends in bitwise the same weights
as one that ran through (same machine, same number of threads).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from imprint.errors import LearnerError
from imprint.fitting.augment import flip_crop
from imprint.fitting.data import Data
from imprint.fitting.feedback import Feedback, gradient_bound
from imprint.fitting.learner import OBJECT, Learner
from imprint.fitting.progress import Progress, silent
from imprint.fitting.samplers import Shuffled, checked
from imprint.fitting.samplers import visits as visits_of
from imprint.fitting.schedule import factor
from imprint.fitting.seeds import derive, generator
from imprint.models import features
from imprint.tasks import Batch, Task

PROGRESS_SECONDS = 0.2
# Share of free GPU memory that the inputs may take; beyond it, batches travel one by one.
DEVICE_SHARE = 0.5


@dataclass
class State:
    """Where a training stands: everything that has to be saved in order to go on from here.

    Attributes:
        module: The trained module.
        optimizer: Its optimizer.
        average: The moving average of the weights, if the learner asks for one.
        scaler: Gradient scaler for float16.
        epoch: The epoch in progress, or the last complete one (from 1; 0 = none).
        step: Optimizer steps taken.
        place: Examples of `indices` already visited; 0 between epochs.
        indices: Training examples that the epoch visits, in order (indices into the training rows).
        weights: Weight of each visit, or None.
        losses: Mean loss and number of examples of each step of the epoch so far.
        seconds: Training time so far, in this and earlier sittings.
        feedback: What the sampler is told, and what it keeps itself.
    """

    module: nn.Module
    optimizer: torch.optim.Optimizer
    average: AveragedModel | None
    scaler: torch.amp.GradScaler
    epoch: int = 0
    step: int = 0
    place: int = 0
    indices: Int[Tensor, " visit"] = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    weights: Float[Tensor, " visit"] | None = None
    losses: list[Tensor] = field(default_factory=list)
    seconds: float = 0.0
    learning_rate: float = 0.0
    feedback: Feedback = field(default_factory=lambda: Feedback(0))

    @property
    def model(self) -> nn.Module:
        """What the training is for: the average of the weights if there is one, else the module."""
        return self.module if self.average is None else self.average.module


class Observer(Protocol):
    """What recording plugs in. The loop calls it and never reads from it."""

    def on_batch(self, step: int, epoch: int, indices: Tensor, outputs: Tensor, loss: Tensor) -> None:
        """A batch was trained on: `indices` into the training rows, detached `outputs` and per-example `loss` on the device."""
        ...

    def on_epoch(self, state: State, loss: float) -> None:
        """An epoch is complete; `loss` is its mean training loss."""
        ...


class Saver(Protocol):
    """What checkpointing plugs in."""

    def due(self) -> bool:
        """Whether to save now, within an epoch; asked after each step."""
        ...

    def save(self, state: State) -> None:
        """Save a state, within an epoch or at its end."""
        ...


@dataclass(frozen=True)
class Trained:
    """The result of a training: its final model (the averaged one where there is an average) and what it took."""

    module: nn.Module
    epochs: int
    steps: int
    seconds: float
    loss: float


class Resume(Protocol):
    """Puts a fresh state back to where a checkpoint left it."""

    def __call__(self, state: State) -> None: ...


def train(
    module: nn.Module,
    task: Task,
    data: Data,
    learner: Learner,
    *,
    observers: Sequence[Observer] = (),
    saver: Saver | None = None,
    resume: Resume | None = None,
    progress: Progress = silent,
) -> Trained:
    """Train a module on the training rows of `data`.

    Args:
        module: Initialised module; it is changed in place. If it has a method `penalty()`, what that says of the batch that it has just
            read is added to the batch's loss.
        task: Gives outputs and per-example losses.
        data: Encoded examples.
        learner: A resolved learner (`Learner.resolve`).
        observers: Told every batch and epoch.
        saver: Saves checkpoints.
        resume: Restores the state of an earlier sitting.
        progress: Told the examples seen.

    Raises:
        LearnerError: The loss became infinite or not a number, or the sampler gave impossible indices.
    """
    if not (learner.epochs and learner.batch_size and learner.learning_rate):
        raise LearnerError("train() takes a resolved learner.", "Call learner.resolve(corpus) first.")
    if learner.deletable is not None:
        raise LearnerError("train() trains one module, and this learner has shards.", "Call train_deletable().")
    device = torch.device(learner.device)
    module = module.to(device)
    if device.type == "cuda" and data.inputs.dim() == 4:
        module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    inputs, target, rows = place(data, device)
    weight = normalised_weights(data, device)
    size = len(rows)
    if isinstance(learner.sampler, str):
        raise LearnerError(
            f"The run was trained with the sampler {learner.sampler.removeprefix(OBJECT)}, whose code is not part of it.",
            "Give it: imprint.load(path, sampler=...).",
        )
    sampler = learner.sampler or Shuffled()
    mixed: AbstractContextManager[object] = nullcontext()
    if learner.precision != "float32":
        mixed = torch.autocast(device.type, autocast_dtype(learner))
    state = State(
        module,
        _optimizer(module, learner),
        _average(module, learner),
        torch.amp.GradScaler(device.type, enabled=learner.precision == "float16"),
        feedback=Feedback.of(sampler, size),
    )
    loss = float("nan")
    penalty = getattr(module, "penalty", None)
    with _own_randomness(device):
        if resume is not None:
            resume(state)
        module.train()
        while state.epoch < learner.epochs or state.place:
            sitting = shown = time.perf_counter()
            earlier = state.seconds
            if not state.place:  # a new epoch; otherwise one that a checkpoint interrupted
                state.epoch += 1
                draw = state.feedback.asked(
                    state.epoch, learner.epochs, learner.seed, lambda: features_of(state.model, inputs, rows, device)
                )
                state.indices, state.weights = checked(sampler.epoch(draw), size, visits_of(sampler, size))
                state.losses = []
                torch.manual_seed(derive(learner.seed, "dropout", state.epoch))
            bounds = batch_bounds(len(state.indices), learner.batch_size)
            steps = len(bounds) - 1
            indices = state.indices.to(device)
            visits = rows.index_select(0, indices.to(rows.device))
            visit_weight = None if weight is None else weight.index_select(0, indices)
            if state.weights is not None:
                visit_weight = state.weights.to(device) * (1.0 if visit_weight is None else visit_weight)
            for batch_number in range(bounds.index(state.place), steps):
                begin, end = bounds[batch_number], bounds[batch_number + 1]
                chosen = visits[begin:end]
                batch = Batch(
                    _to_device(inputs.index_select(0, chosen), device),
                    target.index_select(0, chosen.to(target.device)),
                    None if visit_weight is None else visit_weight[begin:end],
                    chosen,
                )
                if learner.augment == "flip-crop":
                    batch.inputs = flip_crop(
                        batch.inputs, generator(learner.seed, "augment", state.step, device=device)
                    )
                batch.inputs = as_input(batch.inputs, device)
                # A sampler may give epochs of different sizes, so progress is counted in epochs.
                done = (state.epoch - 1 + batch_number / steps) / learner.epochs
                state.learning_rate = learner.learning_rate * factor(learner.schedule, done)
                for group in state.optimizer.param_groups:
                    group["lr"] = state.learning_rate
                with mixed:
                    outputs = task.outputs(module, batch)
                outputs = outputs.float()
                losses = task.objective(outputs, batch)
                mean = losses.mean() if batch.weight is None else (losses * batch.weight).mean()
                if penalty is not None:
                    mean = mean + penalty()
                state.optimizer.zero_grad(set_to_none=True)
                state.scaler.scale(mean).backward()  # type: ignore[no-untyped-call]
                state.scaler.step(state.optimizer)
                state.scaler.update()
                if state.average is not None:
                    state.average.update_parameters(module)
                state.step += 1
                state.place = end
                state.losses.append(mean.detach())
                seen = outputs.detach()
                state.feedback.tell(
                    begin,
                    len(indices),
                    losses.detach(),
                    partial(gradient_bound, partial(task.objective, batch=batch), seen),
                )
                if observers:
                    # What is recorded as a loss is always the task's own, in nats.
                    own = losses.detach() if task.criterion is None else task.loss(seen, batch)
                for observer in observers:
                    observer.on_batch(state.step, state.epoch, indices[begin:end], seen, own)
                now = time.perf_counter()
                if now - shown > PROGRESS_SECONDS:
                    shown = now
                    progress(
                        "train",
                        int((state.epoch - 1 + end / len(indices)) * size),
                        learner.epochs * size,
                        {"epoch": f"{state.epoch}/{learner.epochs}"},
                    )
                if saver is not None and end < len(indices) and saver.due():
                    state.seconds = earlier + time.perf_counter() - sitting
                    saver.save(state)
            loss = _mean_loss(state.losses, bounds)
            if not loss < float("inf"):
                raise LearnerError(
                    f"The training diverged: the loss of epoch {state.epoch} is {loss}.",
                    f"Lower learning_rate (now {learner.learning_rate:g}), or look for extreme values in the inputs.",
                )
            state.place, state.losses = 0, []
            state.feedback.end(state.indices)
            state.seconds = earlier + time.perf_counter() - sitting
            for observer in observers:
                observer.on_epoch(state, loss)
            module.train()
            if saver is not None:
                saver.save(state)
            progress(
                "train",
                state.epoch * size,
                learner.epochs * size,
                {"epoch": f"{state.epoch}/{learner.epochs}", "loss": f"{loss:.3g}"},
            )
    return Trained(state.model.eval(), state.epoch, state.step, state.seconds, loss)


def as_input(inputs: Tensor, device: torch.device) -> Tensor:
    """What a module is called with: images on a GPU are channels-last. Bytes stay bytes; the module itself normalises them."""
    if device.type == "cuda" and inputs.dim() == 4:
        inputs = inputs.contiguous(memory_format=torch.channels_last)
    return inputs


def features_of(
    module: nn.Module, inputs: Tensor, rows: Tensor, device: torch.device, size: int = 1024
) -> Float[Tensor, "example feature"]:
    """Features of some rows by a module in training, which stays in the mode that it is in; on the CPU."""
    parts = (inputs.index_select(0, chosen.to(inputs.device)) for chosen in torch.split(rows, size))
    return torch.cat([features(module, as_input(_to_device(part, device), device)).cpu() for part in parts])


@torch.inference_mode()
def predict(
    module: nn.Module, task: Task, inputs: Tensor, rows: Tensor | None = None, *, device: str = "cpu", size: int = 1024
) -> Float[Tensor, "example ..."]:
    """Outputs of a module in evaluation mode, in float32 on the CPU.

    Args:
        module: On `device` already, or moved there.
        task: Gives the outputs.
        inputs: Encoded inputs `[row, *shape]`.
        rows: Which rows, in this order; None for all.
        device: Where to compute.
        size: Examples per batch.
    """
    where = torch.device(device)
    module = module.to(where)
    training = module.training
    module.eval()
    total = len(inputs) if rows is None else len(rows)
    found: Tensor | None = None
    for begin in range(0, total, size):
        end = min(begin + size, total)
        chunk = inputs[begin:end] if rows is None else inputs.index_select(0, rows[begin:end].to(inputs.device))
        batch = Batch(as_input(_to_device(chunk, where), where), torch.empty(end - begin, device=where))
        outputs = task.outputs(module, batch).float()
        if found is None:
            found = torch.empty(total, *outputs.shape[1:])
        found[begin:end] = outputs
    module.train(training)
    return torch.empty(0, task.width) if found is None else found


def _optimizer(module: nn.Module, learner: Learner) -> torch.optim.Optimizer:
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return optimizer_for(parameters, learner)


def optimizer_for(parameters: Sequence[Tensor], learner: Learner) -> torch.optim.Optimizer:
    """The learner's optimizer over these tensors.

    Raises:
        LearnerError: There are none.
    """
    if not parameters:
        raise LearnerError("The model has no parameter to train.", "Give a model with at least one trainable layer.")
    rate, decay = learner.learning_rate or 0.0, learner.weight_decay or 0.0
    if learner.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay, fused=True)
    return torch.optim.SGD(parameters, lr=rate, weight_decay=decay, momentum=0.9, nesterov=True, fused=True)


def _average(module: nn.Module, learner: Learner) -> AveragedModel | None:
    if learner.ema is None:
        return None
    return AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(learner.ema))  # type: ignore[no-untyped-call]


def place(data: Data, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, targets and training rows where they are gathered: on the GPU if they fit there, else inputs stay on the CPU."""
    inputs, target, rows = data.inputs, data.target.to(device), data.rows
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        if inputs.numel() * inputs.element_size() <= DEVICE_SHARE * free:
            inputs, rows = inputs.to(device), rows.to(device)
    return inputs, target, rows


def mean_one(weight: Float[Tensor, " example"]) -> Float[Tensor, " example"]:
    """Weights scaled to a mean of one.

    Raises:
        LearnerError: Some are negative, or none is above 0.
    """
    if not (weight >= 0).all() or not weight.sum() > 0:
        raise LearnerError(
            "The weights hold negative values, or none above 0.", "Give weights from 0, some of them above."
        )
    return weight / weight.mean()


def normalised_weights(data: Data, device: torch.device) -> Tensor | None:
    """Weights of the training examples, scaled to a mean of one so that the learning rate keeps its meaning."""
    if data.weight is None:
        return None
    return mean_one(data.weight[data.rows].float()).to(device)


def batch_bounds(visits: int, batch_size: int) -> list[int]:
    """Where batches begin and end: as few as the batch size allows, of nearly equal size, so that none is a batch of one."""
    batches = max(1, -(-visits // batch_size))
    return [visits * number // batches for number in range(batches + 1)]


def _mean_loss(losses: list[Tensor], bounds: list[int]) -> float:
    sizes = torch.tensor(bounds).diff().double()
    return float((torch.stack(losses).double().cpu() * sizes).sum() / sizes.sum())


def _to_device(batch: Tensor, device: torch.device) -> Tensor:
    if batch.device == device or device.type == "cpu":
        return batch.to(device)
    return batch.pin_memory().to(device, non_blocking=True)


def autocast_dtype(learner: Learner) -> torch.dtype:
    return torch.float16 if learner.precision == "float16" else torch.bfloat16


@contextmanager
def _own_randomness(device: torch.device) -> Iterator[None]:
    """The caller's global random state is as before afterwards."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield
