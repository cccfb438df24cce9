"""The default modules, and how any module is built from a name, a factory, a class or an instance.

`linear`, `mlp` and `nmtune` for feature vectors, `cnn` and `resnet` for images; `ridge`, `logistic` and `rcal` are `linear`, but solved
and not trained. None has batch statistics (GroupNorm and LayerNorm instead), so an example's output never depends on its neighbours
in the batch, and many modules can be stacked into one.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from imprint.errors import LearnerError, nearest
from imprint.models.encoder import Normalisation
from imprint.models.estimator import Estimator, is_estimator
from imprint.models.nmtune import NMTune
from imprint.models.transformer import Transformer

Shape = tuple[int, ...]
HIDDEN = 256
DROPOUT = 0.1


class Normalise(nn.Module):
    """uint8 or float images -> float images with mean 0 and standard deviation 1 per channel (of the training images).

    Without statistics uint8 is taken to [-1, 1], and floats are left as they are.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, channels: int, normalisation: Normalisation | None = None) -> None:
        super().__init__()
        self.fitted = normalisation is not None
        mean, deviation = normalisation or (torch.full((channels,), 127.5), torch.full((channels,), 127.5))
        self.register_buffer("mean", mean.clone().view(-1, 1, 1))
        self.register_buffer("deviation", deviation.clone().view(-1, 1, 1))

    def forward(self, inputs: Tensor) -> Float[Tensor, "example channel height width"]:
        if not self.fitted and inputs.is_floating_point():
            return inputs
        return (inputs.to(self.mean.dtype) - self.mean) / self.deviation


class Wrapped(nn.Module):
    """A user's image module behind `Normalise`: it is called with normalised float images."""

    def __init__(self, normalise: Normalise, module: nn.Module) -> None:
        super().__init__()
        self.normalise, self.module = normalise, module

    def forward(self, inputs: Tensor) -> Tensor:
        return self.module(self.normalise(inputs))


def linear(shape: Shape, width: int) -> nn.Sequential:
    """One linear layer on the flattened input."""
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), width))


def mlp(shape: Shape, width: int) -> nn.Sequential:
    """Two hidden layers of 256 with GELU and dropout 0.1.

    >>> sum(p.numel() for p in mlp((10,), 2).parameters()) == 11 * 256 + 257 * 256 + 257 * 2
    True
    """
    layers: list[nn.Module] = [nn.Flatten()]
    size = math.prod(shape)
    for _ in range(2):
        layers += [nn.Linear(size, HIDDEN), nn.GELU(), nn.Dropout(DROPOUT)]
        size = HIDDEN
    return nn.Sequential(*layers, nn.Linear(size, width))


def _convolution(channels: int, width: int, stride: int = 1) -> list[nn.Module]:
    return [
        nn.Conv2d(channels, width, 3, stride, 1, bias=False),
        nn.GroupNorm(8, width),
        nn.ReLU(inplace=True),
    ]


class Residual(nn.Module):
    """Two 3x3 convolutions with GroupNorm around a shortcut; a change of size goes through a 1x1 convolution."""

    def __init__(self, channels: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_convolution(channels, width, stride), nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.GroupNorm(8, width)
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or channels != width:
            self.shortcut = nn.Conv2d(channels, width, 1, stride, bias=False)
        # The block starts as its shortcut: deeper nets then train as easily as shallow ones (Goyal et al. 2017).
        nn.init.zeros_(self.body[-1].weight)  # type: ignore[arg-type]

    def forward(self, inputs: Tensor) -> Tensor:
        return F.relu(self.body(inputs) + self.shortcut(inputs))


def _stem(shape: Shape) -> tuple[list[nn.Module], int, int]:
    """Fold 2x2 pixels (or larger squares, for large images) into channels: a quarter of the work at no loss of pixels.

    Returns:
        The layers, the channels that they give, and the shorter side of what they give.
    """
    channels, height, width = shape
    shorter = min(height, width)
    fold = 1 if shorter < 16 else max(2, 2 ** int(math.log2(shorter / 16)))
    layers: list[nn.Module] = []
    if fold > 1:
        pad = ((-width) % fold, (-height) % fold)
        if any(pad):
            layers.append(nn.ZeroPad2d((0, pad[0], 0, pad[1])))
        layers.append(nn.PixelUnshuffle(fold))
    return layers, channels * fold**2, -(-shorter // fold)


def cnn(shape: Shape, width: int) -> nn.Sequential:
    """Three convolutions (32, 64, 128 channels), each followed by 2x2 max-pooling: about 3 million multiplications for 32x32."""
    layers, channels, side = _stem(shape)
    for stage, filters in enumerate((32, 64, 128)):
        layers += _convolution(channels, filters)
        if stage < 2 and side >= 4:
            layers.append(nn.MaxPool2d(2))
            side //= 2
        channels = filters
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, width))


def resnet(shape: Shape, width: int) -> nn.Sequential:
    """A convolution and three residual blocks (32, 64, 128 channels), halving the size between them.

    About three times the work of `cnn` per image, and slower to settle: after 10 epochs on 10,000 CIFAR-10 images it was behind
    (accuracy .547 against .571, one seed), so "auto" means `cnn`.
    """
    layers, channels, side = _stem(shape)
    layers += _convolution(channels, 32)
    channels = 32
    for stage, filters in enumerate((32, 64, 128)):
        halve = stage > 0 and side >= 4
        layers.append(Residual(channels, filters, stride=2 if halve else 1))
        side = side // 2 if halve else side
        channels = filters
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, width))


