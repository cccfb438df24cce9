"""What a model that forgets is held against: many trainings of the parent's learner, with all examples, without some, and with some halves.

| fleet        | trained on                                               | serves                                                |
|--------------|----------------------------------------------------------|-------------------------------------------------------|
| `references` | all training examples                                    | parents that a method is applied to; "doing nothing"  |
| `oracles`    | the retained ones                                        | what forgetting should give: they never saw the rest  |
| `shadows`    | the retained ones and a random half of some candidates   | attacks, which ask what having been seen looks like   |

All three share the parent's encoder, task and learner, and differ in seeds, which are never the parent's. They are trained by the executors
of fleets and kept under the parent's `fleets/forgetting/`, in a folder named by all that decides who they are. The k-th member of a folder
is always the same one: asking for more trains the new ones alone, and what was killed goes on with those that are missing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from imprint.errors import EvidenceError, IdError
from imprint.fitting import Data, Fixed, Learner, Progress, generator, silent
from imprint.fitting.build import build, has_epochs
from imprint.fleets import Member, Shared, execute, share
from imprint.fleets.sequential import train_module
from imprint.fleets.store import Outcomes
from imprint.models import is_estimator
from imprint.recording.files import room, write_json
from imprint.recording.lock import writing
from imprint.tasks import Classification, Multilabel, Task

if TYPE_CHECKING:
    from imprint.recording import Run

# First seeds of the three kinds, far from each other and from what users write.
SEEDS = {"references": 10_000_000, "oracles": 20_000_000, "shadows": 30_000_000}
# Part of a folder's name; another number where what is kept, or how members are drawn, changes.
FORMAT = 1


@dataclass(frozen=True)
class Models:
    """Trained models of one kind.

    Attributes:
        outputs: What they say of all rows of the corpus, in their order; in units of the encoded target.
        seeds: With which each was trained.
        seconds: What training them took, all together.
        shared: What they have in common with the parent: its learner, encoder, task and encoded examples.
        members: How each differs.
        store: Where they are kept.
    """

    outputs: Float[Tensor, "model row ..."]
    seeds: tuple[int, ...]
    seconds: float
    shared: Shared
    members: Sequence[Member]
    store: Outcomes

    def __len__(self) -> int:
        return len(self.seeds)

    def module(self, number: int) -> nn.Module:
        """A fresh copy of one of them, in evaluation mode, on the CPU."""
        learner = self.members[number].learner(self.shared.learner)
        if is_estimator(learner.model):  # has no tensors to keep; the same seed gives the same one
            return train_module(self.shared, self.members[number]).eval()
        module = build(learner, self.shared.encoder, self.shared.task)
        module.load_state_dict(self.store.parameters(number))
        return module.eval()


def references(run: Run, count: int, *, data: Data | None = None, progress: Progress = silent) -> Models:
    """Models trained on all training examples, as the parent was, by other seeds.

    Args:
        run: The parent.
        count: How many; of a learner without chance one.
        data: The corpus encoded by the run's encoder, if at hand.
        progress: Told the models trained.

    Raises:
        EvidenceError: The run cannot be trained again from here.
    """
    shared = shared_of(run, data, progress)
    seeds = seeds_of("references", shared.learner, count)
    return trained(run, "references", shared, [Member(seed=seed) for seed in seeds], [], progress)


def oracles(
    run: Run,
    places: Int[Tensor, " example"] | np.ndarray,
    count: int,
    *,
    data: Data | None = None,
    progress: Progress = silent,
) -> Models:
    """Models that never saw some training examples, but for the encoder, which is the parent's.

    Args:
        run: The parent.
        places: The examples to leave out, 0..n-1 in the order of `run.ids`.
        count: How many; of a learner without chance one.
        data: The corpus encoded by the run's encoder, if at hand.
        progress: Told the models trained.

    Raises:
        IdError: Nothing or everything is left out.
        EvidenceError: The run cannot be trained again from here.
    """
    shared = shared_of(run, data, progress)
    rows, _ = retained(shared, places)
    members = [Member(seed=seed, rows=rows) for seed in seeds_of("oracles", shared.learner, count)]
    return trained(run, "oracles", shared, members, [rows], progress)


def shadows(
    run: Run,
    places: Int[Tensor, " example"] | np.ndarray,
    candidates: Int[Tensor, " candidate"] | np.ndarray,
    count: int,
    *,
    data: Data | None = None,
    progress: Progress = silent,
) -> tuple[Models, Bool[Tensor, "model candidate"]]:
    """Models trained on the retained examples and a random half of the candidates, and who saw which candidate.

    Halves come in pairs, a random one and what it leaves: after an even number of models each candidate was seen by half of them.

    Args:
        run: The parent.
        places: The training examples to leave out, 0..n-1 in the order of `run.ids`.
        candidates: Rows of the corpus, each once: the forgotten ones, and as many held-out ones.
        count: How many models.
        data: The corpus encoded by the run's encoder, if at hand.
        progress: Told the models trained.

    Raises:
        IdError: Nothing or everything is left out, or a candidate is a retained example.
        EvidenceError: The run cannot be trained again from here, or its learner has a fixed choice of examples.
    """
    shared = shared_of(run, data, progress)
    if isinstance(shared.learner.sampler, Fixed):
        raise EvidenceError(
            "This run was trained on a fixed choice of its examples, which has no place for held-out rows.",
            "Leave the attacks out (attacks=False), or fit on the chosen rows alone: run.corpus.take(ids).",
        )
    kept, _ = retained(shared, places)
    held = torch.as_tensor(np.asarray(candidates)).long()
    if bool(torch.isin(held, kept).any()) or len(torch.unique(held)) < len(held) or not len(held):
        raise IdError(
            "Candidates of shadow models are forgotten and held-out rows, each once; there are none, some are retained, or come twice.",
            "Give rows of the corpus, as run.rows('test') does.",
        )
    seen = halves(len(held), count, shared.learner.seed)
    seeds = range(SEEDS["shadows"], SEEDS["shadows"] + count)
    members = [
        Member(seed=seed, rows=torch.cat([kept, held[one]]).sort().values)
        for seed, one in zip(seeds, seen, strict=True)
    ]
    return trained(run, "shadows", shared, members, [kept, held], progress), seen


def halves(candidates: int, models: int, seed: int) -> Bool[Tensor, "model candidate"]:
    """Random halves and what each leaves, one after the other; the first ones are the same however many there are.

    >>> seen = halves(5, 4, seed=0)
    >>> seen[0].logical_xor(seen[1]).all().item(), seen.sum(0).tolist()
    (True, [2, 2, 2, 2, 2])
    """
    found = torch.zeros(models, candidates, dtype=torch.bool)
    for number in range(models):
        if number % 2:
            found[number] = ~found[number - 1]
            continue
        order = torch.randperm(candidates, generator=generator(seed, "forget", "shadow", number))
        found[number, order[: candidates // 2]] = True
    return found


def margins(task: Task, outputs: Float[Tensor, "... example output"], target: Tensor) -> Float[Tensor, "... example"]:
    """How far models are from saying the target: `log p(y) - log(1 - p(y))` of the target's probability p(y), in nats.

    Of several labels p(y) is the probability that all are right. A quantity has no such probability: of it, this is the error, prediction
    less target in standard deviations of the target, with its sign. Over many models it tells all that predictions tell, and is near to a
    Gaussian; it is not the higher, the better the target is known.

    Args:
        task: What outputs mean.
        outputs: Of models on examples; leading axes are models.
        target: Encoded targets of the examples.

    >>> margins(Classification((0, 1)), torch.tensor([[[2.0, 0.0]], [[0.0, 1.0]]]), torch.tensor([0]))
    tensor([[ 2.],
            [-1.]])
    """
    if isinstance(task, Classification):
        own = target.expand(outputs.shape[:-1])[..., None]
        others = outputs.scatter(-1, own, -torch.inf).logsumexp(-1)
        return outputs.gather(-1, own)[..., 0] - others
    if isinstance(task, Multilabel):
        log = F.logsigmoid(outputs.double() * (2 * target.double() - 1)).sum(-1).clamp(max=-1e-300)
        return (log - torch.log(-torch.expm1(log))).float()
    return outputs[..., 0] - target


# ------------------------------------------------------------------------------------------------------------- who they are


def seeds_of(kind: str, learner: Learner, count: int) -> list[int]:
    """The seeds of the first models of a kind: one after the other, without the parent's own.

    Raises:
        EvidenceError: Less than one is asked for.
    """
    if count < 1:
        raise EvidenceError(f"{count} {kind} are none.", "Ask for at least 1.")
    first = SEEDS[kind]
    seeds = [seed for seed in range(first, first + count + 1) if seed != learner.seed]
    return seeds[: 1 if without_chance(learner) else count]


def without_chance(learner: Learner) -> bool:
    """Whether every seed gives the same model: of a solved head, and of an estimator that takes no random state from its learner."""
    if has_epochs(learner.model):
        return False
    if not is_estimator(learner.model):
        return True
    settings = learner.model.get_params()
    return not any(name.split("__")[-1] == "random_state" and value is None for name, value in settings.items())


def shared_of(run: Run, data: Data | None, progress: Progress) -> Shared:
    """What the models share with the parent.

    Raises:
        EvidenceError: The run recorded a loop of the user's own.
    """
    if data is None or run.encoder is None or run.manifest.get("watched"):
        return share(run, progress=progress)
    return Shared(run.learner, run.task, run.encoder, data)


def retained(
    shared: Shared, places: Int[Tensor, " example"] | np.ndarray
) -> tuple[Int[Tensor, " example"], Int[Tensor, " example"]]:
    """Rows of the training examples that stay, and of those that go.

    Raises:
        IdError: Nothing or everything goes.
    """
    rows = shared.data.rows
    gone = torch.zeros(len(rows), dtype=torch.bool)
    gone[torch.as_tensor(np.asarray(places)).long()] = True
    if bool(gone.all()) or not bool(gone.any()):
        raise IdError(
            f"{int(gone.sum())} of {len(rows)} training examples are to be left out.", "Leave out some, and keep some."
        )
    return rows[~gone], rows[gone]


# ------------------------------------------------------------------------------------------------------- trained and kept


def trained(
    run: Run,
    kind: str,
    shared: Shared,
    members: Sequence[Member],
    sets: Sequence[Int[Tensor, " row"]],
    progress: Progress,
) -> Models:
    """The members, those that are not kept yet trained now."""
    folder = run.path / "fleets" / "forgetting" / f"{kind}-{digest(run, shared, sets)}"
    every = torch.arange(len(shared.data.target))
    store = Outcomes(folder, shared.task, "logits", shared.data.target)
    with writing(folder):
        if not (folder / "about.json").exists():
            write_json(
                folder / "about.json", {"kind": kind, "examples": [len(one) for one in sets], "rows": len(every)}
            )
        most = max([len(members), *(int(file.numbers.max()) + 1 for file in store.files())])
        there = {int(number) for file in store.verify(most, parameters=True) for number in file.numbers}
        missing = [number for number in range(len(members)) if number not in there]
        earlier = len(members) - len(missing)

        def told(label: str, done: int, total: int, facts: Mapping[str, str] | None = None) -> None:
            progress(kind, earlier + done, len(members), facts)

        done = execute(
            shared, members, queries=every, executor="steady", numbers=missing, parameters=True, progress=told
        )
        with room(folder), closing(done):  # type: ignore[type-var]
            for finished in done:
                store.write(finished)
    files = store.files()
    numbers = np.arange(len(members))
    outputs = store.read(files, "logits", numbers, every.numpy())
    took = {int(n): float(s) for file in files for n, s in zip(file.numbers, file.seconds, strict=True)}
    seeds = tuple(int(one.seed or 0) for one in members)
    return Models(outputs, seeds, sum(took[int(n)] for n in numbers), shared, members, store)


def digest(run: Run, shared: Shared, sets: Sequence[Int[Tensor, " row"]]) -> str:
    """16 hexadecimal digits that differ where the corpus, the learner, the training rows or the sets of examples differ."""
    learner = {
        name: value
        for name, value in shared.learner.spec().items()
        if value is not None and name not in ("device", "record")
    }
    said = hashlib.blake2b(
        json.dumps([FORMAT, run.fingerprint, learner], default=str, sort_keys=True).encode(), digest_size=8
    )
    for one in (shared.data.rows, *sets):
        values = one.contiguous().numpy()
        said.update(f"{values.shape}".encode() + values.tobytes())
    return said.hexdigest()
