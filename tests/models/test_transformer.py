"""The transformer reads words and nothing else, keeps examples apart, and learns what no bag of words can."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from torch.func import functional_call, jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

import imprint
from imprint import models
from imprint.errors import LearnerError
from imprint.fleets.stacking import Stack
from imprint.models.transformer import LAYERS, WIDTH, Transformer

from . import fakes

CODES, LENGTH, OUTPUTS = 40, 9, 3


@pytest.fixture(scope="module")
def rows() -> torch.Tensor:
    """Five rows of 9, 5, 1, 0 (padding alone) and 7 words."""
    random = torch.Generator().manual_seed(0)
    codes = torch.randint(1, CODES, (5, LENGTH), generator=random)
    return codes * (torch.arange(LENGTH) < torch.tensor([9, 5, 1, 0, 7])[:, None])


def made(seed: int = 0) -> Transformer:
    built = models.module_for("transformer", (LENGTH,), OUTPUTS, seed, codes=CODES)
    assert isinstance(built, Transformer)
    return built.eval()


def test_it_is_built_from_its_seed_and_has_the_layers_that_it_says() -> None:
    first, again, other = made(3).state_dict(), made(3).state_dict(), made(4).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["tokens.weight"], other["tokens.weight"])
    block = 4 * WIDTH + 12 * WIDTH**2 + 9 * WIDTH
    tables, head = (CODES + LENGTH) * WIDTH, OUTPUTS * (WIDTH + 1)
    assert sum(one.numel() for one in made().parameters()) == LAYERS * block + tables + 2 * WIDTH + head


def test_padding_counts_nothing(rows: torch.Tensor) -> None:
    module = made()
    long = torch.nn.functional.pad(rows, (0, 4))
    longer = Transformer(CODES, LENGTH + 4, OUTPUTS).eval()
    weights = module.state_dict()
    weights["positions.weight"] = torch.cat([weights["positions.weight"], torch.full((4, WIDTH), 9.0)])
    longer.load_state_dict(weights)
    torch.testing.assert_close(longer(long), module(rows), rtol=1e-4, atol=1e-5)
    # What stands in the place of padding changes nothing either, and a row of padding alone gives numbers.
    assert module(rows).isfinite().all()
    assert torch.equal(module.features(rows)[3], torch.zeros(WIDTH))


def test_an_example_does_not_depend_on_its_batch(rows: torch.Tensor) -> None:
    module = made()
    alone = torch.cat([module(row[None]) for row in rows])
    torch.testing.assert_close(module(rows), alone, rtol=1e-4, atol=1e-5)


def test_the_order_of_words_matters() -> None:
    module = made()
    there, back = torch.tensor([[5, 6, 7, 0, 0, 0, 0, 0, 0]]), torch.tensor([[7, 6, 5, 0, 0, 0, 0, 0, 0]])
    assert not torch.allclose(module(there), module(back), atol=1e-5)


def test_features_are_what_the_head_reads(rows: torch.Tensor) -> None:
    module = made()
    found = models.features(module, rows)
    assert found.shape == (5, WIDTH)
    torch.testing.assert_close(module.head(found), module(rows))


def test_it_stacks_and_vectorises_and_differentiates_forwards(rows: torch.Tensor) -> None:
    assert Stack(made(9), 2).problem([made(0), made(1)], rows[:2]) is None
    modules = [made(seed) for seed in range(3)]
    stack = Stack(made(9), 3)
    for member, module in enumerate(modules):
        stack.put(member, module)
    own = torch.stack([rows.roll(member, 0) for member in range(3)])
    said = stack(own)
    said.square().sum().backward()
    for member, module in enumerate(modules):
        expected = module(own[member])
        torch.testing.assert_close(said[member], expected, rtol=1e-4, atol=1e-5)
        expected.square().sum().backward()
        for name, parameter in module.named_parameters():
            mine = stack.parameters[name].grad
            assert mine is not None
            mine = mine[member].T if stack._is_turned(name) else mine[member]
            torch.testing.assert_close(mine, parameter.grad, rtol=1e-3, atol=1e-5)
    module = modules[0]
    parameters = {name: one.detach() for name, one in module.named_parameters()}
    random = torch.Generator().manual_seed(1)
    along = {name: torch.randn(one.shape, generator=random) for name, one in parameters.items()}
    with sdpa_kernel(SDPBackend.MATH):
        each = vmap(lambda row: functional_call(module, parameters, (row[None],))[0])(rows)
        _, moved = jvp(lambda weights: functional_call(module, weights, (rows,)), (parameters,), (along,))
    torch.testing.assert_close(each, module(rows), rtol=1e-4, atol=1e-5)
    module.zero_grad()
    module(rows).sum().backward()
    backward = sum(float((one.grad * along[name]).sum()) for name, one in module.named_parameters())  # type: ignore[operator]
    assert float(moved.sum()) == pytest.approx(backward, rel=1e-3)


@pytest.mark.parametrize("name", ["transformer", "tokens", "tokens/transformer"])
def test_each_of_its_names_means_the_encoder_and_the_module(name: str) -> None:
    corpus = fakes.texts()
    assert models.resolve(name, corpus) == "tokens/transformer"
    assert models.encoder_for(corpus, name).name == "tokens"


@pytest.mark.parametrize("name", ["tokens/mlp", "wordllama/transformer", "tokens/ridge"])
def test_codes_of_words_and_transformer_go_with_nothing_else(name: str) -> None:
    with pytest.raises(LearnerError, match="only the module 'transformer' reads"):
        models.resolve(name, fakes.texts())


def test_other_inputs_are_refused() -> None:
    with pytest.raises(LearnerError, match="reads text inputs; this corpus is of the modality 'table'"):
        models.resolve("transformer", fakes.table())
    with pytest.raises(LearnerError, match="of the modality 'image'"):
        models.encoder_for(fakes.images(), "transformer")
    with pytest.raises(LearnerError, match="reads token codes"):
        models.module_for("transformer", (8,), 2, 0)


def test_it_learns_from_the_order_of_words(tmp_path: Path) -> None:
    """ "a before b" or "b before a" among other words: by its words alone a text of either class is the same."""
    random = np.random.default_rng(0)

    def text(label: str) -> str:
        words = list(random.choice(["so", "then", "and", "well"], 4))
        first, second = sorted(random.choice(5, 2, replace=False))
        words.insert(first, label[0])
        words.insert(second, label[1])
        return " ".join(words)

    labels = [("ab", "ba")[row % 2] for row in range(500)]
    frame = pl.DataFrame({
        "text": [text(label) for label in labels], "label": labels,
        "split": ["test" if row >= 400 else "train" for row in range(500)],
    })  # fmt: skip
    corpus = imprint.open(frame, target="label", split="split", store=tmp_path / "store")
    run = imprint.fit(imprint.Learner("transformer", epochs=12), corpus, tmp_path / "run", progress=False)
    assert run.metrics("test")["accuracy"] > 0.95
    assert run.gather([imprint.recording.needs.Features()])["features"].shape == (400, WIDTH)
