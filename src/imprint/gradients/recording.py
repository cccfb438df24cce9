"""Projected per-example gradients of any PyTorch or Hugging Face model, outside a run.

A batch is what the model's own data loader gives: a tensor, a tuple or a dictionary of tensors whose first axis is the example. It goes
through the model once, forward and backward; what is kept of an example are `size` float16 numbers. Only parameters that require
gradients are read, so of a model with adapters only these.

    gradients[e] = project(gradient of the loss of example e),        loss of a sequence = sum over its tokens, in nats

On disk the table grows by whole batches. A pass that was interrupted goes on where it stopped, after making sure that the model, the
projection and the batches are the same. Memory depends on the batch and the model, never on the number of examples.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from imprint.errors import EvidenceError
from imprint.fitting.progress import Progress, silent
from imprint.gradients.capture import Capture, evaluating
from imprint.gradients.projected import Projected
from imprint.gradients.projections import Kind, Projection
from imprint.recording import tables
from imprint.recording.files import remove
from imprint.tasks import Task

Loss = Callable[[nn.Module, Any], Tensor]

# A table is appended to when this much waits, or this long after the last time: an interruption loses no more.
CHUNK_BYTES = 2**25
CHUNK_SECONDS = 60.0
IGNORED = -100


def project(
    model: nn.Module,
    batches: Iterable[Any],
    loss: Loss | None = None,
    *,
    size: int = 512,
    kind: Kind = "factored",
    layers: Sequence[str] | str | None = None,
    seed: int = 0,
    tokens: bool = False,
    path: str | Path | None = None,
    at_a_time: int | None = None,
    progress: Progress = silent,
) -> Projected:
    """Project the gradient of every example's loss to `size` numbers that keep inner products.

    Args:
        model: The model, on its device; it is read in evaluation mode (no dropout) and left as it was.
        batches: Read once, in order.
        loss: (model, batch) -> `[example]`, or `[example, position]` for a loss per token, which is zero where nothing is to be learned.
            None: `next_token`, for causal language models of Hugging Face.
        size: Numbers per example. A model with fewer trained parameters keeps them as they are.
        kind: As of `Projection`. "factored" costs next to nothing beside the backward pass; "paired" and "sparse" are more exact.
        layers: Shell patterns of the names of the layers to keep; None for all with parameters that require gradients.
        seed: Of the projection. Gradients can be compared if model, size, kind, layers and seed are the same.
        tokens: Keep the gradient of each token's own loss, instead of the sum of the document. This takes a backward pass per token:
            it is for queries and for single documents.
        path: A Lance table to write; None keeps all in memory.
        at_a_time: Examples (or tokens) that go through the model together, if fewer than the batch holds.
        progress: Told how many batches are done, if `batches` has a length.

    Raises:
        EvidenceError: No parameter requires gradients, the loss has the wrong shape, examples of a batch mix, or `path` holds gradients
            of another model, projection or data.

    >>> _ = torch.manual_seed(0)
    >>> model = nn.Linear(3, 2)
    >>> batches = [(torch.randn(4, 3), torch.tensor([0, 1, 1, 0])), (torch.randn(2, 3), torch.tensor([1, 0]))]
    >>> found = project(model, batches, lambda model, batch: F.cross_entropy(model(batch[0]), batch[1], reduction="none"))
    >>> found.shape, found.read().shape  # the model has 8 parameters
    ((6, 8), torch.Size([6, 8]))
    >>> found.scores(found).shape
    torch.Size([6, 6])
    """
    capture = _Rows(model, loss or next_token, layers, tokens)
    projection = Projection.of(model, size, seed, kind)
    table = _Table(None if path is None else Path(path), _description(capture, projection))
    device = next(model.parameters()).device
    examples, total = 0, len(batches) if isinstance(batches, Sized) else 0
    for number, batch in enumerate(batches):
        count = length(batch)
        digest = _digest(number, batch)
        if not table.knows(digest):
            capture.batch = on_device(batch, device)
            rows, positions = capture.rows(count, device)
            for begin in range(0, len(rows), at_a_time or count):
                some = slice(begin, begin + (at_a_time or count))
                values, found = capture.with_values(rows[some], positions[some])
                projected = projection.project(found)
                del found
                table.add(examples + rows[some], positions[some], values, projected, digest, projection)
            table.flush()
        examples += count
        if total:
            progress("gradients", number + 1, total)
    return table.finish()


def next_token(model: nn.Module, batch: Mapping[str, Tensor]) -> Float[Tensor, "example position"]:
    """Loss (nats) of each token, given those before it: of a causal language model that is called as Hugging Face's are.

    Args:
        model: Called with all of the batch but its labels; gives an object with `logits`.
        batch: `input_ids`, and where there are any `attention_mask`, `labels` (-100 = not learned) and other inputs.

    Returns:
        Zero at the first token, at padding, and where labels say so.
    """
    if not isinstance(batch, Mapping) or "input_ids" not in batch:
        raise EvidenceError(
            f"The batch is a {type(batch).__name__} without 'input_ids'.",
            "Give loss=, a function of (model, batch) that returns [example] or [example, position].",
        )
    logits = model(**{name: values for name, values in batch.items() if name != "labels"}, use_cache=False).logits
    labels = batch["labels"] if batch.get("labels") is not None else batch["input_ids"]
    if batch.get("attention_mask") is not None:
        labels = labels.masked_fill(batch["attention_mask"] == 0, IGNORED)
    # Labels move, logits stay where they are: they are much the larger.
    following = F.pad(labels[:, 1:], (0, 1), value=IGNORED)
    logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    losses = F.cross_entropy(logits.flatten(0, 1), following.flatten(), ignore_index=IGNORED, reduction="none")
    return F.pad(losses.view(following.shape)[:, :-1], (1, 0))


class _Rows(Capture):
    """`Capture` of a batch of any structure: what it passes around as inputs are the numbers of the batch's rows."""

    def __init__(self, model: nn.Module, loss: Loss, layers: Sequence[str] | str | None, tokens: bool) -> None:
        super().__init__(model, cast(Task, None), layers=layers)
        self.loss, self.tokens, self.batch = loss, tokens, cast(Any, None)

    def _value(self, module: nn.Module, inputs: Tensor, target: Tensor) -> Float[Tensor, " example"]:
        values = self.loss(module, take(self.batch, inputs, length(self.batch)))
        if values.dim() not in (1, 2) or len(values) != len(inputs):
            raise EvidenceError(
                f"The loss of {len(inputs)} examples has the shape {tuple(values.shape)}.",
                "Return one number per example, [example], or per token, [example, position].",
            )
        if self.tokens:
            return _by_token(values).gather(1, target[:, None])[:, 0]
        return values if values.dim() == 1 else values.sum(1)

    def rows(self, count: int, device: torch.device) -> tuple[Int[Tensor, " row"], Int[Tensor, " row"]]:
        """(example, position) of each gradient of the batch; the position is 0 but for tokens, and tokens without a loss are left out."""
        every = torch.arange(count, device=device)
        if not self.tokens:
            return every, torch.zeros_like(every)
        with torch.no_grad(), evaluating(self.module):
            example, position = _by_token(self.loss(self.module, self.batch)).nonzero(as_tuple=True)
        return example, position


