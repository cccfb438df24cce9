"""The Trainer follows a sampler as our loop does. Skipped where transformers is not installed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import imprint
from imprint.errors import LearnerError
from imprint.fitting import (
    Data,
    DynamicDiversity,
    Feed,
    Fixed,
    Learner,
    NaiveSplit,
    Proportional,
    Repeated,
    Sampler,
    SamplerState,
    Shuffled,
    train,
)  # fmt: skip
from imprint.tasks import Classification

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from imprint.integrations.transformers import RecordTrainer, SelectTrainer  # noqa: E402

SIZE, EPOCHS = 40, 4
TARGET = torch.arange(SIZE) % 3
INPUTS = F.one_hot(TARGET, 4).float() + torch.randn(SIZE, 4, generator=torch.Generator().manual_seed(0))
EXAMPLES = [{"features": INPUTS[place], "labels": int(TARGET[place])} for place in range(SIZE)]


class Net(torch.nn.Module):
    """A classifier as the Trainer wants it; it notes what it is trained on."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layer = torch.nn.Linear(4, 3)
        self.seen: list[Tensor] = []

    def forward(self, features: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.layer(features)
        if self.training:
            self.seen.append(features.detach())
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


def trainer(folder: Path, sampler: Sampler, net: torch.nn.Module | None = None, **settings: Any) -> Any:
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), num_train_epochs=EPOCHS, per_device_train_batch_size=8, report_to=[], disable_tqdm=True, use_cpu=True,
        logging_strategy="no", lr_scheduler_type="constant", learning_rate=0.1, max_grad_norm=0.0, optim="sgd", seed=5,
        **{"save_strategy": "no", **settings},
    )  # fmt: skip
    return SelectTrainer(Net() if net is None else net, arguments, train_dataset=EXAMPLES, sampler=sampler)


def order_of(net: Net) -> list[int]:
    """Which examples were trained on, known by their features."""
    places = {tuple(one.tolist()): place for place, one in enumerate(INPUTS)}
    return [places[tuple(one.tolist())] for batch in net.seen for one in batch]


class Log:
    """An observer that keeps the order."""

    def __init__(self) -> None:
        self.order: list[int] = []

    def on_batch(self, step: int, epoch: int, indices: Tensor, outputs: Tensor, loss: Tensor) -> None:
        self.order += indices.tolist()

    def on_epoch(self, state: Any, loss: float) -> None:
        pass


SAMPLERS = [
    Shuffled(), Fixed([30, 4, 17, 8, 1, 25, 12, 39], [1.0, 0.5, 2.0, 1.0, 1.5, 1.0, 0.5, 0.5]), Repeated(0.3), Repeated(0.3, replace=True),
    Proportional("loss"), Proportional("bound", 0.5), NaiveSplit(0.6), DynamicDiversity(0.4, every=2),
]  # fmt: skip


