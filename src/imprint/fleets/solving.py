"""Many solved heads at once: the batched executor of "ridge" and "logistic".

A member says which examples it has and with which weights. What costs least follows from how it differs from the training of all
examples:

- a ridge head that differs in few examples (leave-one-out, small groups, some labels turned) is a correction of the head of all
  examples, whose moments are factored once (`imprint.fitting.ridge`); ten thousand of them cost little more than their outputs;
- any other ridge head sums the moments of the examples that it has, or takes those that it lacks from the moments of all,
  whichever are fewer, so that all of k folds together cost as much as one pass; factors and outputs are batched;
- logistic heads start from the head of all examples, in whose principal directions they are all found, many per matrix product
  where one alone would not fill it.

The answers are those of `Sequential`, to 1e-5: both are exact.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from imprint.fitting import Progress, silent
from imprint.fitting.build import build
from imprint.fitting.heads import Design, check, checked, device_of, head, regressand
from imprint.fitting.logistic import Space, minimise, principal
from imprint.fitting.memory import available_memory
from imprint.fitting.ridge import Factored, Moments, blocks, centre, factor, moments, solve
from imprint.fleets.executing import Finished
from imprint.fleets.member import Member
from imprint.fleets.sequential import Sequential
from imprint.fleets.shared import Shared
from imprint.models import solver_of
from imprint.models.estimator import IMPOSSIBLE

# Members, what they say of the queries, and their weights and intercepts, which are read only where they are asked for.
Heard = tuple[list[int], Tensor, Tensor | None, Tensor | None]

# A wave of members may take this share of the free memory, and no more than this: a file of outcomes is written per wave.
MEMORY_SHARE = 0.25
WAVE_BYTES = 256 * 2**20
MOST_MEMBERS = 4096
# From this many members that differ in few examples, factoring the moments pays.
LEAST_CORRECTED = 16
# A correction of g examples costs g^2 d, moments g d^2: up to this share of d.
FEW = 0.25
# Penalties below this share of the inputs' spread leave a correction too few digits.
LEAST_DECAY = 1e-10
# A measurement of the price takes as long as this, at least.
PRICE_SECONDS = 0.2
# Numbers of the systems that are factored together: beyond 2 MB they fall out of the cache, and one by one is faster.
SYSTEMS = 2**18
# Multiplications of one member's product with the inputs that fill the machine.
FULL_PRODUCT = 2e7


@dataclass(frozen=True)
class Solved:
    """The executor that solves heads together; `Batched` hands solved heads to it.

    Attributes:
        memory: Bytes that a wave may take; None for a quarter of what is free.
    """

    memory: int | None = None
    name: ClassVar[str] = "batched"

    def why_not(self, shared: Shared) -> str | None:
        """It solves "ridge" and "logistic" heads."""
        return None if solvable(shared) else f"{shared.learner.model!r} is trained and not solved"

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
        """Solve some of the members; see `Executor.run`."""
        yield from run_solved(shared, members, numbers, queries, parameters, progress, memory=self.memory)


def solvable(shared: Shared) -> bool:
    """Whether the shared learner's model is a head that many members are solved for together."""
    return solver_of(shared.learner.model) in ("ridge", "logistic")


def run_solved(
    shared: Shared,
    members: Sequence[Member],
    numbers: Sequence[int],
    queries: Tensor,
    parameters: bool = False,
    progress: Progress = silent,
    *,
    memory: int | None = None,
) -> Iterator[Finished]:
    """Solve members, wave by wave; see `Executor.run` for the arguments.

    Args:
        memory: Bytes that a wave may take; None for a quarter of what is free.

    Raises:
        LearnerError: The head does not fit the task, the weights are impossible, or a minimum was not reached.
    """
    yield from _run(
        Heads(shared, torch.as_tensor(queries), memory), members, numbers, parameters, progress, len(numbers)
    )


def _run(
    heads: Heads, members: Sequence[Member], numbers: Sequence[int], parameters: bool, progress: Progress, planned: int
) -> Iterator[Finished]:
    """Waves of members; `planned` says how many there will be in all, if these are only some."""
    done = 0
    for begin in range(0, len(numbers), heads.wave):
        part = list(numbers[begin : begin + heads.wave])
        for finished in heads.solve(members, part, parameters, planned):
            yield finished
            done += len(finished.numbers)
            progress("members", done, len(numbers))


