"""What a user's own module is called with, where no encoder of ours makes it from the corpus: a tensor, or a function of rows.

Everything that passes examples through a model reads `Data.inputs[rows]`. A tensor is that already; a function becomes it here, and is
called only for the rows that are asked for, so that inputs need not fit in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import numpy as np
import torch
from jaxtyping import Int, Int64, Shaped
from torch import Tensor

from imprint.errors import EvidenceError
from imprint.fitting import Data

Inputs = Tensor | np.ndarray | Callable[[np.ndarray], Tensor]


class RowInputs:
    """Inputs of the rows of a corpus, made when they are indexed.

    Args:
        make: Rows in any order -> the module's inputs for them, one per row.
        total: How many rows the corpus has.

    >>> inputs = RowInputs(lambda rows: torch.from_numpy(rows) * 10, 5)
    >>> len(inputs), inputs[1:3].tolist(), inputs[torch.tensor([4, 0])].tolist()
    (5, [10, 20], [40, 0])
    """

    def __init__(self, make: Callable[[Int64[np.ndarray, " row"]], Tensor], total: int) -> None:
        self.make, self.total = make, total

    def __len__(self) -> int:
        return self.total

    def __getitem__(self, which: slice | Int[Tensor, " row"]) -> Shaped[Tensor, "row ..."]:
        rows = np.arange(self.total)[which] if isinstance(which, slice) else which.cpu().numpy()
        made = self.make(rows)
        if not isinstance(made, Tensor) or not made.dim() or len(made) != len(rows):
            shown = f"shape {tuple(made.shape)}" if isinstance(made, Tensor) else type(made).__name__
            raise EvidenceError(
                f"The function of rows in inputs= gave {shown} for {len(rows)} rows.",
                "Return one tensor with the inputs of these rows in their order: [row, ...].",
            )
        return made


def given_data(inputs: Inputs, target: Tensor, training: Int64[np.ndarray, " row"]) -> Data:
    """Inputs that a user gave, with the targets of all rows, as the data of a run.

    Args:
        inputs: Of every row of the corpus `[row, ...]`, or a function of rows.
        target: Encoded targets of every row.
        training: Rows that are trained on.

    Raises:
        EvidenceError: There is not one input per row.
    """
    total = len(target)
    if isinstance(inputs, np.ndarray):
        inputs = torch.from_numpy(inputs)
    if isinstance(inputs, Tensor):
        if not inputs.dim() or len(inputs) != total:
            raise EvidenceError(
                f"inputs= has the shape {tuple(inputs.shape)}, and the corpus has {total:,} rows.",
                "Give the inputs of every row of the corpus, in its order; or a function of rows.",
            )
        found = inputs
    elif callable(inputs):
        found = cast(Tensor, RowInputs(inputs, total))
    else:
        raise EvidenceError(
            f"inputs= is a {type(inputs).__name__}.", "Give a tensor with one input per row, or a function of rows."
        )
    return Data(found, target, None, {"train": torch.from_numpy(np.asarray(training, dtype=np.int64))})


__all__ = ["Inputs", "RowInputs", "given_data"]
