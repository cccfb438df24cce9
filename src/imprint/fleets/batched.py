"""Many members trained as one program: the fast executor.

Members that take the same steps (same settings, as many batches per epoch) form waves. A wave holds the stacked parameters of its
members and one optimizer over them; a step gathers one batch per member, and a layer of all members is one batched product. Each
member sees exactly the batches, initial weights and dropout masks that it would see alone: all randomness is drawn per member from
its own seed. Members whose training sets differ by a few examples have batches that differ by one; the shorter are padded with
examples of weight zero. Samplers may differ between the members of a wave, as long as every epoch has as many visits; one that reads
what the model said of the examples is for a training alone.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from imprint.errors import EvidenceError, LearnerError
from imprint.fitting import Learner, Progress, Shuffled, generator, silent
from imprint.fitting.augment import flip_crop
from imprint.fitting.build import build, has_epochs, with_loss
from imprint.fitting.loop import as_input, autocast_dtype, batch_bounds, mean_one, optimizer_for, place
from imprint.fitting.memory import available_memory
from imprint.fitting.samplers import Sampler, SamplerState, checked, reads
from imprint.fitting.samplers import visits as visits_of
from imprint.fitting.schedule import factor
from imprint.fleets.executing import Finished
from imprint.fleets.member import Member
from imprint.fleets.sequential import train_finished
from imprint.fleets.shared import Shared
from imprint.fleets.solving import run_solved, solvable
from imprint.fleets.stacking import Stack
from imprint.models import is_estimator
from imprint.tasks import Batch

# A wave may take this share of the free memory.
MEMORY_SHARE = 0.25
# Beyond this much state (parameters, gradients and the optimizer's two moments) a wave gains nothing: the products are large
# enough, and what is updated in each step no longer stays in the cache.
WAVE_BYTES = 512 * 2**20
# Numbers that the outputs of a layer of all members may hold while the queries are predicted.
PREDICT_NUMBERS = 2**23
SHUFFLED = Shuffled()


@dataclass(frozen=True)
class Batched:
    """The executor that trains members as one program.

    Attributes:
        memory: Bytes that a wave may take; None for a quarter of what is free.
        wave: Members per wave; None for as many as `memory` allows and as is of use.
    """

    memory: int | None = None
    wave: int | None = None
    name: ClassVar[str] = "batched"

    def why_not(self, shared: Shared) -> str | None:
        """Why these trainings cannot be stacked, or None. Heads that are solved at once are solved together."""
        return None if solvable(shared) else unstackable(shared, shared.learner)

    def run(
        self,
        shared: Shared,
        members: Sequence[Member],
        numbers: Sequence[int],
        queries: Tensor,
        *,
        parameters: bool = False,
        progress: Progress = silent,
    ) -> Iterator[Finished]:
        """Train some of the members; see `Executor.run`."""
        if solvable(shared):
            yield from run_solved(shared, members, numbers, queries, parameters, progress, memory=self.memory)
            return
        done = 0
        for learner, alike in alike_members(shared, members, numbers):
            if not steady_visits(learner.sampler):
                for number in alike:
                    yield train_finished(shared, members[number], number, queries, parameters)
                    done += 1
                    progress("members", done, len(numbers))
                continue
            if learner is not shared.learner and (reason := unstackable(shared, learner)) is not None:
                raise EvidenceError(
                    f"Members {alike[:3]} cannot be trained as one program: {reason}.", "Use executor='sequential'."
                )
            size = self.wave or wave_size(shared, learner, len(queries), self.memory)
            waves = math.ceil(len(alike) / size)
            for wave in np.array_split(np.asarray(alike), waves):
                chosen = [int(number) for number in wave]
                own = [members[number] for number in chosen]

                def told(share: float, before: int = done, count: int = len(chosen)) -> None:
                    progress("members", before + int(share * count), len(numbers))

                yield train_wave(shared, learner, own, chosen, queries, parameters, told)
                done += len(chosen)
                progress("members", done, len(numbers))


def unstackable(shared: Shared, learner: Learner) -> str | None:
    """Why members of this learner cannot be trained as one program, in words; None if they can."""
    if is_estimator(learner.model):
        return f"{type(learner.model).__name__} is a scikit-learn estimator"
    if not has_epochs(learner.model):
        return f"{learner.model!r} is solved and not trained"
    if learner.deletable is not None:
        return "it is trained in shards and slices"
    if not steady_visits(learner.sampler):
        return "its sampler follows the training, or may give each epoch another number of visits"
    criterion = with_loss(shared.task, learner).criterion
    if criterion is not None and not getattr(criterion, "by_example", False):
        return "its loss is one of whole batches, and a step holds the batches of many members"
    if learner.precision == "float16":
        return "float16 scales the gradients of all members together; use precision='bfloat16'"
    modules = [build(learner, shared.encoder, shared.task, seed=seed) for seed in (0, 1)]
    if hasattr(modules[0], "penalty"):
        return f"{type(modules[0]).__name__} has a penalty of whole batches"
    inputs = shared.data.inputs[:2]
    stack = Stack(copy.deepcopy(modules[0]), 2)
    reason = stack.problem(modules, as_input(inputs, torch.device("cpu")))
    return None if reason is None else f"{type(modules[0]).__name__} cannot be stacked: {reason}"


def steady_visits(sampler: Sampler | str | None) -> bool:
    """Whether a sampler gives every epoch as many visits, and needs nothing from the training for it; None is the default one."""
    return sampler is None or (hasattr(sampler, "visits") and not reads(sampler))


def alike_members(
    shared: Shared, members: Sequence[Member], numbers: Sequence[int]
) -> Iterator[tuple[Learner, list[int]]]:
    """Members that take the same steps with the same settings, and the learner that they share (with the shared seed).

    Samplers of steady visits may differ between them; the learner then has the shared one.
    """
    groups: dict[tuple[str, int], tuple[Learner, list[tuple[int, int]]]] = {}
    for number in numbers:
        member = members[number]
        settings = dict(member.settings)
        sampler = member.sampler(shared.learner, shared.data.rows)
        if steady_visits(sampler):
            settings.pop("sampler", None)
        learner = replace(shared.learner, **settings) if settings else shared.learner
        visits = visits_in(sampler, len(shared.data.rows) if member.rows is None else len(member.rows))
        steps = len(batch_bounds(visits, int(learner.batch_size or 1))) - 1
        key = (repr(sorted((name, repr(value)) for name, value in settings.items())), steps)
        groups.setdefault(key, (learner, []))[1].append((visits, number))
    for learner, alike in groups.values():
        # Neighbours in size share a wave: the least padding.
        yield learner, [number for _, number in sorted(alike)]


def visits_in(sampler: Sampler | str | None, size: int) -> int:
    """Visits of an epoch; of a sampler that does not say, about as many as there are examples."""
    return visits_of(sampler, size) or size


def wave_size(shared: Shared, learner: Learner, queries: int, memory: int | None = None) -> int:
    """How many members a wave may hold."""
    each = footprint(shared, learner, queries)
    free = MEMORY_SHARE * available_memory() if memory is None else memory
    return max(1, min(int(free / each.whole), WAVE_BYTES // each.state))


@dataclass(frozen=True)
class Footprint:
    """Bytes that a member takes while it is trained.

    Attributes:
        state: Parameters, gradients (once more while they are added up) and moments, and the average of the weights.
        whole: With the activations of a batch, the order of an epoch and the outputs on the queries.
    """

    state: int
    whole: int


def footprint(shared: Shared, learner: Learner, queries: int) -> Footprint:
    """What a member of this learner takes while it is trained and predicts so many queries."""
    module = build(learner, shared.encoder, shared.task)
    parameters = sum(one.numel() for one in module.parameters())
    numbers = activations(module, as_input(shared.data.inputs[:1], torch.device("cpu")))
    state = 4 * parameters * (6 if learner.ema else 5)
    per_example = 4 * (3 * numbers + math.prod(shared.data.shape))
    outputs = 4 * queries * shared.task.width * 2
    whole = state + int(learner.batch_size or 1) * per_example + 24 * len(shared.data.rows) + outputs
    return Footprint(state, whole)


@torch.no_grad()
def activations(module: torch.nn.Module, inputs: Tensor) -> int:
    """How many numbers the layers of a module give for one example, all together."""
    count = 0

    def add(_: object, __: object, output: object) -> None:
        nonlocal count
        if isinstance(output, Tensor):
            count += output.numel()

    hooks = [one.register_forward_hook(add) for one in module.modules() if not list(one.children())]
    try:
        module.eval()(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return count


def train_wave(
    shared: Shared,
    learner: Learner,
    members: Sequence[Member],
    numbers: list[int],
    queries: Tensor,
    parameters: bool = False,
    told: Callable[[float], None] = lambda share: None,
) -> Finished:
    """Train members that take the same steps, side by side.

    Args:
        shared: What all have in common.
        learner: Their learner, but for the seed.
        members: The members.
        numbers: Their numbers, for the result.
        queries: Rows whose outputs are wanted.
        parameters: Whether the weights are wanted.
        told: Told the share of the training that is done, after each epoch.

    Raises:
        LearnerError: The loss of a member became infinite or not a number.
    """
    began = time.perf_counter()
    device = torch.device(learner.device)
    task, epochs = with_loss(shared.task, learner), int(learner.epochs or 1)
    inputs, target, _ = place(shared.data, device)
    own = [one.learner(learner).seed for one in members]
    stack = stacked(shared, learner, own, device)
    samplers = [one.sampler(learner, shared.data.rows) or SHUFFLED for one in members]
    memories: list[dict[str, Tensor]] = [{} for _ in members]
    sets = TrainingSets.of(shared, members, int(learner.batch_size or 1), samplers)
    trained = [tensor for tensor in stack.parameters.values() if tensor.requires_grad]
    optimizer = optimizer_for(trained, learner)
    average: list[Tensor] | None = None
    mixed: AbstractContextManager[object] = nullcontext()
    if learner.precision != "float32":
        mixed = torch.autocast(device.type, autocast_dtype(learner))
    stack.template.train()
    masks = Masks(device)
    stack.draw = masks
    step = 0
    for epoch in range(1, epochs + 1):
        drawn = [
            checked(
                sampler.epoch(  # type: ignore[union-attr]
                    SamplerState(epoch, epochs, size, generator(seed, "shuffle", epoch), seed=seed, memory=memory)
                ),
                size,
                visits_in(sampler, size),
            )
            for sampler, seed, size, memory in zip(samplers, own, sets.sizes, memories, strict=True)
        ]
        visits = sets.visits([order for order, _ in drawn])
        importance = sets.importance([weights for _, weights in drawn])
        masks.begin([generator(seed, "dropout", epoch) for seed in own])
        losses = torch.zeros(len(members), device=device)
        for number in range(sets.steps):
            rows, weight = sets.batch(visits, number, importance)
            masks.counts = sets.counts[number]
            flat = rows.flatten().to(inputs.device)
            batch = inputs.index_select(0, flat).to(device)
            if learner.augment == "flip-crop":
                _augment(batch.view(*rows.shape, *batch.shape[1:]), own, step, masks.counts)
            stacked_inputs = as_input(batch, device).view(*rows.shape, *batch.shape[1:])
            wanted = sets.target(visits, number, target).to(device)
            rate = (learner.learning_rate or 0.0) * factor(learner.schedule, (epoch - 1 + number / sets.steps) / epochs)
            for group in optimizer.param_groups:
                group["lr"] = rate
            with mixed:
                outputs = stack(stacked_inputs)
            losses_each = task.objective(outputs.float().flatten(0, 1), Batch(batch, wanted)).view(rows.shape)
            # The mean over a member's own batch; the sum over members keeps their gradients apart.
            means = losses_each.mean(1) if weight is None else (losses_each * weight.to(device)).sum(1)
            optimizer.zero_grad(set_to_none=True)
            means.sum().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            step += 1
            with torch.no_grad():
                losses += means
                if learner.ema is not None:
                    if average is None:
                        average = [tensor.detach().clone() for tensor in trained]
                    else:
                        torch._foreach_lerp_(average, [tensor.detach() for tensor in trained], 1 - learner.ema)
        if not bool(torch.isfinite(losses).all()):
            worst = numbers[int((~torch.isfinite(losses)).nonzero()[0])]
            raise LearnerError(
                f"The training of member {worst} diverged in epoch {epoch}.",
                f"Lower learning_rate (now {learner.learning_rate:g}), or look for extreme values in the inputs.",
            )
        told(epoch / epochs)
    stack.draw = None
    if average is not None:
        with torch.no_grad():
            for tensor, mean in zip(trained, average, strict=True):
                tensor.copy_(mean)
    # An optimizer is part of reference cycles: without this its moments would stay until the next garbage collection.
    optimizer.state.clear()
    optimizer.param_groups.clear()
    for tensor in trained:
        tensor.grad = None
    said = predict_stack(stack, inputs, queries, device)
    weights = [stack.weights(member) for member in range(len(members))] if parameters else None
    share = (time.perf_counter() - began) / len(members)
    return Finished(numbers, said, [share] * len(members), weights)


def stacked(shared: Shared, learner: Learner, seeds: Sequence[int], device: torch.device) -> Stack:
    """The initial weights of members with these seeds."""
    stack = Stack(build(learner, shared.encoder, shared.task, seed=seeds[0]), len(seeds), device)
    for member, seed in enumerate(seeds):
        stack.put(member, build(learner, shared.encoder, shared.task, seed=seed))
    return stack


@torch.inference_mode()
def predict_stack(
    stack: Stack, inputs: Tensor, queries: Tensor, device: torch.device
) -> Float[Tensor, "member query ..."]:
    """Outputs of all members on the same rows, in float32 on the CPU."""
    stack.template.eval()
    members = stack.members
    widest = max([1, *(value.shape[-1] for value in stack.parameters.values())])
    if inputs.dtype == torch.int64:  # rows of codes: a layer gives so many numbers for each of them
        widest *= inputs.shape[1]
    size = max(16, min(4096, PREDICT_NUMBERS // (members * widest)))
    found: Tensor | None = None
    for begin in range(0, len(queries), size):
        rows = queries[begin : begin + size].to(inputs.device)
        chunk = as_input(inputs.index_select(0, rows).to(device), device)
        outputs = stack(chunk.expand(members, *chunk.shape)).float()
        if found is None:
            found = torch.empty(members, len(queries), *outputs.shape[2:])
        found[:, begin : begin + size] = outputs
    return torch.empty(members, 0) if found is None else found


class Masks:
    """Dropout masks of all members, each drawn from the member's own generator as its training alone would draw it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.generators: list[torch.Generator] = []
        self.counts: list[int] | None = None

    def begin(self, generators: list[torch.Generator]) -> None:
        """A new epoch, with the generators of its dropout."""
        self.generators = generators

    def __call__(self, shape: torch.Size, kept: float) -> Tensor:
        mask = torch.zeros(shape) if self.counts else torch.empty(shape)
        for member, random in enumerate(self.generators):
            own = mask[member] if self.counts is None else mask[member, : self.counts[member]]
            own.bernoulli_(kept, generator=random)
        return mask.to(self.device)


