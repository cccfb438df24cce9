"""Adam's running means: laid out as the gradients are, on networks of every kind, and scaled as the optimizer scales."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
import torch
from safetensors.torch import load_file

import imprint
from imprint.corpus import Corpus
from imprint.errors import EvidenceError
from imprint.gradients import Capture, full
from imprint.gradients.examples import Examples, examples_of
from imprint.gradients.moments import by_layer, moments_of

from .networks import MADE, Case, case


def examples(one: Case) -> Examples:
    capture = Capture(one.module, one.task)
    capture.plan(one.inputs, one.target)
    places = torch.arange(len(one.inputs))
    return Examples(
        lambda some: (one.inputs[places[some]], one.target[places[some]]), len(places), capture, torch.device("cpu")
    )


@pytest.mark.filterwarnings("ignore:No rule reads")
@pytest.mark.parametrize("name", MADE)
def test_numbers_of_parameters_are_laid_out_as_gradients_are(name: str) -> None:
    """The gradient of the summed loss, by parameter, is the sum of the examples' gradients, by layer."""
    one = case(name)
    about = examples(one)
    parameters = {key: value for key, value in one.module.named_parameters() if value.requires_grad}
    values = about.capture._losses.eval()(one.inputs, one.target)
    found = torch.autograd.grad(values.sum(), list(parameters.values()), allow_unused=True, materialize_grads=True)
    by_name = by_layer(about, dict(zip(parameters, found, strict=True)))
    layers = about.layers()
    assert by_name.keys() == {layer.name for layer in layers}
    for layer in layers:
        assert torch.allclose(by_name[layer.name], full(layer).flatten(1).sum(0), atol=1e-9), layer.name


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    at = torch.Generator().manual_seed(0)
    x = torch.randn(80, 3, generator=at)
    frame = pl.DataFrame(
        {"a": x[:, 0].numpy(), "b": x[:, 1].numpy(), "label": ["yes" if one > 0 else "no" for one in x.sum(1)]}
    )
    frame = frame.with_columns(pl.Series("split", ["train"] * 60 + ["test"] * 20))
    return imprint.open(frame, target="label", split="split", store=tmp_path_factory.mktemp("moments") / "store")


def test_a_run_has_those_of_its_optimizer(corpus: Corpus, tmp_path: Path) -> None:
    run = imprint.fit(imprint.Learner("linear", epochs=2, batch_size=16), corpus, tmp_path / "run", progress=False)
    state = load_file(run.checkpoints.named("last").path("state.safetensors"))
    weight, bias = state["optimizer/0/exp_avg_sq"], state["optimizer/1/exp_avg_sq"]
    moments = moments_of(run)
    (name,) = moments.second
    assert torch.equal(moments.second[name].view(-1, 2), torch.cat([weight.T, bias[None]]))
    assert (moments.beta, moments.epsilon) == (0.999, 1e-8)
    (layer,) = examples_of(run, run.rows("train")).layers(slice(0, 5))
    gradient = full(layer)
    expected = gradient / (0.999 * torch.cat([weight.T, bias[None]]) + 0.001 * gradient**2 + 1e-8).sqrt()
    assert torch.allclose(moments.scaled(layer), expected.flatten(1), rtol=1e-5)


def test_what_keeps_none_says_so(corpus: Corpus, tmp_path: Path) -> None:
    learner = imprint.Learner("linear", epochs=3, batch_size=16, optimizer="sgd")
    run = imprint.fit(learner, corpus, tmp_path / "sgd", progress=False)
    with pytest.raises(EvidenceError, match="keeps no moments of Adam with its checkpoint epoch-0003"):
        imprint.select(run, 10, "less-adam", target="test", progress=False)
    adam = imprint.fit(imprint.Learner("linear", epochs=3, batch_size=16), corpus, tmp_path / "adam", progress=False)
    with pytest.raises(EvidenceError, match="epoch-0001"):
        moments_of(adam, "first")
