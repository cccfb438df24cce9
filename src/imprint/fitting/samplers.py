"""The in-loop data policy: which training examples an epoch visits, in which order, with which weights.

One contract serves our loop, a plain `DataLoader` (`imprint.fitting.Feed`) and the Hugging Face Trainer. An index is a place in the
training set (0..n-1, training rows in ascending order), not a row of the corpus.

A sampler is a frozen value: what it draws follows from the `SamplerState` alone, so that a training that goes on draws what one that
was never interrupted would have drawn. Ours are kept in a manifest as JSON (`spec`) and rebuilt from a registry (`sampler_from`); nothing
is imported by name. Those that read what the model said of the examples are in `imprint.fitting.moving`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Protocol, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from imprint.errors import LearnerError, nearest
from imprint.fitting.seeds import generator

# What a sampler may name in `reads`.
FEEDBACK = ("loss", "bound", "features")


@dataclass(frozen=True)
class SamplerState:
    """What a sampler may base its choice on.

    Attributes:
        epoch: The epoch about to start, from 1.
        epochs: How many there will be.
        size: How many training examples there are.
        generator: Source of all randomness, seeded for this epoch.
        loss: The last loss seen of each training example, nan where it was not seen yet; None unless the sampler `reads` it.
        bound: The norm of that loss's gradient with respect to the model's outputs, `||p - y||` for a classification, by the same
            rule. Up to a factor that all examples share it bounds the norm of the whole gradient (Katharopoulos and Fleuret 2018).
        features: Gives the current model's features of all training examples; None unless the sampler `reads` them.
        seed: Of the training, for what has to stay the same over several epochs.
        memory: What the sampler itself wants to find again in the next epoch; it is saved with checkpoints.
    """

    epoch: int
    epochs: int
    size: int
    generator: torch.Generator
    loss: Float[Tensor, " example"] | None = None
    bound: Float[Tensor, " example"] | None = None
    features: Callable[[], Float[Tensor, "example d"]] | None = None
    seed: int = 0
    memory: dict[str, Tensor] = field(default_factory=dict)


class Sampler(Protocol):
    """Chooses the examples of an epoch.

    Besides `epoch` it may have a class attribute or property `reads`, a set of words of `FEEDBACK`: what it wants to find in the state;
    and a method `visits(size) -> int`: how many visits each epoch has, where that is always the same.
    """

    def epoch(self, state: SamplerState) -> tuple[Int[Tensor, " visit"], Float[Tensor, " visit"] | None]:
        """Indices to visit in order, and the weight of each visit (None: all one). An index may repeat or be left out."""
        ...


class Registered(Sampler, Protocol):
    """A sampler that is stored by what it is made of."""

    def spec(self) -> dict[str, Any]:
        """JSON-able: `{"sampler": name, ...}`; `sampler_from` rebuilds it."""
        ...


_REGISTRY: dict[str, Callable[..., Any]] = {}
Class = TypeVar("Class", bound=type)


def registered(name: str) -> Callable[[Class], Class]:
    """Let `sampler_from` rebuild a frozen dataclass by this name from its fields."""

    def register(kind: Class) -> Class:
        if name in _REGISTRY:
            raise ValueError(f"The sampler {name} is registered twice.")
        _REGISTRY[name] = kind
        kind.name = name  # type: ignore[attr-defined]
        return kind

    return register


class Specified:
    """A frozen dataclass of numbers and lists, and its `spec`."""

    name: ClassVar[str]

    def spec(self) -> dict[str, Any]:
        """JSON-able description; see `sampler_from`."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}  # type: ignore[arg-type]
        return {
            "sampler": self.name,
            **{key: value.tolist() if isinstance(value, Tensor) else value for key, value in values.items()},
        }


def sampler_from(spec: Mapping[str, Any]) -> Registered:
    """Rebuild a sampler from its `spec()`.

    Raises:
        LearnerError: No sampler has this name, or it is not made of these values.

    >>> sampler_from({"sampler": "repeated", "fraction": 0.1}) == Repeated(0.1)
    True
    """
    name = str(spec.get("sampler"))
    if name not in _REGISTRY:
        raise LearnerError(f"No sampler '{name}'.", nearest(name, _REGISTRY))
    values = {key: value for key, value in spec.items() if key != "sampler"}
    try:
        return _REGISTRY[name](**values)
    except TypeError as error:
        raise LearnerError(
            f"The sampler '{name}' is not made of {values}: {error}.", "Give what its spec() gave."
        ) from error