HEADS: dict[str, Callable[[Shape, int], nn.Module]] = {
    "linear": linear, "mlp": mlp, "cnn": cnn, "resnet": resnet, "ridge": linear, "logistic": linear,
    "rcal": linear, "nmtune": NMTune,
}  # fmt: skip
# Heads that are solved at once and not trained in epochs; see `imprint.fitting.heads`.
SOLVED = ("ridge", "logistic", "rcal")
# The module that reads token codes, and has to know how many there are.
TRANSFORMER = "transformer"


def module_for(
    model: Any, shape: Sequence[int], width: int, seed: int, normalisation: Normalisation | None = None, codes: int = 0
) -> nn.Module:
    """A freshly initialised module: the same weights for the same arguments, and torch's global generator untouched.

    Args:
        model: "auto", "linear", "ridge", "logistic", "rcal", "mlp", "nmtune", "cnn", "resnet", "transformer" (also as the last part of
            "ENCODER/MODULE"); the name of an encoder (its default module); a factory `f(shape, width)` or `f()`; an `nn.Module` class
            with such arguments; or an `nn.Module` instance, which is copied with the weights that it has (the seed then changes
            nothing); or a scikit-learn classifier or regressor, which becomes an `Estimator`.
        shape: Of one encoded example.
        width: How many outputs per example.
        seed: Of the weights.
        normalisation: The encoder's, for image shapes. User modules for images are wrapped so that they, too, get normalised
            floats and not raw bytes.
        codes: How many token codes the encoder has, for "transformer".

    Raises:
        LearnerError: Unknown name, a factory with other arguments, or a module that does not give `[example, width]`.
    """
    from imprint.models.choice import head_of

    shape = tuple(int(size) for size in shape)
    head = head_of(model, shape)
    if is_estimator(head):
        return Estimator(head, width, seed)
    with torch.random.fork_rng(devices=[]):
        # Only the CPU's generator: torch.manual_seed also queues a seeding of every GPU, which costs more than a small module.
        torch.default_generator.manual_seed(seed)
        if head == TRANSFORMER:
            module: nn.Module = _transformer(codes, shape, width)
        else:
            module = HEADS[head](shape, width) if isinstance(head, str) else _custom(head, shape, width)
    if len(shape) == 3:
        normalise = Normalise(shape[0], normalisation)
        named = isinstance(head, str)
        module = nn.Sequential(normalise, *module.children()) if named else Wrapped(normalise, module)
    if not isinstance(head, str):
        _check(module, shape, width, seed)
    return module


def _transformer(codes: int, shape: Shape, width: int) -> Transformer:
    if not codes or len(shape) != 1:
        raise LearnerError(
            f"The model 'transformer' reads token codes; these inputs have the shape {shape}, and no codes.",
            "Use it on texts with the encoder 'tokens'.",
        )
    return Transformer(codes, shape[0], width)


def check_head(name: str) -> None:
    """Raise `LearnerError` unless this is the name of a module."""
    if name not in HEADS:
        raise LearnerError(f"Unknown model '{name}'.", nearest(name, HEADS))


def _custom(model: Any, shape: Shape, width: int) -> nn.Module:
    if isinstance(model, nn.Module):
        return copy.deepcopy(model)
    name = getattr(model, "__name__", type(model).__name__)
    if not callable(model):
        raise LearnerError(
            f"model={model!r} is neither a name, a factory nor an nn.Module.",
            f"Give one of {', '.join(HEADS)}, a function f(shape, width) -> nn.Module, or an nn.Module class.",
        )
    arguments = _arguments(model, shape, width)
    try:
        built = model(*arguments)
    except Exception as error:
        raise LearnerError(
            f"The model factory '{name}' failed with {arguments}: {type(error).__name__}: {error}.",
            "It is called with (shape of one example, number of outputs), or with nothing if it takes no arguments.",
        ) from error
    if not isinstance(built, nn.Module):
        raise LearnerError(f"The model factory '{name}' gave {type(built).__name__}.", "It must return an nn.Module.")
    return built


def _arguments(model: Callable[..., Any], shape: Shape, width: int) -> tuple[Any, ...]:
    """(shape, width) where the factory needs two arguments or names them so, nothing where it needs none."""
    try:
        parameters = inspect.signature(model).parameters.values()
    except (TypeError, ValueError):  # some builtins have no signature
        return (shape, width)
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    needed = [p for p in positional if p.default is p.empty]
    named = [p.name for p in positional[:2]] == ["shape", "width"]
    takes_all = any(p.kind is p.VAR_POSITIONAL for p in parameters) and not needed
    if named or takes_all or len(needed) == 2:
        return (shape, width)
    if needed:
        raise LearnerError(
            f"The model factory '{getattr(model, '__name__', model)}' needs {len(needed)} arguments ({', '.join(p.name for p in needed)}).",
            "Give a function of (shape, width), or of nothing: model=lambda shape, width: Net(...).",
        )
    return ()


@torch.no_grad()
def _check(module: nn.Module, shape: Shape, width: int, seed: int) -> None:
    """Try a user's module on two blank examples: a wrong shape is found before the training, and lazy layers get their weights."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            outputs = module(torch.zeros(2, *shape))
    except Exception as error:
        raise LearnerError(
            f"The model cannot read inputs of shape {shape}: {type(error).__name__}: {error}.",
            "Its forward is called with [example, *shape]; use a factory f(shape, width) to fit it to the data.",
        ) from error
    finally:
        for part, training in modes:
            part.training = training
    got = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
    if got != (2, width):
        raise LearnerError(
            f"The model gives {got} for two examples; this task needs (2, {width}).",
            f"Let its last layer have {width} outputs; a factory f(shape, width) is told how many.",
        )
