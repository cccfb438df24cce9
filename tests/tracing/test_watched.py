"""Gradients of loops that are not ours: the user's module, the user's inputs, adapters, layers without a rule."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import imprint
from imprint.corpus import Corpus
from imprint.errors import EvidenceError, LearnerError, MethodError, RunError
from imprint.models import encoder_for
from imprint.recording import Run

EXAMPLES, CLASSES = 40, ("a", "b", "c")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    random = np.random.default_rng(0)
    label = random.integers(0, 3, EXAMPLES)
    values = random.normal(size=(EXAMPLES, 6)) + np.eye(6)[2 * label]
    columns = {f"x{place}": values[:, place].astype(np.float32) for place in range(6)}
    split = ["test" if number % 4 == 0 else "train" for number in range(EXAMPLES)]
    frame = pl.DataFrame({**columns, "y": [CLASSES[one] for one in label], "split": split})
    return imprint.open(frame, target="y", split="split", store=tmp_path_factory.mktemp("watched") / "store")


@pytest.fixture(scope="module")
def data(corpus: Corpus) -> tuple[Tensor, Tensor]:
    inputs = torch.from_numpy(corpus.read(corpus.rows()).to_numpy().copy()).float()
    return inputs, torch.tensor([CLASSES.index(value) for value in corpus.target])


class Lora(nn.Module):
    """A frozen linear layer with a trained adapter of rank 2: `W x + B A x`, written with layers or with bare parameters."""

    def __init__(self, base: nn.Linear, bare: bool) -> None:
        super().__init__()
        self.base, self.bare = base.requires_grad_(False), bare
        if bare:
            self.a, self.b = (
                nn.Parameter(torch.randn(2, base.in_features)),
                nn.Parameter(torch.randn(base.out_features, 2)),
            )
        else:
            self.down = nn.Linear(base.in_features, 2, bias=False)
            self.up = nn.Linear(2, base.out_features, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        adapted = inputs @ self.a.T @ self.b.T if self.bare else self.up(self.down(inputs))
        return self.base(inputs) + adapted


class Tied(nn.Module):
    """One weight in two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.out = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.second.weight = self.first.weight

    def forward(self, inputs: Tensor) -> Tensor:
        return self.out(torch.tanh(self.second(torch.tanh(self.first(inputs)))))