def has_spec(sampler: Any) -> bool:
    """Whether a sampler is one of ours, which a manifest keeps as JSON."""
    return isinstance(sampler, Specified) and _REGISTRY.get(sampler.name) is type(sampler)


def reads(sampler: Any) -> frozenset[str]:
    """What a sampler wants to find in its state.

    Raises:
        LearnerError: It asks for something that there is not.
    """
    wanted = frozenset(getattr(sampler, "reads", ()))
    unknown = sorted(wanted - set(FEEDBACK))
    if unknown:
        raise LearnerError(f"The sampler reads '{unknown[0]}'.", nearest(unknown[0], FEEDBACK))
    return wanted


def visits(sampler: Any, size: int) -> int | None:
    """How many visits each epoch of a sampler has; None where it does not say."""
    count = getattr(sampler, "visits", None)
    return None if count is None else int(count(size))


def checked(
    drawn: tuple[Tensor, Tensor | None], size: int, visits: int | None = None
) -> tuple[Int[Tensor, " visit"], Float[Tensor, " visit"] | None]:
    """What a sampler gave for an epoch over so many examples, if it is possible.

    Args:
        drawn: Indices and weights.
        size: How many examples there are.
        visits: How many visits it said that an epoch has.

    Raises:
        LearnerError: It is not.
    """
    indices, weights = drawn
    if indices.numel() == 0 or int(indices.min()) < 0 or int(indices.max()) >= size:
        raise LearnerError(
            f"The sampler gave {'no index' if not indices.numel() else f'indices outside 0..{size - 1}'}.",
            "A sampler returns indices into the training rows, at least one per epoch.",
        )
    if visits is not None and len(indices) != visits:
        raise LearnerError(
            f"The sampler gave {len(indices)} indices, and its visits({size}) says {visits}.", "Make both the same."
        )
    if weights is not None and weights.shape != indices.shape:
        raise LearnerError(
            f"The sampler gave {len(indices)} indices and {len(weights)} weights.",
            "Give one weight per index, or None.",
        )
    return indices, weights


# Beyond this many examples, whole blocks of neighbours are shuffled: inputs of that size may lie on disk, where 32 rows in a row cost as
# much to read as one, and a batch of 2048 still is a random sample of 64 places.
BLOCKS_FROM, BLOCK = 500_000, 32