@dataclass(frozen=True)
class TrainingSets:
    """The training sets of the members of a wave: rows, weights and targets, and where batches begin.

    Attributes:
        rows: `[member, place]` rows of the corpus, padded with the first one.
        sizes: Training examples of each member.
        lengths: Visits of each member's epochs.
        steps: Batches per epoch.
        starts: `[step, member]` first place of each batch in the order of the epoch.
        width: Examples of the largest batch.
        counts: Per step, the examples of each member's batch; None where none is padded.
        weight: `[member, place]` weights with a mean of one, or None for all one.
        targets: `[member, place, ...]` targets of the members' own, or None for the shared ones.
    """

    rows: Int[Tensor, "member place"]
    sizes: list[int]
    lengths: list[int]
    steps: int
    starts: Int[Tensor, "step member"]
    width: int
    counts: list[list[int] | None]
    weight: Float[Tensor, "member place"] | None
    targets: Tensor | None

    @classmethod
    def of(
        cls,
        shared: Shared,
        members: Sequence[Member],
        batch_size: int,
        samplers: Sequence[Sampler | str | None] | None = None,
    ) -> TrainingSets:
        """Gather them from members that take as many steps, each by its sampler (None: all visit every example once)."""
        data = shared.data
        sets = [data.rows if one.rows is None else torch.as_tensor(one.rows).long() for one in members]
        sizes = [len(one) for one in sets]
        rows = torch.stack([torch.cat([one, one[:1].expand(max(sizes) - len(one))]) for one in sets])
        lengths = [visits_in(one, size) for one, size in zip(samplers or [None] * len(sizes), sizes, strict=True)]
        edges = torch.tensor([batch_bounds(length, batch_size) for length in lengths])
        counts = edges.diff().T
        width = int(counts.max())
        padded = [None if bool((count == width).all()) else count.tolist() for count in counts]
        weight = None
        if data.weight is not None or any(one.weight is not None for one in members):
            weight = torch.zeros(rows.shape)
            for place_, (own, one) in enumerate(zip(sets, members, strict=True)):
                held = torch.ones(len(own)) if data.weight is None else data.weight[own].float()
                weight[place_, : len(own)] = mean_one(held if one.weight is None else one.weight.float())
        targets = None
        if any(one.target is not None for one in members):
            targets = data.target[rows]
            for place_, one in enumerate(members):
                if one.target is not None:
                    targets[place_, : sizes[place_]] = one.target.to(targets.dtype)
        return cls(rows, sizes, lengths, counts.shape[0], edges[:, :-1].T.contiguous(), width, padded, weight, targets)

    def visits(self, orders: Sequence[Tensor]) -> Int[Tensor, "member visit"]:
        """The orders of an epoch, padded to the same length."""
        longest = max(self.lengths)
        return torch.stack([torch.cat([one, one[:1].expand(longest - len(one))]) for one in orders])

    def importance(self, weights: Sequence[Tensor | None]) -> Float[Tensor, "member visit"] | None:
        """The weights of an epoch's visits, padded as the visits are; None where all are one."""
        if all(one is None for one in weights):
            return None
        pairs = zip(weights, self.lengths, strict=True)
        return self.visits([torch.ones(length) if one is None else one.float() for one, length in pairs])

    def places(self, visits: Tensor, step: int) -> Shaped[Tensor, "member example"]:
        """The part of an epoch's visits (places in the training sets, or anything aligned to them) that a step takes."""
        if self.counts[step] is None and bool((self.starts[step] == self.starts[step, 0]).all()):
            begin = int(self.starts[step, 0])
            return visits[:, begin : begin + self.width]
        at = self.starts[step][:, None] + torch.arange(self.width)
        return visits.gather(1, at.clamp_(max=visits.shape[1] - 1))

    def batch(
        self, visits: Tensor, step: int, importance: Tensor | None = None
    ) -> tuple[Int[Tensor, "member example"], Tensor | None]:
        """Rows that a step visits, and what each example counts; None where all count the same."""
        places, count = self.places(visits, step), self.counts[step]
        rows = self.rows.gather(1, places)
        if count is None and self.weight is None and importance is None:
            return rows, None
        sizes = torch.tensor(count if count is not None else [self.width] * len(rows))[:, None]
        share = (torch.arange(self.width) < sizes) / sizes
        if self.weight is not None:
            share = share * self.weight.gather(1, places)
        return rows, share if importance is None else share * self.places(importance, step)

    def target(self, visits: Tensor, step: int, shared: Tensor) -> Tensor:
        """Targets of the examples that a step visits, members one after the other."""
        places = self.places(visits, step)
        if self.targets is None:
            return shared.index_select(0, self.rows.gather(1, places).flatten().to(shared.device))
        member = torch.arange(len(places))[:, None]
        return self.targets[member, places].flatten(0, 1)


def _augment(images: Tensor, seeds: Sequence[int], step: int, counts: list[int] | None) -> None:
    """Mirror and shift each member's batch as its training alone would."""
    for member, seed in enumerate(seeds):
        own = images[member] if counts is None else images[member, : counts[member]]
        own.copy_(flip_crop(own, generator(seed, "augment", step, device=images.device)))
