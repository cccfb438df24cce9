"""Influence scores by kronfluence, in an environment of its own: arrays in one .npz file, arrays out in another.

    python benchmarks/kronfluence_scores.py IN.npz OUT.npz [--threads 2] [--batch 256]

kronfluence wants a newer torch than the one that is pinned here, and torchvision, which it does not need for this:

    python -m venv /tmp/venv-kron && /tmp/venv-kron/bin/pip install torch --index-url https://download.pytorch.org/whl/cpu
    /tmp/venv-kron/bin/pip install --no-deps kronfluence==1.0.1 einops einconv opt_einsum
    /tmp/venv-kron/bin/pip install accelerate datasets scikit-learn tqdm safetensors

IN holds a network of linear layers with ReLU between them (`weight_0, bias_0, weight_1, ...`), `inputs, target, drawn` of the training
examples, and `queries, query_target`; `drawn` are the labels of the true Fisher, so that both sides see the same ones. OUT holds `scores`
`[query, example]` and the seconds `fit` and `score`. The settings are the authors' own, with their heuristic damping: a tenth of the mean
eigenvalue of each layer.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from kronfluence.analyzer import Analyzer, prepare_model
from kronfluence.arguments import FactorArguments, ScoreArguments
from kronfluence.task import Task
from torch import Tensor, nn
from torch.utils.data import TensorDataset


class CrossEntropy(Task):
    """Cross-entropy; the labels of the Fisher matrix are given, not drawn."""

    def compute_train_loss(self, batch: Any, model: nn.Module, sample: bool = False) -> Tensor:
        inputs, target, drawn = batch
        return F.cross_entropy(model(inputs), drawn if sample else target, reduction="sum")

    def compute_measurement(self, batch: Any, model: nn.Module) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1], reduction="sum")


def network(arrays: Mapping[str, np.ndarray]) -> nn.Sequential:
    """The network that the arrays describe."""
    layers: list[nn.Module] = []
    for number in range(sum(name.startswith("weight_") for name in arrays)):
        weight, bias = (torch.from_numpy(arrays[f"{part}_{number}"]) for part in ("weight", "bias"))
        layers += [nn.ReLU()] if layers else []
        layers.append(nn.Linear(weight.shape[1], weight.shape[0]))
        layers[-1].load_state_dict({"weight": weight, "bias": bias})
    return nn.Sequential(*layers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("given")
    parser.add_argument("found")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--strategy", default="ekfac", choices=["ekfac", "kfac", "diagonal"])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    arrays = dict(np.load(options.given))

    def some(*names: str) -> TensorDataset:
        return TensorDataset(*(torch.from_numpy(arrays[name]) for name in names))

    train, queries = some("inputs", "target", "drawn"), some("queries", "query_target")
    task = CrossEntropy()
    model = prepare_model(network(arrays), task)
    with tempfile.TemporaryDirectory() as folder:
        analyzer = Analyzer("peer", model, task, cpu=True, output_dir=folder, disable_tqdm=True)
        began = time.perf_counter()
        analyzer.fit_all_factors(
            "factors",
            train,
            per_device_batch_size=options.batch,
            factor_args=FactorArguments(strategy=options.strategy),
        )
        fitted = time.perf_counter()
        analyzer.compute_pairwise_scores(
            "scores", "factors", queries, train, per_device_query_batch_size=len(queries),
            per_device_train_batch_size=options.batch, score_args=ScoreArguments(damping_factor=None),
        )  # fmt: skip
        scored = time.perf_counter()
        scores = analyzer.load_pairwise_scores("scores")["all_modules"]
    np.savez(options.found, scores=scores.numpy(), fit=fitted - began, score=scored - fitted)


if __name__ == "__main__":
    main()
