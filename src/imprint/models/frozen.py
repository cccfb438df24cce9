"""Frozen backbones: a network that is run once over every example, and on whose outputs a small module is trained."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import polars as pl
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from imprint.errors import LearnerError, RunError
from imprint.models.encoder import Encoder, Normalisation, Source, load_encoder, read, sample_rows, slices, write

TIMM = "timm:"
EFFICIENTNET = "efficientnet-lite0"
# Outputs are scaled by their standard deviation over this many training examples.
MOST_MEASURED = 2_000
IMAGENET_MEAN, IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Frozen:
    """A trained network to be used as an encoder: `Learner(model=Frozen(backbone))`.

    Attributes:
        backbone: Called with a batch of inputs, in evaluation mode and without gradients; what it gives is flattened to
            `[example, feature]`. Leave out its classifier (timm: num_classes=0; torchvision: net.fc = nn.Identity()).
        preprocess: From encoded inputs (uint8 `[example, channel, height, width]` for images) to what the backbone reads;
            None: images as floats in [0, 1], everything else as it is.
        head: The module that is trained on the features: "linear", "mlp" or a factory.
        size: For images, the most pixels along either side when they are decoded; None: 64.
        batch_size: Examples per call of the backbone.
        name: If given, the backbone is known by this name and its weights are not stored with the run.
    """

    backbone: nn.Module
    preprocess: Callable[[Tensor], Tensor] | None = None
    head: Any = "mlp"
    size: int | None = None
    batch_size: int = 64
    name: str | None = None


class FrozenEncoder:
    """What the plain encoder of the corpus gives, run through a frozen backbone, centred and scaled: float32 `[feature]`."""

    frozen_features = True
    normalisation: Normalisation | None = None

    def __init__(self, base: Encoder, frozen: Frozen) -> None:
        # A copy, so that evaluation mode and the run do not touch the user's own object.
        self.base, self.frozen, self.backbone = base, frozen, copy.deepcopy(frozen.backbone).eval()
        self.name = frozen.name or f"frozen {type(frozen.backbone).__name__}"
        self.shape: tuple[int, ...] = ()

    def fit(self, corpus: Source, rows: Int64[np.ndarray, " row"]) -> Self:
        """Fit the plain encoder, then measure the backbone's outputs on a seeded sample of these rows."""
        self.base.fit(corpus, rows)
        sampled = sample_rows(rows, MOST_MEASURED, getattr(self.base, "seed", 0))
        outputs = self._run(corpus.read(sampled, list(corpus.roles.inputs)))
        self.mean = outputs.mean(0)
        spread = float((outputs - self.mean).square().mean().sqrt())
        self.scale = torch.tensor(spread if spread > 0 else 1.0)
        self.shape = (outputs.shape[1],)
        return self

    def encode(self, frame: pl.DataFrame) -> Float[Tensor, "example feature"]:
        if not len(frame):
            return torch.empty(0, *self.shape)
        return (self._run(frame) - self.mean) / self.scale

    def broken(self, frame: pl.DataFrame) -> list[str | None]:
        """As the plain encoder says."""
        return self.base.broken(frame)

    def save(self, folder: Path) -> None:
        folder = Path(folder)
        write(folder, "frozen", {"name": self.frozen.name}, {"mean": self.mean, "scale": self.scale})
        self.base.save(folder / "base")
        if self.frozen.name is None:
            state = {name: tensor.contiguous().clone() for name, tensor in self.backbone.state_dict().items()}
            save_file(state, folder / "backbone.safetensors")

    @classmethod
    def load(cls, folder: Path, model: Any = None) -> Self:
        spec, tensors = read(folder)
        if spec["name"] is not None:
            frozen = named_backbone(spec["name"])
        elif isinstance(model, Frozen):
            frozen = model
        else:
            raise RunError(
                "The run was trained on your own frozen backbone, whose code is not stored.",
                "Give it again: imprint.load(path, model=imprint.models.Frozen(backbone)).",
            )
        encoder = cls(load_encoder(folder / "base"), frozen)
        if spec["name"] is None:
            try:
                encoder.backbone.load_state_dict(load_file(folder / "backbone.safetensors"))
            except RuntimeError as error:
                raise RunError(
                    f"The backbone that was given is not the one of this run: {error}.", "Give the same architecture."
                ) from error
        encoder.mean, encoder.scale = tensors["mean"], tensors["scale"]
        encoder.shape = (len(encoder.mean),)
        return encoder

    @torch.no_grad()
    def _run(self, frame: pl.DataFrame) -> Float[Tensor, "example feature"]:
        outputs = []
        for part in slices(len(frame), self.frozen.batch_size):
            inputs = self.base.encode(frame[part])
            if self.frozen.preprocess is not None:
                inputs = self.frozen.preprocess(inputs)
            elif inputs.dtype == torch.uint8:
                inputs = inputs.float() / 255
            try:
                given = self.backbone(inputs)
            except Exception as error:
                raise LearnerError(
                    f"The frozen backbone cannot read inputs of shape {tuple(inputs.shape)}: {type(error).__name__}: {error}.",
                    "Give a function that adapts them: Frozen(backbone, preprocess=...).",
                ) from error
            if not isinstance(given, Tensor) or len(given) != len(inputs):
                raise LearnerError(
                    f"The frozen backbone gave {type(given).__name__} for {len(inputs)} examples; a tensor with one row each is needed.",
                    "Wrap it in an nn.Module that returns [example, feature].",
                )
            outputs.append(given.flatten(1).float())
        return torch.cat(outputs)


def is_named_backbone(name: str) -> bool:
    """Is this "efficientnet-lite0" or "timm:NAME"?"""
    return name == EFFICIENTNET or name.startswith(TIMM)


def named_backbone(name: str) -> Frozen:
    """The pretrained image network of this name, from the packages installed here."""
    if name == EFFICIENTNET:
        from imprint.models.efficientnet import efficientnet_lite0, preprocess

        return Frozen(efficientnet_lite0(), preprocess, size=224, name=name)
    try:
        import timm
    except Exception as error:  # timm needs torchvision, whose absence or mismatch raises several types
        reason = str(error).strip().split("\n")[0]
        raise LearnerError(
            f"The backbone '{name}' needs the package timm, which cannot be imported ({type(error).__name__}: {reason}).",
            "Install timm with a torchvision that fits your torch; or use model='efficientnet-lite0' or 'resnet'.",
        ) from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            backbone = timm.create_model(name.removeprefix(TIMM), pretrained=True, num_classes=0)
        config = timm.data.resolve_model_data_config(backbone)
    except Exception as error:  # an unknown name, no network, no disk
        reason = str(error).strip().split("\n")[0]
        raise LearnerError(
            f"timm cannot give '{name.removeprefix(TIMM)}': {reason}.",
            "Check the name (timm.list_models(pretrained=True)) and the network.",
        ) from error
    height, width = config["input_size"][1:]
    return Frozen(backbone, resizer((height, width), config["mean"], config["std"]), size=max(height, width), name=name)


def resizer(
    size: tuple[int, int], mean: tuple[float, ...] = IMAGENET_MEAN, deviation: tuple[float, ...] = IMAGENET_DEVIATION
) -> Callable[[Tensor], Tensor]:
    """A preprocess: uint8 images of any size and 1 or 3 channels -> normalised RGB floats of this size."""

    def prepare(images: Tensor) -> Float[Tensor, "example 3 height width"]:
        images = images.expand(-1, 3, -1, -1).float() / 255
        if tuple(images.shape[2:]) != size:
            images = F.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)
        return (images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(deviation).view(3, 1, 1)

    return prepare