def price_solved(shared: Shared, members: Sequence[Member], numbers: Sequence[int], queries: int) -> float:
    """Seconds that members will take: what they have in common, and each, measured on ever more of them.

    Args:
        shared: What they have in common.
        members: The members.
        numbers: Which of them.
        queries: How many rows each predicts.
    """
    count = len(numbers)
    if not count:
        return 0.0

    def timed(some: int) -> float:
        began = time.perf_counter()
        chosen = [numbers[place] for place in np.linspace(0, count - 1, some).astype(int)]
        heads = Heads(shared, torch.arange(queries))
        for _ in _run(heads, members, chosen, False, silent, count):
            pass
        return time.perf_counter() - began

    timed(1)  # the first call pays for warming up
    few, many = 1, min(count, 2)
    alone = together = timed(1)
    while many > few and together - alone < PRICE_SECONDS:
        together = timed(many)
        if many == count:
            return together
        many = min(count, 2 * many) if together - alone < PRICE_SECONDS else many
    each = max(0.0, together - alone) / max(1, many - few)
    return alone + each * (count - few)


@dataclass(frozen=True)
class Variation:
    """How a member's examples differ from all of them.

    Attributes:
        number: Of the member.
        decay: Its penalty.
        places: Examples that are summed over: those that differ, or, if `whole`, all that it has.
        weight: Their weights.
        target: Their encoded targets; None where they are the shared ones.
        whole: Whether it has no other examples.
        total: Sum of all its weights.
    """

    number: int
    decay: float
    places: Int[Tensor, " example"]
    weight: Float[Tensor, " example"]
    target: Tensor | None
    whole: bool
    total: float


