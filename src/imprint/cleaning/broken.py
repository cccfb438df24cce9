"""Rows and files that were set aside when the corpus was opened."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from imprint.cleaning.flags import Flags
from imprint.methods import method
from imprint.recording.needs import Table

if TYPE_CHECKING:
    from imprint.corpus import Corpus


@method("clean", "unreadable", kind="broken", needs=[Table()], higher="always 1", source="Imprint")
def unreadable(corpus: Corpus) -> Flags:
    """What could not be read: broken images, undecodable text, missing targets. It has a position but no id."""
    aside = corpus.set_aside
    return Flags(
        row=np.full(len(aside), -1),
        severity=np.ones(len(aside), np.float32),
        suggestion=["drop"] * len(aside),
        evidence=aside["reason"].cast(pl.String).to_list(),
        position=aside["position"],
        over="corpus",
    )
