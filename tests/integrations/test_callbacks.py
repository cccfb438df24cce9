"""The callbacks record what a plain loop would. Skipped where the frameworks are not installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

import imprint
from imprint.corpus import Corpus
from imprint.errors import EvidenceError, LearnerError
from imprint.recording.needs import Dynamics


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    random = np.random.default_rng(0)
    label = random.integers(0, 2, 64)
    values = random.normal(size=(64, 3)) + 2 * label[:, None]
    frame = pl.DataFrame({"a": values[:, 0], "b": values[:, 1], "c": values[:, 2], "y": label})
    return imprint.open(frame, target="y", store=tmp_path / "store")


def inputs_of(corpus: Corpus, rows: np.ndarray[Any, Any]) -> torch.Tensor:
    return torch.from_numpy(corpus.read(rows).to_numpy().copy()).float()


def test_a_hugging_face_trainer(corpus: Corpus, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    from imprint.integrations.transformers import RecordTrainer

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(3, 2)
            self.said: list[tuple[torch.Tensor, torch.Tensor]] = []

        def forward(self, features: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
            logits = self.layer(features)
            if self.training:
                self.said.append((features.detach(), logits.detach()))
            loss = torch.nn.functional.cross_entropy(logits, labels) if labels is not None else logits.sum()
            return {"loss": loss, "logits": logits}

    rows = corpus.rows("train")
    inputs = inputs_of(corpus, rows)
    examples = [
        {"features": inputs[place], "labels": int(corpus.target[int(row)]), "imprint_row": int(row)}
        for place, row in enumerate(rows)
    ]

    def trainer(keep: bool, path: str) -> tuple[Any, Any, Net]:
        net, callback = Net(), RecordTrainer(tmp_path / path, corpus)
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path / "out"), num_train_epochs=3, per_device_train_batch_size=16, remove_unused_columns=not keep,
            report_to=[], save_strategy="no", disable_tqdm=True, use_cpu=True, logging_strategy="no",
        )  # fmt: skip
        return transformers.Trainer(net, arguments, train_dataset=examples, callbacks=[callback]), callback, net

    made, callback, net = trainer(True, "run")
    made.train()
    run = callback.run
    assert run.status == "complete"
    logits = run.gather([Dynamics("logits")])["logits"]
    assert logits.shape == (3, len(rows), 2)
    # The module saw features and never the column; matched by its features, each logit is where it belongs.
    last = {
        tuple(features.tolist()): said
        for batch, values in net.said[-len(net.said) // 3 :]
        for features, said in zip(batch, values, strict=True)
    }
    expected = torch.stack([last[tuple(one.tolist())] for one in inputs])
    assert torch.equal(logits[-1], expected.half().float())
    with pytest.raises(LearnerError, match="remove_unused_columns=False"):
        trainer(False, "other")[0].train()


def test_a_lightning_trainer(corpus: Corpus, tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning.pytorch")
    from imprint.integrations.lightning import Record

    class Net(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self, says: bool = True) -> None:
            super().__init__()
            self.layer, self.says = torch.nn.Linear(3, 2), says
            self.said: dict[int, torch.Tensor] = {}

        def training_step(self, batch: Any, _: int) -> Any:
            rows, features, target = batch
            logits = self.layer(features)
            loss = torch.nn.functional.cross_entropy(logits, target)
            self.said |= dict(zip(rows.tolist(), logits.detach(), strict=True))
            return {"loss": loss, "logits": logits.detach()} if self.says else loss

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), 0.05)

    rows = corpus.rows("train")
    dataset = torch.utils.data.TensorDataset(
        torch.from_numpy(rows.copy()),
        inputs_of(corpus, rows),
        torch.from_numpy(corpus.target.gather(rows).to_numpy().copy()),
    )
    loader = torch.utils.data.DataLoader(dataset, 16, shuffle=True)

    def fit(net: Net, path: str) -> Any:
        record = Record(tmp_path / path, corpus, ids=lambda batch: batch[0])
        trainer = lightning.Trainer(
            max_epochs=3, callbacks=[record], logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, accelerator="cpu", default_root_dir=str(tmp_path),
        )  # fmt: skip
        trainer.fit(net, loader)
        return record.run

    net = Net()
    run = fit(net, "run")
    assert run.status == "complete"
    logits = run.gather([Dynamics("logits")])["logits"]
    assert logits.shape == (3, len(rows), 2)
    assert torch.equal(logits[-1], torch.stack([net.said[int(row)] for row in rows]).half().float())
    with pytest.raises(EvidenceError, match='"logits": logits'):
        fit(Net(says=False), "silent")
    assert imprint.load(tmp_path / "silent", corpus).status == "interrupted"