class Gate(nn.Module):
    """A layer that no rule reads."""

    def __init__(self) -> None:
        super().__init__()
        self.strength, self.out = nn.Parameter(torch.ones(6)), nn.Linear(6, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.out(torch.sigmoid(inputs * self.strength))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def watched(
    corpus: Corpus, data: tuple[Tensor, Tensor], path: Path, module: nn.Module, accumulate: int = 1, **settings: object
) -> Run:
    """Two epochs of plain descent over the training rows, in batches of 6; a step every few batches."""
    inputs, target = data
    places = torch.tensor([settings.get("classes", CLASSES).index(name) for name in CLASSES])  # type: ignore[attr-defined]
    optimizer = torch.optim.SGD([one for one in module.parameters() if one.requires_grad], 0.1)
    with imprint.watch(path, corpus, module, **settings) as recorder:  # type: ignore[arg-type]
        for _ in range(2):
            for number, rows in enumerate(torch.from_numpy(corpus.rows("train").copy()).split(6), 1):
                logits = module(inputs[rows])
                recorder.batch(rows, logits)
                (cross_entropy(logits, places[target[rows]]) / accumulate).backward()
                if number % accumulate == 0:
                    optimizer.step()
                    optimizer.zero_grad()
            recorder.epoch(learning_rate=0.1)
    return recorder.run


def naive(module: nn.Module, inputs: Tensor, target: Tensor) -> Tensor:
    """The gradient of each example's loss with respect to what trains: `[example, parameter]`."""
    parameters = [one for one in module.parameters() if one.requires_grad]
    found = []
    for row, label in zip(inputs, target, strict=True):
        loss = cross_entropy(module(row[None]), label[None])
        found.append(torch.cat([one.flatten() for one in torch.autograd.grad(loss, parameters)]))
    return torch.stack(found)


def products(run: Run, module: nn.Module, data: tuple[Tensor, Tensor]) -> Tensor:
    gradients = naive(module, *data)
    return gradients[run.rows("test")] @ gradients[run.rows()].T


MODULES: dict[str, Callable[[], nn.Module]] = {
    "mlp": mlp,
    "lora": lambda: nn.Sequential(Lora(nn.Linear(6, 8), False), nn.Tanh(), Lora(nn.Linear(8, 3), False)),
    "bare lora": lambda: nn.Sequential(Lora(nn.Linear(6, 8), True), nn.Tanh(), Lora(nn.Linear(8, 3), False)),
    "tied": Tied,
    "gate": Gate,
}


@pytest.mark.filterwarnings("ignore:No rule")
@pytest.mark.parametrize("name", list(MODULES))
def test_gradients_are_those_of_the_users_module(
    corpus: Corpus, data: tuple[Tensor, Tensor], tmp_path: Path, name: str
) -> None:
    """Also of adapters alone, of tied weights, and of a loop that accumulates gradients: recording never looks at `.grad`."""
    torch.manual_seed(0)
    module = MODULES[name]()
    run = watched(corpus, data, tmp_path / "run", module, accumulate=5, inputs=data[0])
    expected = products(run, module, data)
    scale = float(expected.abs().max())
    found = imprint.trace(run, "test", "gradient-dot", k=2, progress=False).matrix()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * scale)
    # Fewer parameters than projected numbers: nothing is projected away. float16 has 11 bits.
    projected = imprint.trace(run, "test", "logra", k=2, progress=False)
    assert projected.matrix().isfinite().all()
    curved = imprint.trace(run, "test", "influence-ekfac", k=2, progress=False)
    assert curved.matrix().isfinite().all()


