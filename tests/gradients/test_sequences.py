"""Gradients of sequence models of Hugging Face, recorded outside a run: equal to one backward pass per document, or per token."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imprint.errors import EvidenceError
from imprint.gradients import Projection, direction, full, next_token, products, project, squared_norms, token_scores
from imprint.gradients import recording as module
from imprint.gradients.recording import _Rows

transformers = pytest.importorskip("transformers")
from transformers.pytorch_utils import Conv1D  # noqa: E402

DOCUMENTS, POSITIONS, WORDS, WIDTH = 5, 7, 50, 16
LENGTHS = torch.tensor([7, 3, 5, 7, 2])


class Lora(nn.Module):
    """A frozen layer with a trained adapter of rank 2 beside it, as `peft` builds it."""

    def __init__(self, frozen: nn.Module, inputs: int, outputs: int) -> None:
        super().__init__()
        self.frozen = frozen
        self.down, self.up = nn.Linear(inputs, 2, bias=False), nn.Linear(2, outputs, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.frozen(inputs) + 0.5 * self.up(self.down(inputs))


def gpt2(lora: bool = False) -> nn.Module:
    """Two layers, 50 words, a head tied to the embedding, dropout that evaluation must switch off; in float64."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = transformers.GPT2Config(
            vocab_size=WORDS, n_positions=POSITIONS + 2, n_embd=WIDTH, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
        )  # fmt: skip
        model = transformers.GPT2LMHeadModel(config).double()
        for parameter in model.parameters():  # away from shifts of zero and scales of one
            parameter.data.add_(0.1 * torch.randn_like(parameter))
        if lora:
            model.requires_grad_(False)
            for block in model.transformer.h:
                block.attn.c_attn = Lora(block.attn.c_attn, WIDTH, 3 * WIDTH)
            model.double()
    return model.train()


def documents(padded: bool = True) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(1)
    tokens = torch.randint(WORDS, (DOCUMENTS, POSITIONS), generator=random)
    if not padded:
        return {"input_ids": tokens}
    there = torch.arange(POSITIONS) < LENGTHS[:, None]
    return {"input_ids": tokens * there, "attention_mask": there.long()}


def token_losses(model: nn.Module, tokens: Tensor) -> Tensor:
    """Losses of one unpadded document's tokens, after the first, straight from the model."""
    return F.cross_entropy(model(tokens[None]).logits[0, :-1], tokens[1:], reduction="none")


def naive(model: nn.Module, values: Callable[[], Tensor]) -> Tensor:
    """`[value, parameter]`: one backward pass per value."""
    model.eval()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    rows = []
    for number in range(len(values())):
        found = torch.autograd.grad(values()[number], parameters, allow_unused=True, materialize_grads=True)
        rows.append(torch.cat([one.flatten() for one in found]))
    model.train()
    return torch.stack(rows)


def naive_documents(model: nn.Module) -> Tensor:
    """Of the documents of `documents()`, each alone and cut to its length: no padding anywhere."""
    tokens = documents()["input_ids"]
    return torch.cat(
        [
            naive(model, lambda one=one, size=size: token_losses(model, one[:size]).sum()[None])
            for one, size in zip(tokens, LENGTHS, strict=True)
        ]
    )


def written_out(model: nn.Module, layers: list[Any]) -> Tensor:
    """`[example, parameter]` in the order of the model's parameters."""
    found = {}
    for layer in layers:
        own, gradient = model.get_submodule(layer.name), full(layer)
        trained = {name: one for name, one in own.named_parameters(recurse=False) if one.requires_grad}
        if layer.kind == "affine":
            parts = dict(zip(trained, gradient.split([one.numel() for one in trained.values()], 1), strict=True))
        elif layer.kind == "embedding":
            parts = {"weight": gradient.flatten(1)}
        else:
            weight = gradient[:, :-1] if "bias" in trained else gradient
            parts = {"weight": (weight if isinstance(own, Conv1D) else weight.mT).flatten(1)}
            if "bias" in trained:
                parts["bias"] = gradient[:, -1]
        found |= {f"{layer.name}.{name}": part for name, part in parts.items()}
    return torch.cat([found[name] for name, one in model.named_parameters() if one.requires_grad], 1)


def captured(model: nn.Module, batch: dict[str, Tensor], tokens: bool = False) -> list[Any]:
    taken = _Rows(model, next_token, None, tokens)
    taken.batch = batch
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # every layer has a rule: nothing may take the general path
        return taken(*taken.rows(DOCUMENTS, torch.device("cpu")))


def batches(size: int, padded: bool = True) -> list[dict[str, Tensor]]:
    every = documents(padded)
    return [{name: one[begin : begin + size] for name, one in every.items()} for begin in range(0, DOCUMENTS, size)]


