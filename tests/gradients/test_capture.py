"""Capture: what hooks see in one backward pass is what one backward pass per example gives."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from imprint.errors import EvidenceError
from imprint.gradients import Capture, LayerGradient, capture, full, products, squared_norms
from imprint.gradients.capture import log_odds, surprise
from imprint.tasks import Batch, Classification, Multilabel, Regression

from .networks import EXAMPLES, MADE, Attention, by_parameter, case, naive

GENERAL = {
    "sequence first": {"", "layer.self_attn", "layer.self_attn.out_proj"},
    "recurrent": {"cell"},
    "repeated": {"borrowed"},
    "no norm": {"inner"},
}


def captured(name: str) -> list[LayerGradient]:
    one = case(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return capture(one.module, one.task, one.inputs, one.target)


@pytest.mark.parametrize("name", [name for name in MADE if name not in ("attention", "shared heads")])
def test_every_parameter_has_the_gradient_of_one_backward_pass_per_example(name: str) -> None:
    one = case(name)
    torch.testing.assert_close(by_parameter(one, captured(name)), naive(one), rtol=1e-9, atol=1e-12)


def test_weights_that_two_layers_share_have_the_sum_of_both() -> None:
    one = case("attention")
    expected = naive(one)[:, : 20 * 8].view(EXAMPLES, 20, 8)
    layers = {layer.name: layer for layer in captured("attention")}
    assert set(layers) == {"tokens", "positions", "norm", "mix", "out", "head.bias"}
    torch.testing.assert_close(full(layers["tokens"]), expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(full(layers["head.bias"]), naive(one)[:, -20:], rtol=1e-9, atol=1e-12)
    one = case("shared heads")
    found = {layer.name: full(layer) for layer in captured("shared heads")}
    assert set(found) == {"first", "first.bias", "second.bias", "out"}
    rows = naive(one)
    torch.testing.assert_close(found["first"].mT.flatten(1), rows[:, :64], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found["first.bias"], rows[:, 64:72], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found["second.bias"], rows[:, 72:80], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", MADE)
def test_the_general_path_takes_what_no_rule_reads_and_nothing_else(name: str) -> None:
    general = {layer.name for layer in captured(name) if layer.kind == "other"}
    assert general - {"0"} == GENERAL.get(name, set())  # "0" is the grouped convolution, whose gradient is written out


def test_it_says_which_layers_take_the_general_path() -> None:
    one = case("recurrent")
    with pytest.warns(UserWarning, match="gradients of cell"):
        Capture(one.module, one.task)(one.inputs, one.target)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one = case("resnet")
        capture(one.module, one.task, one.inputs, one.target)


@pytest.mark.parametrize("name", ["attention", "sequence first", "position first", "cnn"])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_a_batch_of_any_size_after_a_batch_of_another(name: str, count: int) -> None:
    one = case(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        taken = Capture(one.module, one.task)
        all_of_them = taken(one.inputs, one.target)
        some = taken(one.inputs[:count], one.target[:count])
    for layer, part in zip(all_of_them, some, strict=True):
        torch.testing.assert_close(part.outputs, layer.outputs[:count])
        torch.testing.assert_close(part.inputs, layer.inputs[:count])


def test_the_first_batch_may_be_a_single_example() -> None:
    for name in ("attention", "sequence first", "position first"):
        one = case(name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            taken = Capture(one.module, one.task)
            taken(one.inputs[:1], one.target[:1])
            layers = taken(one.inputs, one.target)
        total = sum(layer.outputs.square().sum() for layer in layers)
        assert total > 0
        if name != "attention":
            torch.testing.assert_close(by_parameter(one, layers), naive(one), rtol=1e-9, atol=1e-12)


def test_the_margin_and_functions_of_ones_own_are_differentiated() -> None:
    one = case("mlp")

    def odds(outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        chance = outputs.softmax(1).gather(1, target[:, None])[:, 0]
        return torch.log(chance / (1 - chance))

    for of in ("margin", odds):
        layers = capture(one.module, one.task, one.inputs, one.target, of=of)
        torch.testing.assert_close(by_parameter(one, layers), naive(one, odds), rtol=1e-8, atol=1e-10)


def test_log_odds_and_surprise_are_functions_of_the_loss() -> None:
    """d loss / d margin = -surprise, for every task: what TRAK weighs examples with."""
    random = torch.Generator().manual_seed(0)
    cases = [
        (Classification(("a", "b", "c")), torch.randn(6, 3, generator=random), torch.tensor([0, 1, 2, 2, 1, 0])),
        (Multilabel(("a", "b")), torch.randn(6, 2, generator=random), torch.tensor([[0.0, 1.0]] * 6)),
        (Regression(), torch.randn(6, 1, generator=random), torch.randn(6, generator=random)),
    ]
    for task, outputs, target in cases:
        outputs = outputs.double().requires_grad_()
        batch = Batch(outputs, target.double() if target.is_floating_point() else target)
        loss, margin = task.loss(outputs, batch), log_odds(task, outputs, batch)
        by_loss = torch.autograd.grad(loss.sum(), outputs, retain_graph=True)[0]
        by_margin = torch.autograd.grad(margin.sum(), outputs)[0]
        torch.testing.assert_close(by_loss, -surprise(task, loss.detach())[:, None] * by_margin)


def test_layers_are_chosen_by_their_names() -> None:
    one = case("resnet")
    names = [layer.name for layer in capture(one.module, one.task, one.inputs, one.target, layers="5.*")]
    assert names == ["5.body.0", "5.body.1", "5.body.3", "5.body.4", "5.shortcut"]
    with pytest.raises(EvidenceError, match="No layer is called nothing"):
        capture(one.module, one.task, one.inputs, one.target, layers="nothing")


def test_batch_statistics_are_refused() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    task, inputs, target = Classification((0, 1, 2)), torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1])
    with pytest.raises(EvidenceError, match=r"batch normalisation '1'.*\n.*eval"):
        capture(module.train(), task, inputs, target)
    assert len(capture(module.eval(), task, inputs, target)) == 3
    without = nn.Sequential(nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 3)).eval()
    with pytest.raises(EvidenceError, match="track_running_stats"):
        capture(without, task, inputs, target)


def test_examples_that_mix_and_losses_that_are_no_list_are_refused() -> None:
    task, inputs, target = Classification((0, 1, 2)), torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1])

    class Centred(nn.Linear):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return super().forward(inputs - inputs.mean(0))

    class Noisy(nn.Linear):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return super().forward(inputs + torch.randn_like(inputs))

    for module in (Centred(4, 3), Noisy(4, 3)):
        with pytest.raises(EvidenceError, match="another loss when the other examples"):
            capture(module, task, inputs, target)
    with pytest.raises(EvidenceError, match="has the shape"):
        capture(nn.Linear(4, 3), task, inputs, target, of=lambda outputs, _: outputs)


def test_it_leaves_the_model_as_it_was() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 3)).train()
    module[0].eval()
    task, inputs, target = Classification((0, 1, 2)), torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1])
    first, second = (capture(module, task, inputs, target) for _ in range(2))
    for one, other in zip(first, second, strict=True):  # dropout is off
        assert torch.equal(one.outputs, other.outputs)
    assert [part.training for part in module] == [False, True, True]
    assert all(parameter.grad is None for parameter in module.parameters())
    assert not any(part._forward_hooks for part in module.modules())


def test_what_cannot_be_differentiated_says_so() -> None:
    task, inputs, target = Classification((0, 1, 2)), torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1])
    module = nn.Linear(4, 3).requires_grad_(False)
    with pytest.raises(EvidenceError, match="No parameter of Linear requires gradients"):
        capture(module, task, inputs, target)
    with pytest.raises(EvidenceError, match=r"gradient of 'los'.*\n.*'loss'"):
        capture(nn.Linear(4, 3), task, inputs, target, of="los")


def test_bfloat16_models_give_float32_gradients() -> None:
    module, task = nn.Linear(8, 3), Classification((0, 1, 2))
    inputs, target = torch.randn(5, 8), torch.tensor([0, 1, 2, 0, 1])
    exact = capture(module, task, inputs, target)[0]
    rough = capture(module.bfloat16(), task, inputs.bfloat16(), target)[0]
    assert rough.outputs.dtype == rough.inputs.dtype == torch.float32
    # bfloat16 has 8 bits: relative steps of 2^-8, some of which add up in the softmax.
    torch.testing.assert_close(rough.outputs, exact.outputs, rtol=0.05, atol=0.02)


def test_a_hugging_face_model_with_tied_embeddings() -> None:
    transformers = pytest.importorskip("transformers")
    settings = transformers.GPT2Config(
        vocab_size=50, n_positions=12, n_embd=16, n_layer=2, n_head=2, resid_pdrop=0.1, attn_implementation="eager"
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.GPT2LMHeadModel(settings).double()
        tokens = torch.randint(0, 50, (4, 10))

    class Said(nn.Module):
        """Logits alone: a task takes tensors."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return self.model(inputs).logits

    def loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logits[:, :-1].mT, target[:, 1:], reduction="none").sum(1)

    one = case("linear")
    one.module, one.inputs, one.target = Said(), tokens, tokens
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layers = capture(one.module, one.task, tokens, tokens, of=loss)
    expected = naive(one, loss)
    assert sum(layer.parameters for layer in layers) == expected.shape[1]
    assert {layer.kind for layer in layers} == {"embedding", "linear", "affine"}
    torch.testing.assert_close(products(layers, layers), expected @ expected.T, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(squared_norms(layers), expected.square().sum(1), rtol=1e-8, atol=1e-9)


def test_a_llama_takes_no_general_path() -> None:
    """Its norms are classes of its own."""
    transformers = pytest.importorskip("transformers")
    settings = transformers.LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        attn_implementation="sdpa",
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.LlamaForCausalLM(settings).double()
        tokens = torch.randint(0, 40, (4, 9))
    one = case("linear")
    one.inputs = one.target = tokens
    one.module = model

    def loss(outputs: object, target: torch.Tensor) -> torch.Tensor:
        logits = outputs.logits  # type: ignore[attr-defined]
        return F.cross_entropy(logits[:, :-1].mT, target[:, 1:], reduction="none").sum(1)

    layers = capture(model, one.task, tokens, tokens, of=loss)
    expected = naive(one, loss)
    assert not any(layer.kind == "other" for layer in layers)
    assert sum(layer.parameters for layer in layers) == expected.shape[1]
    # Llama computes its norms in float32.
    torch.testing.assert_close(products(layers, layers), expected @ expected.T, rtol=1e-4, atol=1e-4)


def test_positions_that_serve_all_examples_are_told_apart() -> None:
    """A position embedding is looked up once for the whole batch, with or without an axis for it."""
    one = case("attention")
    assert next(layer for layer in captured("attention") if layer.name == "positions").outputs.shape == (EXAMPLES, 6, 8)

    class Flat(Attention):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return self.head(self.tokens(inputs) + self.positions(torch.arange(inputs.shape[1]))).mean(1)

    torch.manual_seed(0)
    one.module = Flat().double()
    layers = capture(one.module, one.task, one.inputs, one.target)
    assert not any(layer.kind == "other" for layer in layers)
    rows = naive(one)
    torch.testing.assert_close(products(layers, layers), rows @ rows.T, rtol=1e-9, atol=1e-12)