def test_inputs_may_be_a_function_of_rows_or_come_from_an_encoder(
    corpus: Corpus, data: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    module = mlp()
    encoder = encoder_for(corpus, "auto").fit(corpus, corpus.rows("train"))
    encoded = encoder.encode(corpus.read(corpus.rows()))
    asked: list[int] = []

    def read(rows: np.ndarray) -> Tensor:
        asked.append(len(rows))
        return encoded[torch.from_numpy(rows)]

    of_rows = watched(corpus, (encoded, data[1]), tmp_path / "rows", module, inputs=read)
    assert not asked  # nothing is read before it is asked for
    first = imprint.trace(of_rows, "test", "gradient-dot", k=2, progress=False)
    torch.testing.assert_close(first.matrix(), products(of_rows, module, (encoded, data[1])), rtol=1e-5, atol=1e-6)
    assert max(asked) <= EXAMPLES
    by_encoder = watched(corpus, (encoded, data[1]), tmp_path / "encoder", module, encoder=encoder)
    second = imprint.trace(by_encoder, "test", "gradient-dot", k=2, progress=False)
    torch.testing.assert_close(second.matrix(), products(by_encoder, module, (encoded, data[1])), rtol=1e-5, atol=1e-6)
    with pytest.raises(LearnerError, match="both encoder= and inputs="):
        imprint.watch(tmp_path / "both", corpus, module, encoder=encoder, inputs=data[0])
    with pytest.raises(RunError, match="has an encoder"):
        imprint.load(tmp_path / "encoder", corpus, model=module, inputs=data[0])


def test_what_is_missing_is_named_and_can_be_given_later(
    corpus: Corpus, data: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    module = mlp()
    run = watched(corpus, data, tmp_path / "run", module)
    for method in ("gradient-dot", "influence-ekfac", "trak"):
        with pytest.raises(EvidenceError, match=r"imprint\.load\(path, corpus, model=module, inputs=\.\.\.\)"):
            imprint.trace(run, "test", method, progress=False)
    loaded = imprint.load(tmp_path / "run", corpus, model=mlp, inputs=data[0].numpy())
    found = imprint.trace(loaded, "test", "gradient-dot", k=2, progress=False)
    torch.testing.assert_close(found.matrix(), products(run, module, data), rtol=1e-5, atol=1e-6)
    loaded.release()  # a user's inputs cannot be made again
    torch.testing.assert_close(
        imprint.trace(loaded, "test", "gradient-dot", k=2, progress=False).matrix(), found.matrix()
    )
    for wrong, problem in (
        (data[0][:5], r"shape \(5, 6\)"),
        ([1, 2], "is a list"),
        (torch.tensor(1.0), r"shape \(\)"),
    ):
        with pytest.raises(EvidenceError, match=problem):
            imprint.load(tmp_path / "run", corpus, model=mlp, inputs=wrong)
    short = imprint.load(tmp_path / "run", corpus, model=mlp, inputs=lambda rows: data[0][:1])
    with pytest.raises(EvidenceError, match=r"gave shape \(1, 6\) for 4 rows"):
        imprint.trace(short, "test", "gradient-dot", progress=False)


def test_outputs_in_another_order_have_the_gradients_of_the_right_labels(
    corpus: Corpus, data: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    module, order = mlp(), ["c", "a", "b"]
    run = watched(corpus, data, tmp_path / "run", module, inputs=data[0], classes=order)
    own = torch.tensor([order.index(CLASSES[one]) for one in data[1]])
    found = imprint.trace(run, "test", "gradient-dot", k=2, progress=False)
    torch.testing.assert_close(found.matrix(), products(run, module, (data[0], own)), rtol=1e-5, atol=1e-6)
    loaded = imprint.load(tmp_path / "run", corpus, model=mlp, inputs=data[0])
    said = loaded.model().outputs(data[0])
    torch.testing.assert_close(said, module(data[0]).detach()[:, [1, 2, 0]])
    assert loaded.model().features(data[0]).shape == (EXAMPLES, 8)


def test_learning_rates_that_were_told_weigh_the_checkpoints(
    corpus: Corpus, data: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    run = watched(corpus, data, tmp_path / "run", mlp(), inputs=data[0])
    expected = sum(0.1 * products(run, run.model(epoch).module, data) for epoch in (1, 2))
    found = imprint.trace(run, "test", "tracin", k=2, progress=False)
    torch.testing.assert_close(found.matrix(), expected, rtol=1e-5, atol=1e-6)


def test_a_layer_without_a_rule_is_said_once_and_stands_in_every_answer(
    corpus: Corpus, data: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    module = Gate()
    run = watched(corpus, data, tmp_path / "run", module, inputs=data[0])
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        # Queries and examples, several checkpoints, the Fisher's own pass: each looks at the model anew.
        answers = [
            imprint.trace(run, "test", method, k=2, progress=False)
            for method in ("gradient-dot", "tracin", "influence-ekfac", "trak")
        ]
        scores = imprint.score(run, ["gradient-norm"], progress=False)
        loaded = imprint.load(tmp_path / "run", corpus, model=Gate, inputs=data[0])
        answers.append(imprint.trace(loaded, "test", "gradient-dot", k=2, progress=False))
        similar = imprint.trace(loaded, "test", "random", k=2, progress=False)
    told = [str(one.message) for one in said if "No rule" in str(one.message)]
    assert told == ["No rule reads the gradients of Gate: they take a pass of their own through torch.func."]
    assert all(one.notes == (told[0],) for one in (*answers, scores))
    assert similar.notes == ()  # takes no gradients


def test_what_retrains_says_that_it_cannot_and_what_can(
    corpus: Corpus, data: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    run = watched(corpus, data, tmp_path / "run", mlp(), inputs=data[0])
    attribution = imprint.trace(run, "test", "gradient-dot", k=2, progress=False)
    for settings in ({"members": 8}, {"members": 0, "tail_patch": 3, "removal": 3}):
        with pytest.raises(MethodError, match="cannot be trained again"):
            imprint.verify(attribution, run, progress=False, **settings)
    trust = imprint.verify(attribution, run, members=0, tail_patch=3, progress=False)
    assert trust.gain_leads["random"][1] > 0