@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
def test_the_order_is_the_same_in_our_loop_a_dataloader_and_the_trainer(tmp_path: Path, sampler: Sampler) -> None:
    """And so are the weights in the end: all three take the same steps of plain gradient descent on the weighted loss."""
    module, log = Net().layer, Log()
    learner = Learner(
        task="classification", epochs=EPOCHS, batch_size=8, optimizer="sgd", learning_rate=0.1, weight_decay=0.0,
        schedule="constant", augment="none", precision="float32", device="cpu", record="none", seed=5, sampler=sampler,
    )  # fmt: skip
    data = Data(INPUTS, TARGET, None, {"train": torch.arange(SIZE)})
    # Batches of the loop are of nearly equal size; the others get the same where eight divides the visits.
    plain = pytest.MonkeyPatch()
    with plain.context() as patch:
        patch.setattr("imprint.fitting.loop.batch_bounds", lambda visits, size: [*range(0, visits, size), visits])
        patch.setattr("imprint.fitting.loop.optimizer_for", lambda parameters, _: torch.optim.SGD(parameters, lr=0.1))
        ours = train(module, Classification((0, 1, 2)), data, learner, observers=[log]).module

    net = Net()
    trainer(tmp_path, sampler, net).train()
    assert order_of(net) == log.order
    torch.testing.assert_close(net.layer.state_dict(), ours.state_dict(), rtol=1e-4, atol=1e-5)

    layer = Net().layer
    # The features that a last linear layer reads are its inputs.
    feed = Feed(sampler, SIZE, epochs=EPOCHS, seed=5, features=lambda: INPUTS)
    dataset = torch.utils.data.TensorDataset(torch.arange(SIZE), INPUTS, TARGET)
    loader, seen = torch.utils.data.DataLoader(dataset, batch_size=8, sampler=feed), []
    for _ in range(EPOCHS):
        for places, inputs, target in loader:
            seen += places.tolist()
            logits = layer(inputs)
            losses = F.cross_entropy(logits, target, reduction="none")
            layer.zero_grad()
            (losses * feed.weights(places)).mean().backward()
            with torch.no_grad():
                for parameter in layer.parameters():
                    parameter -= 0.1 * parameter.grad
            bounds = (logits.softmax(1) - F.one_hot(target, 3)).norm(dim=1)
            feed.tell(places, losses, bounds)
    assert seen == log.order
    torch.testing.assert_close(layer.state_dict(), ours.state_dict(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("sampler", "step"),
    [
        (Proportional("bound", 0.5), 3),  # the end of an epoch
        (Proportional("bound", 0.5), 5),  # within one
        (DynamicDiversity(0.4, every=2), 5),  # within the epoch that chose
    ],
    ids=str,
)
def test_a_trainer_that_goes_on_is_one_that_ran_through(tmp_path: Path, sampler: Sampler, step: int) -> None:
    whole, net = Net(), Net()
    trainer(tmp_path / "whole", sampler, whole).train()
    trainer(tmp_path / "begun", sampler, save_strategy="steps", save_steps=step).train()
    trainer(tmp_path / "begun", sampler, net).train(
        resume_from_checkpoint=str(tmp_path / "begun" / f"checkpoint-{step}")
    )
    # What was trained on before the interruption is skipped.
    assert order_of(net) == order_of(whole)[-len(order_of(net)) :]
    assert 0 < len(order_of(net)) < len(order_of(whole))
    torch.testing.assert_close(net.layer.state_dict(), whole.layer.state_dict(), rtol=0, atol=0)


def test_weights_of_one_leave_the_loss_of_a_language_model_as_it_is(tmp_path: Path) -> None:
    """With gradients accumulated and texts of different length, where a mean of means would differ."""
    config = transformers.GPT2Config(
        vocab_size=20, n_positions=8, n_embd=8, n_layer=1, n_head=2, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, bos_token_id=0,
        eos_token_id=0,
    )  # fmt: skip
    random = torch.Generator().manual_seed(0)
    examples = []
    for length in torch.randint(3, 9, (16,), generator=random).tolist():
        codes = torch.randint(0, 20, (8,), generator=random)
        examples.append({"input_ids": codes, "labels": codes.where(torch.arange(8) < length, -100)})
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), num_train_epochs=2, per_device_train_batch_size=4, gradient_accumulation_steps=2, report_to=[],
        disable_tqdm=True, use_cpu=True, logging_strategy="no", save_strategy="no", learning_rate=0.05, optim="sgd",
    )  # fmt: skip

    def trained(sampler: Sampler) -> dict[str, Tensor]:
        torch.manual_seed(0)
        model = transformers.GPT2LMHeadModel(config)
        SelectTrainer(model, arguments, train_dataset=examples, sampler=sampler).train()
        return model.state_dict()

    @dataclass(frozen=True)
    class Ones:
        """All examples, with weights that say nothing."""

        def epoch(self, state: SamplerState) -> tuple[Tensor, Tensor]:
            return Shuffled().epoch(state)[0], torch.ones(state.size)

    own, ours = trained(Shuffled()), trained(Ones())
    assert any(
        not torch.equal(own[name], value) for name, value in transformers.GPT2LMHeadModel(config).state_dict().items()
    )
    torch.testing.assert_close(own, ours, rtol=1e-4, atol=1e-5)


def test_what_it_cannot_follow_is_refused(tmp_path: Path) -> None:
    arguments = transformers.TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[], max_steps=2)
    stream = iter(EXAMPLES)
    with pytest.raises(LearnerError, match="by its number"):
        SelectTrainer(Net(), arguments, train_dataset=stream, sampler=Shuffled())
    own = SelectTrainer(
        Net(), arguments, train_dataset=EXAMPLES, sampler=Proportional("loss"),
        compute_loss_func=lambda outputs, labels, num_items_in_batch: outputs["loss"],
    )  # fmt: skip
    with pytest.raises(LearnerError, match="losses="):
        own.train()


def test_a_recorded_trainer_says_what_the_sampler_chose(tmp_path: Path) -> None:
    """Recording and following a sampler go together: the run's order is the sampler's, and neither column reaches the model."""
    frame = pl.DataFrame({"id": [f"e{place}" for place in range(SIZE)], "y": TARGET.tolist()}).with_columns(
        pl.Series(f"x{column}", INPUTS[:, column].tolist()) for column in range(4)
    )
    frame = frame.with_columns(split=pl.lit("train"))
    corpus = imprint.open(frame, target="y", id="id", split="split", store=tmp_path / "store")
    recording = RecordTrainer(tmp_path / "run", corpus)
    rows = corpus.rows("train")
    examples = [{**EXAMPLES[place], "imprint_row": int(row)} for place, row in enumerate(rows)]
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), num_train_epochs=2, per_device_train_batch_size=8, report_to=[], disable_tqdm=True, use_cpu=True,
        save_strategy="no", remove_unused_columns=False, seed=5,
    )  # fmt: skip
    sampler = Proportional("bound", 0.5)
    trainer = SelectTrainer(Net(), arguments, train_dataset=examples, sampler=sampler, callbacks=[recording])
    trainer.train()
    order = recording.run.evidence("order")
    first = Feed(sampler, SIZE, epochs=2, seed=5)
    assert order.visits(1)["id"].to_list() == [f"e{place}" for place in first]
    assert [len(order.visits(epoch)) for epoch in (1, 2)] == [20, 20]