@dataclass
class Heads:
    """The solved heads of some members over shared inputs.

    Attributes:
        shared: What the members have in common.
        queries: Rows whose outputs are wanted.
        memory: Bytes that a wave may take.
    """

    shared: Shared
    queries: Int[Tensor, " query"]
    memory: int | None = None
    corrected: bool | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        learner, task, data = self.shared.learner, self.shared.task, self.shared.data
        self.solver = check(learner, task)
        self.device = device_of(learner)
        self.module = build(learner, self.shared.encoder, task).eval()
        self.rows = data.rows
        self.design = Design(self.module, data.inputs, data.rows, self.device)
        self.count, self.width = self.design.shape
        self.target = data.target[data.rows].to(self.device)
        weight = torch.ones(self.count) if data.weight is None else checked(data.weight[data.rows])
        self.weight = weight.double().to(self.device)
        self.place = torch.full((len(data.target),), -1, dtype=torch.int64)
        self.place[data.rows] = torch.arange(self.count)
        self.uniform = bool((self.weight == 1).all())
        # All is done about the mean of the inputs. Float64 rows are made once where there is room, else whenever they are read.
        self.origin = self.design.origin = centre(self.design, self.weight)
        if 8 * self.count * self.width <= MEMORY_SHARE * available_memory():
            self.inputs: Tensor | Design = self.design[slice(None)]
        else:
            self.inputs = self.design

    @cached_property
    def asked(self) -> Float[Tensor, "query feature"]:
        """Inputs of the queries about the same mean, float32."""
        asked = Design(self.module, self.shared.data.inputs, self.queries, self.device, self.origin)
        found = torch.empty(asked.shape, device=self.device)
        for part in blocks(*asked.shape):
            found[part] = asked[part]
        return found

    @property
    def member_bytes(self) -> int:
        """What a member takes: outputs in two types, weights, and what the solver holds of it."""
        outputs = 3 * 4 * max(1, len(self.queries)) * self.task_width
        if self.solver == "ridge":
            held = 8 * 4 * self.width * self.task_width
        else:
            held = 8 * (5 * self.count * self.task_width + 8 * self.width * self.task_width)
        return outputs + held + 16 * self.count

    @cached_property
    def wave(self) -> int:
        """Members per wave."""
        budget = self.memory or int(MEMORY_SHARE * available_memory())
        most = WAVE_BYTES // (4 * max(1, len(self.queries)) * self.task_width)
        return max(1, min(budget // self.member_bytes, most, MOST_MEMBERS))

    @property
    def together(self) -> int:
        """Members that are held at a time: a wave of ridge heads; of logistic heads as many as fill the machine."""
        return self.wave if self.solver == "ridge" else min(self.wave, self.side)

    @property
    def side(self) -> int:
        """Logistic heads that are solved side by side."""
        return max(1, round(FULL_PRODUCT / (self.count * self.width * self.task_width)))

    @property
    def task_width(self) -> int:
        """Outputs per example."""
        return self.shared.task.width

    # ---------------------------------------------------------------------------------------------------------------- variations

    def variation(self, number: int, member: Member) -> Variation | None:
        """How a member differs; None if it is beyond this executor: other models, or examples from outside the training rows."""
        learner = member.learner(self.shared.learner)
        if solver_of(learner.model) != self.solver:
            return None
        check(learner, self.shared.task)
        decay = float(learner.weight_decay or 0.0)
        rows = self.rows if member.rows is None else torch.as_tensor(member.rows)
        places = self.place[rows]
        if len(places) == 0 or int(places.min()) < 0:
            return None
        if self.uniform and member.weight is None and member.target is None:
            return self._subset(number, decay, places)
        weight = self.weight.cpu()[places] if member.weight is None else member.weight.double()
        weight = torch.zeros(self.count, dtype=torch.float64).index_add_(0, places, checked(weight))
        differs, target = weight != self.weight.cpu(), None
        if member.target is not None:
            shared = self.target.cpu()
            target = shared.index_copy(0, places, member.target.to(shared.dtype))
            turned = target != shared
            differs |= (turned if turned.ndim == 1 else turned.any(1)) & (weight > 0)
        whole = int(differs.sum()) > int((weight > 0).sum())
        chosen = (weight > 0 if whole else differs).nonzero().flatten()
        return self._placed(number, decay, chosen, weight[chosen], target, whole, float(weight.sum()))

    def _subset(self, number: int, decay: float, places: Int[Tensor, " example"]) -> Variation:
        """The usual case, quickly: examples of weight one, some of them left out or there several times."""
        counts = np.bincount(places.numpy(), minlength=self.count)
        differs = np.flatnonzero(counts != 1)
        whole = len(differs) > int(np.count_nonzero(counts))
        chosen = torch.from_numpy(np.flatnonzero(counts) if whole else differs)
        weight = torch.from_numpy(counts)[chosen].double()
        return self._placed(number, decay, chosen, weight, None, whole, float(len(places)))

    def _placed(
        self,
        number: int,
        decay: float,
        places: Tensor,
        weight: Tensor,
        target: Tensor | None,
        whole: bool,
        total: float,
    ) -> Variation:
        target = None if target is None else target[places].to(self.device)
        return Variation(number, decay, places.to(self.device), weight.to(self.device), target, whole, total)

    def targets(self, one: Variation) -> Tensor:
        """Encoded targets of its places."""
        return self.target[one.places] if one.target is None else one.target

    # ------------------------------------------------------------------------------------------------------------------- solving

    def solve(
        self, members: Sequence[Member], numbers: list[int], parameters: bool, planned: int
    ) -> Iterator[Finished]:
        """One wave, in the ways that suit its members."""
        began = time.perf_counter()
        found = [self.variation(number, members[number]) for number in numbers]
        beyond = [number for number, one in zip(numbers, found, strict=True) if one is None]
        ours = [one for one in found if one is not None]
        if self.solver == "logistic":
            yield from self._timed(began, self._logistic(ours), parameters)
        else:
            few = [one for one in ours if self._few(one)]
            if self.corrected is None:
                # The first wave speaks for the others.
                self.corrected = len(few) * planned >= LEAST_CORRECTED * len(numbers)
            if not self.corrected:
                few = []
            chosen = {one.number for one in few}
            yield from self._timed(began, self._corrected(few, parameters), parameters)
            rest = [one for one in ours if one.number not in chosen]
            yield from self._timed(time.perf_counter(), self._summed(rest), parameters)
        yield from Sequential().run(self.shared, members, beyond, self.queries, parameters=parameters)

    def _timed(self, began: float, solved: Iterator[Heard], parameters: bool) -> Iterator[Finished]:
        """Each part of a wave with its share of the time, and weights as the module names them."""
        for numbers, outputs, W, b in solved:
            weights = None
            if parameters and W is not None and b is not None:
                weights = [self._state(one, intercept - self.origin @ one) for one, intercept in zip(W, b, strict=True)]
            outputs = outputs.cpu()
            seconds = time.perf_counter() - began
            yield Finished(numbers, outputs, [seconds / len(numbers)] * len(numbers), weights)
            began = time.perf_counter()

    def _state(self, W: Float[Tensor, "feature output"], b: Float[Tensor, " output"]) -> dict[str, Tensor]:
        """The module's weights with this head."""
        last = head(self.module)
        name = next(name for name, part in self.module.named_modules() if part is last)
        state = {key: value.detach().cpu().clone() for key, value in self.module.state_dict().items()}
        return state | {f"{name}.weight": W.T.float().cpu().contiguous(), f"{name}.bias": b.float().cpu()}

    def _say(
        self, W: Float[Tensor, "member feature output"], b: Float[Tensor, "member output"]
    ) -> Float[Tensor, "member query output"]:
        """Outputs of heads, float32, in one product."""
        members, width, outputs = W.shape
        flat = self.asked @ W.float().movedim(0, 1).reshape(width, -1)
        return flat.view(-1, members, outputs).movedim(1, 0).contiguous() + b.float()[:, None]

    # --------------------------------------------------------------------------------------------------------------------- ridge

    @cached_property
    def regressand(self) -> Float[Tensor, "example output"]:
        """What ridge heads come near to, where a member does not say otherwise."""
        return regressand(self.shared.task, self.target)

    @cached_property
    def factored(self) -> Factored:
        """The moments of all examples, factored."""
        return factor(self.inputs, self.regressand, self.weight)

    @cached_property
    def placed(self) -> Float[Tensor, "query direction"]:
        """Coordinates of the queries in the factored basis."""
        return self.factored.coordinates(self.asked)

    def _few(self, one: Variation) -> bool:
        few = not one.whole and len(one.places) <= max(1, FEW * min(self.width, self.count))
        return few and one.decay * one.total >= LEAST_DECAY * self.spread

    @cached_property
    def spread(self) -> float:
        """Weighted sum of the squared distances of the inputs from their mean: above every eigenvalue of their moments."""
        parts = blocks(self.count, self.width)
        return sum(float(self.weight[part] @ self.inputs[part].square().sum(1)) for part in parts)

    def _corrected(self, members: list[Variation], parameters: bool) -> Iterator[Heard]:
        """Ridge heads that differ in few examples from the one of all."""
        if not members:
            return
        ours = self.factored
        # Of very different lengths some would be filled up with nothing.
        members = sorted(members, key=lambda one: len(one.places))
        wide = max(1, len(members[-1].places))
        size = max(1, min(len(members), 2**25 // (wide * max(ours.basis.shape[1], wide))))
        for begin in range(0, len(members), size):
            some = members[begin : begin + size]
            wide = max(1, len(some[-1].places))
            places = torch.zeros(len(some), wide, dtype=torch.int64, device=self.device)
            new = torch.zeros(len(some), wide, dtype=torch.float64, device=self.device)
            old = torch.zeros_like(new)
            push = None
            if any(one.target is not None for one in some):
                push = new.new_zeros(len(some), wide, self.task_width)
            for i, one in enumerate(some):
                length = len(one.places)
                places[i, :length], new[i, :length] = one.places, one.weight
                old[i, :length] = self.weight[one.places]
                if push is not None and one.target is not None:
                    turned = regressand(self.shared.task, one.target) - self.regressand[one.places]
                    push[i, :length] = one.weight[:, None] * turned
            decay = new.new_tensor([one.decay for one in some])
            total = new.new_tensor([one.total for one in some])
            changed = ours.coordinates(self.inputs[places.flatten()]).view(len(some), wide, -1)
            inverse = ours.inverse(decay, total)
            found = ours.correction(changed, self.regressand[places], new - old, push, inverse)
            # With one penalty all heads are the same but for their corrections, which take fewer products than the heads.
            near = wide < self.task_width and bool((inverse == inverse[0]).all())
            W, b = (None, None) if near and not parameters else ours.heads(changed, found, inverse)
            if near:
                kernel = (self.placed @ (changed * inverse[:, None]).flatten(0, 1).T + 1 / ours.total).float()
                kernel = kernel.view(-1, len(some), wide).movedim(1, 0)
                outputs = torch.baddbmm(ours.outputs(self.placed, inverse[0]).float()[None], kernel, found.float())
            else:
                assert W is not None
                assert b is not None
                rotated = self.placed.float() @ W.float().movedim(0, 1).flatten(1)
                outputs = rotated.view(-1, len(some), self.task_width).movedim(1, 0) + b.float()[:, None]
            if parameters and W is not None and b is not None:
                W = ours.basis @ W
                b = b - ours.origin @ W
            yield [one.number for one in some], outputs, W, b

    @cached_property
    def plain(self) -> tuple[Tensor | Design, Moments]:
        """What moments are summed of, and the moments of all examples.

        With more features than examples, the inputs are given in the directions that the examples span.
        """
        inputs = self.space.design[:, 1:] if self.width > self.count else self.inputs
        return inputs, moments(inputs, self.regressand, self.weight)

    def _summed(self, members: list[Variation]) -> Iterator[Heard]:
        """Ridge heads from the moments of the examples that they have, or lack."""
        if not members:
            return
        width = self.plain[1].inputs.shape[-1]
        size = max(1, SYSTEMS // width**2)
        heads = [self._systems(members[begin : begin + size]) for begin in range(0, len(members), size)]
        W, b = (torch.cat(parts) for parts in zip(*heads, strict=True))
        if self.width > self.count:
            assert self.space.basis is not None
            W = self.space.basis @ W
            b = b - self.space.origin @ W
        yield [one.number for one in members], self._say(W, b), W, b

    def _systems(
        self, members: list[Variation]
    ) -> tuple[Float[Tensor, "member direction output"], Float[Tensor, "member output"]]:
        """Sum the moments of some members, and solve for their heads."""
        inputs, every = self.plain
        found = []
        for one in members:
            target = self.regressand[one.places]
            if one.whole:
                target = target if one.target is None else regressand(self.shared.task, one.target)
                found.append(moments(inputs, target, one.weight, rows=one.places))
                continue
            sums = every.plus(moments(inputs, target, one.weight - self.weight[one.places], rows=one.places))
            if one.target is not None:
                push = one.weight[:, None] * (regressand(self.shared.task, one.target) - target)
                turned = inputs[one.places].double().T @ push
                sums = sums._replace(target=sums.target + push.sum(0), cross=sums.cross + turned)
            found.append(sums)
        stacked = Moments(*(torch.stack(parts) for parts in zip(*found, strict=True)))
        return solve(stacked, self.weight.new_tensor([one.decay for one in members]))

    # ------------------------------------------------------------------------------------------------------------------ logistic

    @cached_property
    def space(self) -> Space:
        """The examples in their principal directions."""
        return principal(self.inputs, self.weight)

    @cached_property
    def start(self) -> Float[Tensor, "column one output"]:
        """The logistic head of all examples, from which the others are not far."""
        decay = self.weight.new_tensor([float(self.shared.learner.weight_decay or 0.0)])
        found = minimise(self.space.design, self.target[:, None], self.weight[:, None], decay, self.task_width)
        return torch.where(found.abs() >= -IMPOSSIBLE, 0, found)  # an output without examples starts from nothing

    def _logistic(self, members: list[Variation]) -> Iterator[Heard]:
        """Logistic heads, several per product where one alone is small."""
        if not members:
            return
        design = self.space.design
        for begin in range(0, len(members), self.side):
            some = members[begin : begin + self.side]
            weight = self.weight[:, None].repeat(1, len(some))
            target = self.target[:, None]
            if any(one.target is not None for one in some):
                target = target.repeat(1, len(some), *[1] * (target.ndim - 2))
            for i, one in enumerate(some):
                if one.whole:
                    weight[:, i] = 0
                weight[one.places, i] = one.weight
                if one.target is not None:
                    target[one.places, i] = one.target
            used = design
            if len(some) == 1 and not bool((weight > 0).all()):
                kept = (weight[:, 0] > 0).nonzero().flatten()
                used, weight, target = design[kept], weight[kept], target[kept]
            decay = weight.new_tensor([one.decay for one in some])
            found = minimise(used, target, weight, decay, self.task_width, start=self.start)
            W, b = self.space.heads(found)
            yield [one.number for one in some], self._say(W, b), W, b
