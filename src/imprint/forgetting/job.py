"""What a forget method is given, what it gives back, and the parts of the training set that it reads.

A method is a function `method(job, *, settings) -> Forgotten`. The job holds a copy of the parent's module, which the method may change as
it likes, and two parts of the parent's training examples: those to forget and those to retain. Numbers of examples are `places`: 0..n-1
among the training examples of the parent, in the order of `run.ids`, whichever part they are in.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from imprint.errors import EvidenceError
from imprint.fitting import Data, Learner, Progress, as_input, encode, predict, silent
from imprint.tasks import Batch, Task

if TYPE_CHECKING:
    from imprint.corpus import Corpus
    from imprint.recording import Run

# Examples whose inputs are gathered at a time.
PIECE = 8192


@dataclass(frozen=True)
class Part:
    """Some examples of one split.

    Attributes:
        data: Encoded examples of the whole corpus.
        split: Rows of the split, ascending.
        places: Which of the split's examples are of this part, ascending.

    >>> data = Data(torch.arange(4.0)[:, None], torch.tensor([0, 1, 0, 1]), None, {"train": torch.tensor([0, 2, 3])})
    >>> part = Part(data, data.rows, torch.tensor([1, 2]))
    >>> part.rows.tolist(), part.inputs().flatten().tolist(), part.target.tolist(), len(part)
    ([2, 3], [2.0, 3.0], [0, 1], 2)
    """

    data: Data
    split: Int[Tensor, " example"]
    places: Int[Tensor, " example"]

    def __len__(self) -> int:
        return len(self.places)

    @property
    def rows(self) -> Int[Tensor, " example"]:
        """Rows of the corpus, ascending."""
        return self.split[self.places]

    @property
    def target(self) -> Shaped[Tensor, "example ..."]:
        """Encoded targets."""
        return self.data.target[self.rows]

    @property
    def weight(self) -> Float[Tensor, " example"] | None:
        """Weights of the examples; None for all one."""
        return None if self.data.weight is None else self.data.weight[self.rows]

    def inputs(self, places: Int[Tensor, " example"] | None = None) -> Shaped[Tensor, "example ..."]:
        """Encoded inputs of these examples of the split, in this order; None for all of the part."""
        rows = self.rows if places is None else self.split[places]
        return self.data.inputs[rows]

    def batches(
        self, size: int = 256, generator: torch.Generator | None = None
    ) -> Iterator[tuple[Tensor, Tensor, Int[Tensor, " example"]]]:
        """`(inputs, target, places)` in batches of nearly equal size; in a fresh order if a generator is given."""
        order = self.places
        if generator is not None:
            order = order[torch.randperm(len(order), generator=generator)]
        for places in torch.tensor_split(order, max(1, -(-len(order) // size))):
            yield self.inputs(places), self.data.target[self.split[places]], places


@dataclass(frozen=True)
class Forgetting:
    """A request, ready to be served by a method.

    Attributes:
        run: The parent. Methods read it and never write to it.
        module: A copy of the parent's final module, on the learner's device; the method's own to change.
        task: The parent's task, with the loss that it was trained with.
        learner: The parent's resolved learner.
        seed: Of all randomness of the method.
        forget: The training examples to forget.
        retain: The other training examples.
        validation: The parent's validation split, if it has one.
        corrective: Whether the examples to forget are only the known part of the bad data.
        corpus: The parent's corpus without the forgotten rows; None where a method is tried on a module outside a run's folder.
        folder: The child's folder, if there is to be one; a method may keep what it needs to go on there.
        progress: Told how far the method is.
        memory: What a method found of the module as it came, for its next call on the same module with other settings.
    """

    run: Run
    module: nn.Module
    task: Task
    learner: Learner
    seed: int
    forget: Part
    retain: Part
    validation: Part | None = None
    corrective: bool = False
    corpus: Corpus | None = None
    folder: Path | None = None
    progress: Progress = silent
    memory: dict[Any, Any] = field(default_factory=dict, repr=False)

    @property
    def data(self) -> Data:
        """Encoded examples of the parent's corpus."""
        return self.forget.data

    @property
    def without(self) -> Data:
        """The same, with only the retained examples to train on."""
        return self.data.train_on(self.retain.rows)

    @property
    def device(self) -> torch.device:
        """Where the module is."""
        return device_of(self.learner)

    def parameters(self) -> list[nn.Parameter]:
        """The parameters that a training changes."""
        return [one for one in self.module.parameters() if one.requires_grad]

    def outputs(self, part: Part, module: nn.Module | None = None) -> Float[Tensor, "example ..."]:
        """Outputs of the module (or of another one) on a part, in evaluation mode and without gradients; on the CPU."""
        module = self.module if module is None else module
        found = [
            predict(module, self.task, part.inputs(places), device=str(self.device))
            for places in torch.split(part.places, PIECE)
        ]
        return torch.cat(found) if found else torch.empty(0, self.task.width)

    def forward(self, inputs: Tensor, module: nn.Module | None = None) -> Float[Tensor, "example ..."]:
        """Outputs of the module on encoded inputs, with gradients, in the mode that it is in."""
        inputs = as_input(inputs.to(self.device), self.device)
        batch = Batch(inputs, torch.empty(len(inputs), device=self.device))
        return self.task.outputs(self.module if module is None else module, batch).float()

    def loss(self, outputs: Float[Tensor, "example ..."], target: Tensor) -> Float[Tensor, " example"]:
        """What the parent's training made small, of each example."""
        return self.task.objective(outputs, Batch(outputs, target.to(outputs.device)))


