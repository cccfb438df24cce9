"""The verb, the evaluation engine and the table of methods, on a run held in memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from imprint.answers import Answer, Findings, Scores, load_answer
from imprint.errors import MethodError, RunError
from imprint.methods import Derived, Method, evaluate, evaluate_all, lookup, needs_of, registered, table
from imprint.recording.needs import Dynamics, Need, Target
from imprint.scoring import score
from imprint.tasks import Classification, Regression, Task

EXAMPLES, EPOCHS = 2500, 4


@dataclass
class MemoryRun:
    """As much of a run as scoring asks for. Every third row is a test row."""

    task: Task = Classification(("a", "b", "c"))  # noqa: RUF009 (frozen)
    gathered: list[tuple[tuple[Need, ...], slice | None]] = field(default_factory=list)
    path: str = "memory"
    fingerprint: str = "f" * 16

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.splits = np.where(np.arange(EXAMPLES) % 3 == 0, "test", "train")
        self.logits = torch.randn(EPOCHS, len(self.rows()), self.task.width, generator=generator)
        self.targets = torch.randint(3, (len(self.rows()),), generator=generator)
        if isinstance(self.task, Regression):
            self.targets = self.targets.float()
        self.learner = SimpleNamespace(epochs=EPOCHS)
        self.corpus = SimpleNamespace(modality="table", fingerprint=self.fingerprint)
        ids = [f"r{row}" for row in range(EXAMPLES)]
        self.examples = pl.DataFrame({"id": ids, "position": np.arange(EXAMPLES), "split": self.splits})

    def rows(self, split: str = "train") -> np.ndarray:
        return np.flatnonzero(self.splits == split)

    def target(self, split: str = "train") -> torch.Tensor:
        assert split == "train"
        return self.targets

    def gather(self, needs: list[Need], block: slice | None = None) -> dict[str, Any]:
        self.gathered.append((tuple(needs), block))
        assert len({need.name for need in needs}) == len(needs)  # a name can be given once
        rows = block or slice(None)
        return {need.name: self._one(need, rows) for need in needs}

    def _one(self, need: Need, rows: slice) -> torch.Tensor:
        assert isinstance(need, Dynamics)
        logits, target = self.logits[:, rows], self.targets[rows]
        if need.epochs == -1:
            logits = logits[-1:]
        elif need.epochs is not None:
            logits = logits[: max(1, int(need.epochs * EPOCHS))]
        batch = SimpleNamespace(target=target)
        derive = {
            "logits": lambda epoch: epoch,
            "probabilities": lambda epoch: epoch.softmax(1),
            "loss": lambda epoch: self.task.loss(epoch, batch),  # type: ignore[arg-type]
            "margin": lambda epoch: self.task.margin(epoch, target),
            "correct": lambda epoch: self.task.correct(epoch, target),
        }[need.field]
        return torch.stack([derive(epoch) for epoch in logits])


def test_scores_are_aligned_with_ids() -> None:
    run = MemoryRun()
    scores = score(run, ["confidence", "margin"])
    frame = scores.frame()
    assert frame.columns == ["id", "position", "split", "confidence", "margin"]
    assert frame["id"].to_list() == [f"r{row}" for row in run.rows()]
    assert set(frame["split"]) == {"train"}
    own = run.logits.softmax(2)[:, torch.arange(len(run.targets)), run.targets].mean(0)
    np.testing.assert_allclose(frame["confidence"], own, rtol=1e-5)
    assert scores.higher == {"confidence": "easier", "margin": "easier"}
    assert scores.cost["seconds"] > 0
    assert scores.cost["trainings"] == 0


def recorded() -> list[Method]:
    """Methods that read only what was recorded while training."""
    return [one for one in registered("score") if all(need.kind in (None, "dynamics") for need in needs_of([one]))]


def test_auto_asks_all_that_serve_and_read_the_record_alone() -> None:
    free = {one.name for one in recorded()}
    trained = {one.name for one in registered("score") if one.trainings}
    assert trained == {"banzhaf", "data-oob", "memorisation", "shapley"}
    assert free >= {"aum", "el2n", "forgetting", "loss"}
    assert not free & {*trained, "knn-shapley", "knn-loo"}
    assert set(score(MemoryRun()).methods) == free
    assert set(score(MemoryRun(Regression())).methods) == {"loss", "margin"}


def test_blocks_give_what_one_block_gives() -> None:
    chosen = recorded()
    whole = evaluate_all(chosen, MemoryRun(), block=EXAMPLES)
    parts = evaluate_all(chosen, MemoryRun(), block=100)
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value)


def test_shared_evidence_is_read_once() -> None:
    run = MemoryRun()
    evaluate_all(
        [lookup("score", "confidence"), lookup("score", "variability"), lookup("score", "loss")], run, block=500
    )
    needs = [need for group, _ in run.gathered for need in group]
    blocks = -(-len(run.rows()) // 500)
    assert needs == [Dynamics("loss")] * blocks


def test_a_summary_reaches_a_method_that_sees_all_examples() -> None:
    """A rowwise derived value is computed on blocks, once, and given whole to both methods that need it."""
    calls = []

    def top(probabilities: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        calls.append(len(target))
        return probabilities.mean(0).amax(1)

    need = Derived("top", function=top, needs=(Dynamics("probabilities"), Target()))
    mean = Method("clean", "mean", lambda top: top.mean(), "-", (need,), "-", rowwise=False)
    count = Method("clean", "count", lambda top: len(top), "-", (need,), "-", rowwise=False)
    run = MemoryRun()
    got = evaluate_all([mean, count], run, block=1000)
    expected = run.logits.softmax(2).mean(0).amax(1)
    torch.testing.assert_close(got["mean"], expected.mean())
    assert got["count"] == len(run.rows())
    assert calls == [1000, len(run.rows()) - 1000]


def test_errors_say_what_to_do() -> None:
    with pytest.raises(MethodError, match="Did you mean 'el2n'"):
        score(MemoryRun(), "el2m")
    with pytest.raises(MethodError, match="is for classification; this run is regression"):
        evaluate(lookup("score", "entropy"), MemoryRun(Regression()))


def test_the_table_names_every_method() -> None:
    for one in registered():
        text = table(one.verb)
        line = next(line for line in text.splitlines() if line.startswith(f"| `{one.name}` |"))
        assert one.source in line
        assert one.higher in line
        assert line.count(" | ") == 6


def test_every_method_says_what_it_is() -> None:
    for one in registered():
        assert one.summary.endswith((".", ";")) or len(one.summary) > 20
        assert one.source
        assert one.higher


def test_answers_come_back_as_saved(tmp_path: Path) -> None:
    scores = score(MemoryRun(), ["loss"])
    scores.save(tmp_path / "scores")
    again = scores.save(tmp_path / "scores")  # replaces what is there
    back = load_answer(again)
    assert isinstance(back, Scores)
    assert back.frame().equals(scores.frame())
    assert (back.methods, back.higher, back.run, back.cost) == (scores.methods, scores.higher, scores.run, scores.cost)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scores"]  # nothing temporary is left
    with pytest.raises(RunError, match="holds scores, not findings"):
        Findings.load(again)
    with pytest.raises(RunError, match="No readable answer"):
        Answer.load(tmp_path / "none")


def test_plots() -> None:
    data_map = score(MemoryRun(), ["confidence", "variability"]).plot()
    assert data_map.layout.xaxis.title.text.startswith("variability")
    assert len(data_map.data[0].x) == len(MemoryRun().rows())
    assert len(score(MemoryRun(), ["loss", "aum"]).plot().data) == 2