def permutation(size: int, random: torch.Generator) -> Int[Tensor, " example"]:
    """All examples in random order; for more than half a million, of blocks of 32 neighbours that are cut at a random place."""
    if size < BLOCKS_FROM:
        return torch.randperm(size, generator=random)
    begin = int(torch.randint(BLOCK, (1,), generator=random))
    blocks = torch.randperm(-(-(size + begin) // BLOCK), generator=random)
    indices = (blocks[:, None] * BLOCK - begin + torch.arange(BLOCK)).flatten()
    return indices[(indices >= 0) & (indices < size)]


@registered("shuffled")
@dataclass(frozen=True)
class Shuffled(Specified):
    """Every example once, in a fresh order each epoch: the default.

    The order is a uniform permutation; for more than half a million examples, one of blocks of 32 neighbours, cut at other places in
    each epoch.
    """

    def visits(self, size: int) -> int:
        """As many as there are examples."""
        return size

    def epoch(self, state: SamplerState) -> tuple[Int[Tensor, " visit"], None]:
        """A permutation of all examples."""
        return permutation(state.size, state.generator), None


@registered("fixed")
@dataclass(frozen=True, eq=False, repr=False)
class Fixed(Specified):
    """The same examples in every epoch, each once, in a fresh order: a static selection as a sampler.

    It visits them in the order in which a training on these examples alone would, so that both end in the same weights.

    Args:
        order: Which examples, as a tensor or a list of indices.
        weights: Weight of each of them; None: all one.

    >>> sampler = Fixed([7, 2, 5])
    >>> sorted(sampler.epoch(SamplerState(1, 3, 10, generator(0, "shuffle", 1)))[0].tolist())
    [2, 5, 7]
    """

    order: Int[Tensor, " picked"]
    weights: Float[Tensor, " picked"] | None = None

    def __post_init__(self) -> None:
        order = torch.as_tensor(self.order if isinstance(self.order, Tensor) else list(self.order), dtype=torch.int64)
        object.__setattr__(self, "order", order)
        if self.weights is not None:
            object.__setattr__(self, "weights", torch.as_tensor(self.weights, dtype=torch.float32))
        if order.dim() != 1 or not len(order) or int(order.min()) < 0:
            raise LearnerError(
                "A fixed sampler visits at least one example, each by its index from 0.", "Give indices."
            )
        if int(torch.bincount(order).max()) > 1:
            raise LearnerError(
                "A fixed sampler visits each example once, and some are named twice.", "Give them a weight of 2."
            )
        if self.weights is not None and (self.weights.shape != order.shape or not bool((self.weights >= 0).all())):
            raise LearnerError(
                f"The weights of {len(order)} examples have the shape {tuple(self.weights.shape)} or values below 0.",
                "Give one weight from 0 per example, or None.",
            )

    def _digest(self) -> str:
        parts = [self.order, self.weights] if self.weights is not None else [self.order]
        return hashlib.blake2b(b"".join(one.numpy().tobytes() for one in parts), digest_size=6).hexdigest()

    def __repr__(self) -> str:
        return f"Fixed({len(self.order)} examples{'' if self.weights is None else ', weighted'}, {self._digest()})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Fixed) and repr(self) == repr(other)

    def __hash__(self) -> int:
        return hash(repr(self))

    def among(self, places: Int[Tensor, " example"]) -> Fixed:
        """The same choice for a training set that holds only these of the examples (some perhaps twice).

        Raises:
            LearnerError: None of them was chosen.

        >>> Fixed([7, 2], [1.0, 0.5]).among(torch.tensor([2, 4, 7, 7])).spec()
        {'sampler': 'fixed', 'order': [0, 2, 3], 'weights': [0.5, 1.0, 1.0]}
        """
        size = 1 + max(int(self.order.max()), int(places.max()) if len(places) else 0)
        weights = torch.full((size,), torch.nan)
        weights[self.order] = 1.0 if self.weights is None else self.weights
        own = weights[places]
        kept = own.isfinite().nonzero()[:, 0]
        return Fixed(kept, None if self.weights is None else own[kept])

    def visits(self, size: int) -> int:
        """As many as were chosen."""
        return len(self.order)

    def epoch(self, state: SamplerState) -> tuple[Int[Tensor, " visit"], Float[Tensor, " visit"] | None]:
        """The chosen examples in a fresh order."""
        ascending = self.order.argsort()
        drawn = ascending[permutation(len(ascending), state.generator)]
        return self.order[drawn], None if self.weights is None else self.weights[drawn]


@registered("repeated")
@dataclass(frozen=True)
class Repeated(Specified):
    """A fresh random subset in every epoch: RS2 (Okanovic et al. 2024, arXiv:2305.18424).

    Attributes:
        fraction: Share of the examples that an epoch visits, each at most once.
        replace: False: the epochs walk through a random order of all examples, so that every example was visited after `1 / fraction`
            epochs, and then through another one (the last epoch of a walk is filled up from its beginning where the fraction does not
            divide it). True: each epoch draws from all examples anew.
    """

    fraction: float
    replace: bool = False

    def __post_init__(self) -> None:
        check_share("fraction", self.fraction)

    def visits(self, size: int) -> int:
        """The fraction of the examples, at least one."""
        return share_of(self.fraction, size)

    def epoch(self, state: SamplerState) -> tuple[Int[Tensor, " visit"], None]:
        """The next subset."""
        count = self.visits(state.size)
        if self.replace:
            return permutation(state.size, state.generator)[:count], None
        walk, place = divmod(state.epoch - 1, -(-state.size // count))
        order = permutation(state.size, generator(state.seed, "walk", walk))
        return order.roll(-place * count)[:count], None


def check_share(name: str, value: float) -> None:
    """A share of the examples is above 0 and at most 1, else a `LearnerError`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise LearnerError(f"{name}={value!r} is not a share of the examples.", "Give a number above 0, at most 1.")


def share_of(fraction: float, size: int) -> int:
    """How many examples a share of them is, at least one."""
    return max(1, round(fraction * size))