@dataclass(frozen=True)
class Forgotten:
    """What a method made of a job.

    Attributes:
        module: The module that has forgotten.
        exact: Whether it is what a training without the examples gives (up to rounding, and as `guarantee` says).
        guarantee: What is promised, and what is not, in a sentence.
        trained: Optimizer steps taken.
        notes: What else to know, a sentence each.
        measured: Figures of the guarantee, by name, such as a bound.
        recorded: Whether the method wrote the child itself, as a recorded training with an encoder of its own.
        evidence: Tensors to keep in the child for the next request, by file name.
    """

    module: nn.Module
    exact: bool
    guarantee: str
    trained: int = 0
    notes: tuple[str, ...] = ()
    measured: Mapping[str, float] = field(default_factory=dict)
    recorded: bool = False
    evidence: dict[str, dict[str, Tensor]] | None = None


def prepare(
    run: Run,
    places: Int[Tensor, " example"] | np.ndarray,
    *,
    seed: int = 0,
    module: nn.Module | None = None,
    data: Data | None = None,
    corrective: bool = False,
    corpus: Corpus | None = None,
    folder: Path | None = None,
    progress: Progress = silent,
) -> Forgetting:
    """A job that forgets these training examples of a run.

    Args:
        run: The parent.
        places: The examples to forget, 0..n-1 in the order of `run.ids`.
        seed: Of the method.
        module: Forget from this module, such as a member of a fleet; None for a copy of the run's own.
        data: The corpus encoded by the run's encoder, if at hand.
        corrective: Whether these are only the known part of the bad data.
        corpus: The corpus without them.
        folder: The child's folder.
        progress: Told how far encoding and method are.
    """
    data = data or run.data or encoded(run, None if folder is None else folder / "scratch", progress)
    module = copy.deepcopy(run.model().module) if module is None else module
    total = len(data.rows)
    gone = torch.zeros(total, dtype=torch.bool)
    gone[torch.as_tensor(np.asarray(places))] = True
    name = next((name for name, rows in data.splits.items() if name.startswith("val") and len(rows)), None)
    held = None if name is None else data.splits[name]
    return Forgetting(
        run=run,
        module=module.to(device_of(run.learner)),
        task=run.task,
        learner=run.learner,
        seed=seed,
        forget=Part(data, data.rows, gone.nonzero()[:, 0]),
        retain=Part(data, data.rows, (~gone).nonzero()[:, 0]),
        validation=None if held is None else Part(data, held, torch.arange(len(held))),
        corrective=corrective,
        corpus=corpus,
        folder=folder,
        progress=progress,
    )


def device_of(learner: Learner) -> torch.device:
    """Where a learner trains; a recorded loop's own says "auto"."""
    if learner.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(learner.device)


def encoded(run: Run, scratch: Path | None = None, progress: Progress = silent) -> Data:
    """The run's corpus, encoded by the run's encoder.

    Raises:
        EvidenceError: The run recorded a loop of the user's own, and its inputs were not given.
    """
    if run.encoder is None:
        raise EvidenceError(
            f"The run {run.path} recorded a loop of your own, and how a row becomes an input of the module is not known.",
            "Give the inputs: imprint.load(path, corpus, model=module, inputs=...).",
        )
    return encode(run.corpus, run.encoder, run.task, scratch=scratch, progress=progress)