@pytest.mark.parametrize("lora", [False, True])
def test_a_padded_batch_has_the_gradients_of_its_documents_alone(lora: bool) -> None:
    """Tied embedding and head, Conv1D, LayerNorm, positions that all examples share, attention with padding, adapters."""
    model = gpt2(lora)
    layers = captured(model, documents())
    expected = naive_documents(model)
    assert (expected.norm(dim=1) > 0.1).all()
    torch.testing.assert_close(written_out(model, layers), expected, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(products(layers, layers), expected @ expected.T, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(squared_norms(layers), expected.square().sum(1), rtol=1e-9, atol=1e-9)
    assert model.training
    if lora:
        assert {layer.name.rsplit(".", 1)[1] for layer in layers} == {"up", "down"}
    else:
        head = next(layer for layer in layers if layer.name == "transformer.wte")
        assert head.tied is not None


def test_another_architecture() -> None:
    """Llama: RMSNorm of Hugging Face's own, rotary positions, heads that share keys, a gated layer, a head that is not tied."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = transformers.LlamaConfig(
            vocab_size=WORDS, hidden_size=WIDTH, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, max_position_embeddings=POSITIONS, pad_token_id=0, bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
        model = transformers.LlamaForCausalLM(config).double()
    layers = captured(model, documents())
    expected = naive_documents(model)
    torch.testing.assert_close(products(layers, layers), expected @ expected.T, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("at_a_time", [None, 1, 2])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_the_projection_is_of_the_true_gradients_however_they_are_batched(size: int, at_a_time: int | None) -> None:
    model = gpt2()
    parameters = sum(one.numel() for one in model.parameters())
    exact = project(
        model, batches(size), size=parameters, at_a_time=at_a_time
    )  # as many numbers as parameters: nothing is lost
    expected = naive_documents(model)
    assert exact.shape == (DOCUMENTS, parameters)
    # float16 has 11 bits: each number is off by at most 2^-12 of the largest.
    error = (exact.read().double().square().sum(1) - expected.square().sum(1)).abs() / expected.square().sum(1)
    assert float(error.max()) < 1e-3
    torch.testing.assert_close(exact.scores(exact).double(), expected @ expected.T, rtol=5e-3, atol=1e-2)
    assert exact.examples.tolist() == list(range(DOCUMENTS))
    tokens = documents()["input_ids"]
    losses = [token_losses(model.eval(), one[:size]).sum() for one, size in zip(tokens, LENGTHS, strict=True)]
    torch.testing.assert_close(exact.losses.double(), torch.stack(losses).detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["factored", "paired"])
def test_projected_rows_are_those_of_the_projection(kind: Any) -> None:
    model = gpt2()
    found = project(model, batches(2), size=300, kind=kind, seed=3).read().double()
    expected = Projection.of(model, 300, 3, kind).project(captured(model, documents()))
    torch.testing.assert_close(found, expected, rtol=0, atol=float(expected.abs().max()) * 2**-11)


def test_tokens_have_gradients_of_their_own_losses_and_sum_to_documents() -> None:
    model = gpt2()
    every = documents()["input_ids"]
    expected = torch.cat(
        [
            naive(model, lambda one=one, size=size: token_losses(model, one[:size]))
            for one, size in zip(every, LENGTHS, strict=True)
        ]
    )
    torch.testing.assert_close(
        written_out(model, captured(model, documents(), tokens=True)), expected, rtol=1e-9, atol=1e-10
    )
    whole = project(model, batches(3), size=400)
    tokens = project(model, batches(3), size=400, tokens=True, at_a_time=4)
    assert tokens.shape[0] == int((LENGTHS - 1).sum()) == len(expected)
    assert tokens.positions.tolist() == [place for size in LENGTHS.tolist() for place in range(1, size)]
    scale = float(whole.scores(whole).abs().max())
    torch.testing.assert_close(tokens.scores(whole), whole.scores(whole), rtol=0, atol=2e-3 * scale)
    torch.testing.assert_close(tokens.scores(tokens), whole.scores(whole), rtol=0, atol=2e-3 * scale)
    apart = tokens.scores(whole, tokens=True)
    assert apart.shape == (DOCUMENTS, len(expected))
    first = apart[:, : LENGTHS[0] - 1].sum(1)
    torch.testing.assert_close(first, whole.scores(whole)[:, 0], rtol=0, atol=2e-3 * scale)


@pytest.mark.parametrize("lora", [False, True])
def test_token_scores_are_exact_and_sum_to_the_products_of_documents(lora: bool) -> None:
    model = gpt2(lora)
    every = documents()["input_ids"]
    query = direction(model, [{name: one[1:3] for name, one in documents().items()}])  # two documents as one query
    whole = naive_documents(model)
    expected = whole @ whole[1:3].sum(0)
    scores = torch.cat(list(token_scores(model, batches(2), query)))
    assert scores.shape == (DOCUMENTS, POSITIONS)
    torch.testing.assert_close(scores.sum(1), expected, rtol=1e-9, atol=1e-9)
    size = int(LENGTHS[2])
    tokens = naive(model, lambda: token_losses(model, every[2, :size])) @ whole[1:3].sum(0)
    torch.testing.assert_close(scores[2, 1:size], tokens, rtol=1e-9, atol=1e-9)
    assert not bool(scores[2, size:].any())
    assert model.training
    with pytest.raises(EvidenceError, match="not of this model"):
        list(token_scores(model, batches(2), {"other": torch.zeros(3)}))


def test_labels_say_what_is_learned() -> None:
    model = gpt2().eval()
    every = documents(padded=False)
    labels = every["input_ids"].clone()
    labels[:, :4] = -100  # a prompt
    values = next_token(model, {**every, "labels": labels})
    assert values.shape == (DOCUMENTS, POSITIONS)
    assert bool((values[:, :4] == 0).all())
    assert bool((values[:, 4:] > 0).all())
    torch.testing.assert_close(values[0, 4:], token_losses(model, every["input_ids"][0])[3:])
    # Hugging Face's own loss is the mean over these.
    said = model(**every, labels=labels).loss
    torch.testing.assert_close((values.sum() / (values > 0).sum()).float(), said)


class Interrupted(Exception):
    pass


def stopping(after: int) -> Iterator[dict[str, Tensor]]:
    for number, batch in enumerate(batches(1)):
        if number == after:
            raise Interrupted
        yield batch


def test_an_interrupted_recording_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_BYTES", 1)
    model, path = gpt2(), tmp_path / "gradients.lance"
    with pytest.raises(Interrupted):
        project(model, stopping(3), size=200, path=path)
    assert not path.exists()
    passes = []
    model.register_forward_hook(lambda *_: passes.append(1))
    found = project(model, batches(1), size=200, path=path)
    # Two batches are left; two passes more find out how the layers are read, one whether shared outputs may be spread.
    assert len(passes) == 2 + 3
    at_once = project(model, batches(1), size=200)
    # Not bitwise: with several threads, sums may be taken in another order, and the last bit of float16 rounded the other way.
    torch.testing.assert_close(found.read(), at_once.read(), rtol=2e-3, atol=float(at_once.read().abs().max()) * 2**-11)
    torch.testing.assert_close(found.losses, at_once.losses)
    assert found.blocks == at_once.blocks
    assert found.examples.tolist() == list(range(DOCUMENTS))
    passes.clear()
    again = project(model, batches(1), size=200, path=path)
    assert not passes
    assert torch.equal(again.read(slice(1, 4)), found.read()[1:4])
    assert found.table.schema.field("gradient").type == pa.list_(pa.float16(), 200)


def test_an_interrupted_recording_of_tokens_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_BYTES", 1)
    model, path = gpt2(), tmp_path / "tokens.lance"
    with pytest.raises(Interrupted):
        project(model, stopping(2), size=200, tokens=True, path=path)
    found = project(model, batches(1), size=200, tokens=True, path=path)
    at_once = project(model, batches(1), size=200, tokens=True)
    torch.testing.assert_close(found.read(), at_once.read(), rtol=2e-3, atol=float(at_once.read().abs().max()) * 2**-11)
    assert torch.equal(found.examples, at_once.examples)
    assert torch.equal(found.positions, at_once.positions)


def test_a_table_of_other_weights_or_other_batches_is_not_continued(tmp_path: Path) -> None:
    model, path = gpt2(), tmp_path / "gradients.lance"
    project(model, batches(2), size=200, path=path)
    with pytest.raises(EvidenceError, match="other batches"):
        project(model, batches(1), size=200, path=path)
    with pytest.raises(EvidenceError, match="more batches"):
        project(model, batches(2)[:1], size=200, path=path)
    with pytest.raises(EvidenceError, match="another projection"):
        project(model, batches(2), size=201, path=path)
    model.transformer.ln_f.bias.data[0] += 1
    with pytest.raises(EvidenceError, match="another model"):
        project(model, batches(2), size=200, path=path)
    with pytest.raises(EvidenceError, match="another model"):
        project(model, batches(2), size=200).scores(project(gpt2(), batches(2), size=200))


def test_other_models_and_losses(tmp_path: Path) -> None:
    """Tuples as batches, a loss of one's own, an image model in one position; and what is refused."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    inputs, target = torch.randn(8, 4, dtype=torch.float64), torch.randint(3, (8,))

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1], reduction="none")

    found = project(model, [(inputs[:5], target[:5]), (inputs[5:], target[5:])], loss, size=1000)
    expected = naive(model, lambda: loss(model, (inputs, target)))
    torch.testing.assert_close(found.scores(found).double(), expected @ expected.T, rtol=5e-3, atol=5e-3)
    some = project(model, [(inputs, target)], loss, layers="2")
    assert set(some.blocks) == {"2"}
    with pytest.raises(EvidenceError, match="none per token"):
        project(model, [(inputs, target)], loss, tokens=True)
    with pytest.raises(EvidenceError, match="input_ids"):
        project(model, [(inputs, target)])
    with pytest.raises(EvidenceError, match="shape"):
        project(model, [(inputs, target)], lambda model, batch: loss(model, batch).mean())
    with pytest.raises(EvidenceError, match="no batch"):
        project(model, [], loss, path=tmp_path / "none.lance")
