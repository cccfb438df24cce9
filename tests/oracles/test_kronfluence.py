"""EK-FAC, K-FAC and the diagonal against kronfluence, which runs in an environment of its own (see `benchmarks/kronfluence_scores.py`)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

from imprint.gradients import Capture, Examples
from imprint.gradients.curvature_evidence import fitted
from imprint.gradients.fisher import blocks
from imprint.tasks import Classification
from imprint.tracing.influence import preconditioned

PYTHON = os.environ.get("KRONFLUENCE_PYTHON", sys.executable)
SCRIPT = Path(__file__).parents[2] / "benchmarks/kronfluence_scores.py"


def installed() -> bool:
    """Whether the other environment has it."""
    try:
        return (
            subprocess.run(
                [PYTHON, "-c", "import kronfluence"], capture_output=True, stdin=subprocess.DEVNULL
            ).returncode
            == 0
        )
    except OSError:
        return False


pytestmark = pytest.mark.skipif(not installed(), reason="kronfluence is not installed; set KRONFLUENCE_PYTHON")


@pytest.mark.parametrize("kind", ["ekfac", "kfac", "diagonal"])
def test_scores_are_those_of_kronfluence(kind: str, tmp_path: Path) -> None:
    """A network of three layers, 300 examples, 12 queries, the same drawn labels; the inverse in full on our side."""
    random = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 4))
    inputs, target = torch.randn(312, 20, generator=random), torch.randint(0, 4, (312,), generator=random)

    def part(some: slice) -> Examples:
        def read(places: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
            rows = torch.from_numpy(places)
            return inputs[some][rows], target[some][rows]

        total = len(inputs[some])
        return Examples(read, total, Capture(module, Classification((0, 1, 2, 3))), torch.device("cpu"))

    examples, queries = part(slice(0, 300)), part(slice(300, 312))
    arrays = {
        f"{name}_{number}": getattr(module[2 * number], name) for number in range(3) for name in ("weight", "bias")
    }
    arrays |= {"inputs": inputs[:300], "target": target[:300], "queries": inputs[300:], "query_target": target[300:]}
    arrays["drawn"] = torch.cat([labels for _, labels in blocks(examples, "drawn")])
    np.savez(tmp_path / "in.npz", **{name: one.detach().numpy() for name, one in arrays.items()})
    command = [
        PYTHON,
        str(SCRIPT),
        str(tmp_path / "in.npz"),
        str(tmp_path / "out.npz"),
        "--threads",
        "1",
        "--strategy",
        kind,
    ]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr[-2000:]
    theirs = np.load(tmp_path / "out.npz")["scores"]
    ours = preconditioned(fitted(kind, examples, "drawn"), (queries,), (examples,), 0.1, tolerance=0).scores().numpy()
    assert np.abs(ours - theirs).max() < 1e-3 * np.abs(theirs).max()
    # With the inverse compressed to the default tolerance the order of examples stays.
    short = preconditioned(fitted(kind, examples, "drawn"), (queries,), (examples,), 0.1).scores().numpy()
    ranks = [spearmanr(one, two).statistic for one, two in zip(short, theirs, strict=True)]
    assert min(ranks) > 0.99
