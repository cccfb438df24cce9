"""What a trace method reads: evidence of the training examples, and evidence of the queries.

A need whose split is `QUERIES` is about the queries that were asked for, whichever rows these are. Where a method reads the same
evidence of both, it gives that of the queries a name of its own: `Features("query_features", split=QUERIES), Features()`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

from imprint import evidence
from imprint.engine import LOCAL, Engine
from imprint.evidence import Inputs, Texts, inputs, texts
from imprint.fitting import Progress, silent
from imprint.gradients.examples import kept_checkpoints
from imprint.recording.needs import Need

if TYPE_CHECKING:
    from imprint.recording import Run

__all__ = ["QUERIES", "Inputs", "Texts", "asks_queries", "bytes_read", "gather", "inputs", "texts"]

QUERIES = "<queries>"


def gather(
    run: Run,
    needs: Iterable[Need],
    queries: Int[np.ndarray, " query"],
    progress: Progress = silent,
    engine: Engine = LOCAL,
) -> dict[str, Any]:
    """The values of needs by name; what is missing is collected first.

    Args:
        run: The run.
        needs: What a method reads.
        queries: Rows of the corpus that the queries are, in their order.
        progress: Told what is collected.
        engine: Where what takes long is done.
    """
    return evidence.gather(run, needs, {QUERIES: queries}, progress, engine)


def asks_queries(need: Need) -> bool:
    """Whether a need is about the queries."""
    return evidence.split_of(need) == QUERIES


def bytes_read(run: Run, needs: Iterable[Need]) -> int:
    """Bytes on disk of the evidence that these needs are read from; the corpus and the checkpoints are not counted.

    Args:
        run: The run.
        needs: What a method reads.
    """
    stores = {str(need.store): need for need in needs if need.store is not None}
    total = 0
    for store, need in stores.items():
        checkpoint = getattr(need, "checkpoint", None)
        files = [run.path / "fleets" / store, *(run.path / "evidence").glob(f"{store}.*")]
        if checkpoint is not None:  # on disk a checkpoint has its own name
            kept = (
                kept_checkpoints(run) if checkpoint == "kept" else [(run.checkpoints.named(str(checkpoint)).name, 1.0)]
            )
            files += [run.path / "evidence" / f"{store.removesuffix(str(checkpoint))}{name}.lance" for name, _ in kept]
        total += sum(file.stat().st_size for folder in files for file in (folder, *folder.rglob("*")) if file.is_file())
    return total