def _by_token(values: Tensor) -> Float[Tensor, "example position"]:
    if values.dim() != 2:
        raise EvidenceError(
            f"The loss has the shape {tuple(values.shape)}: there is none per token.",
            "Let loss= return [example, position], or leave tokens=False.",
        )
    return values


# ------------------------------------------------------------------------------------------------------------------- batches


def _tensors(batch: Any) -> list[Tensor]:
    """The tensors of a batch, in order."""
    if isinstance(batch, Tensor):
        return [batch]
    parts = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, list | tuple) else ()
    return [one for part in parts for one in _tensors(part)]


def length(batch: Any) -> int:
    """How many examples a batch holds: the first axis of its first tensor that has one.

    >>> length({"scale": torch.tensor(1.0), "input_ids": torch.zeros(3, 7)})
    3
    """
    found = [len(one) for one in _tensors(batch) if one.dim()]
    if not found:
        raise EvidenceError(
            f"A batch of type {type(batch).__name__} holds no tensor with an axis of examples.",
            "Give tensors, or tuples, lists and dictionaries of them.",
        )
    return found[0]


def take(batch: Any, rows: Int[Tensor, " row"], count: int) -> Any:
    """Rows of a batch of `count` examples, with its structure; what has no axis of that length stays as it is.

    >>> take(("a", {"x": torch.arange(6).view(3, 2)}), torch.tensor([2, 0]), 3)
    ('a', {'x': tensor([[4, 5],
            [0, 1]])})
    """
    if isinstance(batch, Tensor):
        return batch[rows] if batch.dim() and len(batch) == count else batch
    return _rebuilt(batch, lambda part: take(part, rows, count))


def on_device(batch: Any, device: torch.device) -> Any:
    """A batch on a device."""
    return batch.to(device) if isinstance(batch, Tensor) else _rebuilt(batch, lambda part: on_device(part, device))


