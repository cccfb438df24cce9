"""Training in shards, slices and several orders of the slices, so that forgetting is switching off (S3T, arXiv:2406.16257).

The training examples are parted into shards and slices by a hash of their ids, as in `imprint.fitting.sharded`. A shard's base is its
module at its first random weights, on frozen features: it never saw an example. A stage is a list of slices, such as 2, 0, 1. It trains
low-rank changes of the weights (`imprint.fitting.adapters`) on the examples of these slices, with those of the stages 2 and 2, 0 frozen and
added; so what it trains is only ever updated with its own slices. The stages are the beginnings of several orders of the slices.

To forget an example, every stage that has its slice is switched off: its file is not taken over. What is left of each order is a
beginning of it; a shard serves the longest one, and the model is the mean of the shards that have any. Nothing is trained.

A stage is known by a digest of all that it depends on, as in `imprint.fitting.sharded`: what was forgotten, and in which order, need
not be said.

    shards/shard-000-base.safetensors              the weights before any example
    shards/shard-000-slices-2-0-1.safetensors      the changes of a stage; its name is what it was ever updated with
    shards/order.json                              rule, orders, examples of each slice, what each stage was updated with, what is served

A stage takes `2 epochs / (slices + 1)` epochs, so an order visits as many examples as a training without slices, and all of them
`Sequencing.cost` times as many.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Int
from safetensors.torch import load_file
from torch import Tensor, nn

from imprint.errors import LearnerError
from imprint.fitting.adapters import Adapted, added_all
from imprint.fitting.data import Data
from imprint.fitting.progress import Progress, silent
from imprint.fitting.seeds import derive, generator
from imprint.fitting.sharded import Sharded, Sharding, digest_of, is_kept, keep, take_over
from imprint.tasks import Task

if TYPE_CHECKING:
    from imprint.fitting.learner import Learner

WRITTEN = re.compile(r"s3t\(([^()]*)\)")
EXAMPLE = "s3t(shards=2, slices=4, orders=4)"
ORDER = "order.json"
# Of the changes. Over three seeds, 2 shards of 4 slices, the last stages of one order beside SISA's: TREC-6 accuracy .877 (rank 16), .883
# (32), .887 (64), .890 (free), SISA .893; California housing R2 .737 (32), .747 (64), .746 (free), SISA .746. A stage of rank 64 of the
# usual mlp takes some 40 % of the space of its weights.
RANK = 64
# Heads that are trained on frozen features.
HEADS = ("linear", "mlp")

Prefix = tuple[int, ...]


@dataclass(frozen=True)
class Sequencing:
    """How a training set is parted, and in which orders its slices are trained.

    Attributes:
        shards: Modules, each trained on a part of its own.
        slices: Parts of each.
        orders: Orders of the slices.
        rank: Of the changes that a stage trains.

    >>> Sequencing.read("s3t(shards=2, slices=4, orders=4)")
    Sequencing(shards=2, slices=4, orders=4, rank=64)
    """

    shards: int = 2
    slices: int = 4
    orders: int = 4
    rank: int = RANK

    @classmethod
    def read(cls, text: str) -> Sequencing:
        """From `Learner.deletable`.

        Raises:
            LearnerError: It says something else, or there are not as many orders.
        """
        found = WRITTEN.fullmatch(text.strip()) if isinstance(text, str) else None
        pairs = [re.fullmatch(r"\s*(\w+)\s*=\s*(\d+)\s*", one) for one in found[1].split(",")] if found else [None]
        given = {pair[1]: int(pair[2]) for pair in pairs if pair}
        known = {field.name for field in fields(cls)}
        if None in pairs or len(given) < len(pairs) or not known >= set(given) or not all(given.values()):
            raise LearnerError(f"deletable={text!r} is unknown.", f"Write deletable={EXAMPLE!r}.")
        one = cls(**{"orders": given.get("slices", cls.slices), **given})
        if one.orders > math.factorial(one.slices):
            raise LearnerError(
                f"deletable={text!r}: {one.slices} slices have {math.factorial(one.slices)} orders.",
                "Ask for no more; as many orders as slices is a good choice.",
            )
        return one

    @property
    def sharding(self) -> Sharding:
        """Shards and slices alone."""
        return Sharding(self.shards, self.slices)

    @property
    def cost(self) -> float:
        """Examples visited, beside a training without slices.

        >>> Sequencing(shards=2, slices=4, orders=4).cost, round(Sequencing(slices=4, orders=12).cost, 2)
        (4.0, 11.2)
        """
        return sum(map(len, _stages(self, [True] * self.slices))) / (self.slices * (self.slices + 1) / 2)

    def sequences(self) -> tuple[Prefix, ...]:
        """The orders of the slices."""
        return tuple(orders(tuple(range(self.slices)), self.orders))


def orders(slices: Sequence[int], count: int) -> list[Prefix]:
    """So many orders, as different as can be: by iterative cyclic rotation, the paper's choice where any slice may be hit.

    As many slices as possible come first in some order, each equally often; among the orders with the same beginning the same holds of
    what follows. Rotations differ at every place. Of fewer orders than slices the rotations are spread evenly, so that what one order loses
    early another one has late.

    >>> orders(range(4), 4)
    [(0, 1, 2, 3), (1, 2, 3, 0), (2, 3, 0, 1), (3, 0, 1, 2)]
    >>> orders(range(4), 2)
    [(0, 1, 2, 3), (2, 3, 0, 1)]
    >>> orders(range(3), 6)
    [(0, 1, 2), (0, 2, 1), (1, 2, 0), (1, 0, 2), (2, 0, 1), (2, 1, 0)]
    """
    slices = tuple(slices)
    size = len(slices)
    if count <= 1 or size <= 1:
        return [slices] * min(1, count)
    found: list[Prefix] = []
    for one in range(size):
        share = (one + 1) * count // size - one * count // size  # of `count` in `size` parts, as even as can be
        begin = one if count >= size else len(found) * size // count
        turned = slices[begin:] + slices[:begin]
        found += [(turned[0], *rest) for rest in orders(turned[1:], share)]
    return found


@dataclass(frozen=True)
class Sequenced:
    """What a sequenced training did.

    Attributes:
        module: The model.
        steps: Optimizer steps taken now.
        trained: `(shard, slices)` of the stages trained now.
        stages: `(shard, slices)` of the stages that there are.
        total: Stages of a training in which none is switched off.
        served: What each shard serves: slices in the order of their stages; empty for a shard that does not count.
    """

    module: Sharded
    steps: int
    trained: tuple[tuple[int, Prefix], ...]
    stages: tuple[tuple[int, Prefix], ...]
    total: int
    served: tuple[Prefix, ...]

    @property
    def capacity(self) -> int:
        """Deletions that surely need no training: an order is lost with its first slice, and one order has to be left somewhere."""
        return max(0, len({(shard, slices[0]) for shard, slices in self.stages}) - 1)


def train_sequenced(
    learner: Learner,
    module: nn.Module,
    task: Task,
    data: Data,
    *,
    folder: Path | None = None,
    found: Path | None = None,
    training: bool = True,
    off: Bool[Tensor, "shard slice"] | None = None,
    progress: Progress = silent,
) -> Sequenced:
    """Train the stages of a sequenced training, and put the longest of each shard into its module.

    Args:
        learner: Resolved, with `deletable`.
        module: From `imprint.fitting.build.build`; it is changed in place.
        task: Gives outputs and losses.
        data: Encoded examples with `keys`.
        folder: Where stages are kept, and found if they were kept before; None keeps none.
        found: Another folder whose stages may be used, such as the parent's.
        training: Whether stages that are not found are trained; False leaves them out.
        off: Slices whose stages are left out in any case.
        progress: Told the stages done.

    Raises:
        LearnerError: The data have no keys.
    """
    plan = Sequencing.read(str(learner.deletable))
    if data.keys is None:
        raise LearnerError(
            "A sequenced training parts its examples by their ids, and these have none.", "Use encode()."
        )
    assert isinstance(module, Sharded)
    shard, piece = plan.sharding.parts(data.keys[data.rows])
    off = torch.zeros(plan.shards, plan.slices, dtype=torch.bool) if off is None else off
    slices = [[data.rows[(shard == k) & (piece == s)] for s in range(plan.slices)] for k in range(plan.shards)]
    wanted = [_stages(plan, [len(rows) > 0 for rows in one]) for one in slices]
    total, steps, passed = sum(map(len, wanted)), 0, 0
    trained: list[tuple[int, Prefix]] = []
    there: list[tuple[int, Prefix]] = []
    served: list[Prefix] = []
    for k, member in enumerate(module.members):
        rows = slices[k]
        base = _base(member, folder, found, learner, k)
        changes: dict[Prefix, dict[str, Tensor]] = {}
        digests: dict[Prefix, str] = {(): ""}
        for prefix in wanted[k]:
            passed += 1
            digests[prefix] = digest_of(learner, data, rows[prefix[-1]], [k, prefix, digests[prefix[:-1]]])
            if off[k, list(prefix)].any() or (len(prefix) > 1 and prefix[:-1] not in changes):
                continue
            name = stage_name(k, prefix)
            place = take_over(folder, found, name, digests[prefix])
            if place is not None:
                changes[prefix] = load_file(place)
            elif training:
                before = added_all(base, (changes[prefix[: n + 1]] for n in range(len(prefix) - 1)))
                seen = torch.cat([rows[s] for s in prefix]).sort().values
                changes[prefix], taken = _train(learner, plan, member, before, task, data.train_on(seen), k, prefix)
                steps += taken
                trained.append((k, prefix))
                if folder is not None:
                    keep(folder / name, changes[prefix], digests[prefix])
            progress("train", passed, total)
        there += [(k, prefix) for prefix in changes]
        best = max(changes, key=len, default=())  # the first of the longest
        final = added_all(base, (changes[best[: n + 1]] for n in range(len(best))))
        member.cpu().load_state_dict(final, strict=False)
        member.eval()
        module.present[k] = float(bool(best))
        served.append(best)
    done = Sequenced(module.eval(), steps, tuple(trained), tuple(there), total, tuple(served))
    if folder is not None:
        _record(folder / ORDER, plan, data, shard, piece, done)
    return done


def touched(plan: Sequencing, keys: Int[Tensor, " example"]) -> Bool[Tensor, "shard slice"]:
    """Slices that hold examples of these keys."""
    shard, piece = plan.sharding.parts(keys)
    found = torch.zeros(plan.shards, plan.slices, dtype=torch.bool)
    found[shard, piece] = True
    return found


def recorded(folder: Path, learner: Learner) -> bool:
    """Whether a folder keeps the stages of this learner."""
    return is_kept(folder / _base_name(0), _base_digest(learner, 0))


def stage_name(shard: int, slices: Prefix) -> str:
    """File of a stage."""
    return f"shard-{shard:03d}-slices-{'-'.join(map(str, slices))}.safetensors"


def _stages(plan: Sequencing, filled: Sequence[bool]) -> list[Prefix]:
    """All beginnings of all orders, each once and after its own beginnings; slices without examples are passed over."""
    found: dict[Prefix, None] = {}
    for order in plan.sequences():
        order = tuple(s for s in order if filled[s])
        for length in range(1, len(order) + 1):
            found[order[:length]] = None
    return list(found)


def _train(
    learner: Learner,
    plan: Sequencing,
    member: nn.Module,
    weights: dict[str, Tensor],
    task: Task,
    data: Data,
    shard: int,
    prefix: Prefix,
) -> tuple[dict[str, Tensor], int]:
    """The changes of one stage on top of these weights, and the steps that it took."""
    from imprint.fitting.loop import train

    frozen = copy.deepcopy(member)
    frozen.load_state_dict(weights, strict=False)
    adapted = Adapted(frozen, plan.rank, generator(learner.seed, "adapter", shard, *prefix))
    one = replace(
        learner,
        deletable=None,
        epochs=plan.sharding.epochs(int(learner.epochs or 1)),
        batch_size=min(int(learner.batch_size or 1), len(data.rows)),
        seed=derive(learner.seed, "shard", shard, "slices", *prefix),
        record="none",
    )
    done = train(adapted, task, data, one)
    assert isinstance(done.module, Adapted)  # the average of the weights where there is one
    return done.module.changes(), done.steps


def _base(
    member: nn.Module, folder: Path | None, found: Path | None, learner: Learner, shard: int
) -> dict[str, Tensor]:
    """The weights of a shard before any example: as they were kept, else as they were drawn."""
    digest, name = _base_digest(learner, shard), _base_name(shard)
    place = take_over(folder, found, name, digest)
    if place is not None:
        return load_file(place)
    weights = {name: weight.detach().cpu().clone() for name, weight in member.named_parameters()}
    if folder is not None:
        keep(folder / name, weights, digest)
    return weights


def _base_name(shard: int) -> str:
    return f"shard-{shard:03d}-base.safetensors"


def _base_digest(learner: Learner, shard: int) -> str:
    return digest_of(learner, None, None, [shard, "base"])


def _record(path: Path, plan: Sequencing, data: Data, shard: Tensor, piece: Tensor, done: Sequenced) -> None:
    """Write which slices each stored parameter was ever updated with."""
    assert data.keys is not None
    keys = data.keys[data.rows]
    examples = []
    for k in range(plan.shards):
        parts = [keys[(shard == k) & (piece == s)].sort().values for s in range(plan.slices)]
        examples.append(
            [
                {"count": len(one), "blake2b": hashlib.blake2b(one.numpy().tobytes(), digest_size=16).hexdigest()}
                for one in parts
            ]
        )
    said: dict[str, Any] = {
        "rule": "key = hash of the id, less its two highest bits; shard = key % shards; slice = key // shards % slices",
        **{field.name: getattr(plan, field.name) for field in fields(plan)},
        "sequences": plan.sequences(),
        "examples": examples,
        "parameters": {
            **{_base_name(k): {"shard": k, "updated_with": []} for k in range(plan.shards)},
            **{stage_name(k, prefix): {"shard": k, "updated_with": prefix} for k, prefix in done.stages},
        },
        "served": [
            [_base_name(k), *(stage_name(k, prefix[: n + 1]) for n in range(len(prefix)))] if prefix else []
            for k, prefix in enumerate(done.served)
        ],
    }
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(said, indent=1))
    temporary.replace(path)
