"""Out-of-fold predictions: every training example is judged by a model that was trained without it.

A fleet of `k` members, each trained on all folds but one. Of each member only what it says of its own fold is kept; an interrupted
collection goes on with the folds that are missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import lance
import numpy as np
import pyarrow as pa
import torch

from imprint.engine import LOCAL, Engine
from imprint.fitting import Progress, silent
from imprint.fleets.executing import executor_on
from imprint.fleets.fleet import fleet
from imprint.fleets.folds import FOLDS
from imprint.fleets.plan import folds as fold_plan
from imprint.recording import tables
from imprint.recording.collect import COLLECTORS
from imprint.recording.files import remove, replacing
from imprint.recording.needs import Need

if TYPE_CHECKING:
    from imprint.recording import Run


def collect_out_of_fold(run: Run, needs: Sequence[Need], progress: Progress = silent, engine: Engine = LOCAL) -> None:
    """Train the folds of a run and write `out_of_fold.lance`: row, logits, fold. A run keeps them of one number of folds."""
    count = int(getattr(needs[-1], "folds", FOLDS))
    rows = run.rows()
    path = run.path / "fleets" / f"folds-{count}"
    members = fleet(
        run,
        plan=fold_plan(count),
        path=path,
        queries=rows,
        executor=executor_on(engine),
        keep="logits",
        progress=progress,
    )
    fold = np.empty(len(rows), dtype=np.int16)
    found = torch.empty(len(rows), run.task.width)
    for number in range(count):
        own = np.flatnonzero(~members.weights.included(members=slice(number, number + 1))[0].numpy())
        fold[own] = number
        said = members.outcomes("logits", members=[number], rows=rows[own])[0]
        found[torch.from_numpy(own)] = said.reshape(len(own), -1)
    table = pa.table({"row": rows, "logits": tables.fixed(found), "fold": fold})
    with replacing(run.path / "evidence" / "out_of_fold.lance") as temporary:
        described = table.replace_schema_metadata({"folds": str(count)})
        lance.write_dataset(described, str(temporary), max_rows_per_file=tables.ROWS_PER_FILE)
    # What members say of examples that they saw is no longer needed, and would be k times the size.
    remove(path)


COLLECTORS["out_of_fold"] = collect_out_of_fold