def _rebuilt(batch: Any, of: Callable[[Any], Any]) -> Any:
    if isinstance(batch, Mapping):
        return {name: of(part) for name, part in batch.items()}
    if isinstance(batch, list | tuple):
        parts = [of(part) for part in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
    return batch


# ---------------------------------------------------------------------------------------------------------------------- disk


class _Table:
    """What is recorded, batch by batch: in memory, or in a Lance table that has another name until it is complete."""

    def __init__(self, path: Path | None, description: dict[str, str]) -> None:
        self.path, self.description = path, description
        self.partial = path and path.with_name(f".{path.name}.partial")
        self.kept: list[pa.Table] = []
        # Rows wait in a few large tensors that are made once: small ones, left between those of the passes through the model, would
        # keep the memory of these from being used again.
        self.columns: dict[str, Tensor] = {}
        self.waiting, self.since = 0, time.monotonic()
        self.blocks: dict[str, list[int]] = {}
        self.known: list[int] = []
        self.matched = 0
        if path is None or self.partial is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        for one in (path, self.partial):
            if not tables.exists(one):
                continue
            self.current: Path = one
            found = {key.decode(): value.decode() for key, value in tables.open_table(one).schema.metadata.items()}
            for name, value in description.items():
                if found.get(name) != value:
                    self._refuse(f"another {name}")
            digests = tables.tensor(tables.read(one, ["batch"])["batch"])
            self.known = torch.unique_consecutive(digests).tolist()
            return
        self.current = self.partial

    def _refuse(self, why: str) -> None:
        raise EvidenceError(
            f"{self.current} holds gradients of {why}.",
            "Give another path, or remove it: it is recorded again.",
        )

    def knows(self, digest: int) -> bool:
        """Whether a batch is recorded already; batches must come in the same order."""
        if self.matched < len(self.known) and self.known[self.matched] == digest:
            self.matched += 1
            return True
        return False

    def add(
        self, rows: Tensor, positions: Tensor, values: Tensor, projected: Tensor, digest: int, projection: Projection
    ) -> None:
        """Some gradients of a batch."""
        if self.matched < len(self.known):
            self._refuse("other batches")
        projected = projected.float().cpu()
        scale = projected.abs().amax(1)
        kept = (projected / scale.clamp(min=torch.finfo(torch.float32).tiny)[:, None]).half()
        new = {
            "row": rows.cpu().long(), "position": positions.cpu().int(), "loss": values.float().cpu(),
            "batch": torch.full((len(rows),), digest), "scale": scale, "gradient": kept,
        }  # fmt: skip
        end = self.waiting + len(rows)
        if not self.columns or end > len(self.columns["row"]):
            capacity = max(2 * end, CHUNK_BYTES // (kept.element_size() * kept.shape[1]))
            for name, one in new.items():
                larger = one.new_empty(capacity, *one.shape[1:])
                larger[: self.waiting] = self.columns[name][: self.waiting] if self.waiting else 0
                self.columns[name] = larger
        for name, one in new.items():
            self.columns[name][self.waiting : end] = one
        self.waiting = end
        self.blocks = {name: [one.start, one.stop] for name, one in projection.blocks.items()}

    def flush(self, now: bool = False) -> None:
        """A batch is complete: keep what waits, if it is enough."""
        if not self.waiting:
            return
        full = 2 * self.waiting * self.columns["gradient"].shape[1] >= CHUNK_BYTES
        if not (now or full or (self.path is not None and time.monotonic() - self.since >= CHUNK_SECONDS)):
            return
        arrays = {name: tables.fixed(one[: self.waiting]) for name, one in self.columns.items()}
        schema = pa.schema(
            [(name, one.type) for name, one in arrays.items()],
            metadata={**self.description, "blocks": json.dumps(self.blocks)},
        )
        table = pa.table(list(arrays.values()), schema=schema)
        if self.path is None:
            self.kept.append(table)
            self.columns = {}  # the table stands on them
        else:
            tables.append(self.current, table)
        self.waiting, self.since = 0, time.monotonic()

    def finish(self) -> Projected:
        """All batches were seen."""
        self.flush(now=True)
        if self.path is None:
            if not self.kept:
                raise EvidenceError("There was no batch, or nothing in one to be learned.", "Give some examples.")
            return Projected(pa.concat_tables(self.kept).combine_chunks())
        if not tables.exists(self.current):
            raise EvidenceError("There was no batch, or nothing in one to be learned.", "Give some examples.")
        if self.matched < len(self.known):
            self._refuse("more batches than were given now")
        if self.current != self.path:
            remove(self.path)
            self.current.replace(self.path)
        return Projected.open(self.path)


def _description(capture: _Rows, projection: Projection) -> dict[str, str]:
    """What must be the same for two parts of a table to belong together; keys stand in messages."""
    own = {"size": projection.size, "seed": projection.seed, "kind": projection.kind, "entries": projection.entries}
    loss = f"{getattr(capture.loss, '__module__', '')}.{getattr(capture.loss, '__qualname__', type(capture.loss).__name__)}"
    return {
        "model": _weights(capture.module),
        "projection": json.dumps(own),
        "choice of layers": json.dumps(capture.patterns),
        "loss": loss,
        "unit": "token" if capture.tokens else "example",
    }


def _weights(model: nn.Module) -> str:
    """A digest of a model's parameters and buffers, and of which of them train."""
    found = hashlib.blake2b(digest_size=16)
    for name, values in (*model.named_parameters(), *model.named_buffers()):
        found.update(f"{name} {values.requires_grad} ".encode())
        found.update(_bytes(values))
    return found.hexdigest()


def _digest(number: int, batch: Any) -> int:
    """63 bits that tell a batch from another."""
    found = hashlib.blake2b(str(number).encode(), digest_size=8)
    for one in _tensors(batch):
        found.update(f"{tuple(one.shape)} {one.dtype}".encode())
        found.update(_bytes(one))
    return int.from_bytes(found.digest(), "little") >> 1


def _bytes(values: Shaped[Tensor, "..."]) -> memoryview:
    return values.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


__all__ = ["Loss", "next_token", "project"]
