"""Groups of examples for audits that compare groups: the corpus's own, a column's values, a background colour, or clusters of features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from jaxtyping import Float, Int

from imprint.cleaning.attributes import attributes, cut
from imprint.cleaning.slices import clusters
from imprint.errors import ColumnError, MethodError, nearest
from imprint.recording.needs import Features

if TYPE_CHECKING:
    from imprint.corpus import Corpus

# More groups than this are no groups to compare but names of people, files or days.
MOST = 50
# Smallest part of a column that is a group of its own; the rest is one group, "other".
LEAST = 10


@dataclass(frozen=True)
class Groups:
    """The group of each row of a corpus.

    Attributes:
        by: What groups were made by.
        names: The groups.
        code: Number of each row's group.
    """

    by: str
    names: tuple[str, ...]
    code: Int[np.ndarray, " row"]


def groups_of(run: Any, by: str | None = None) -> Groups:
    """The groups of all rows of a run's corpus.

    Args:
        run: The run.
        by: "group" (the corpus's role), a column or another cheap attribute (`imprint.cleaning.attributes`), "background" (the colour
            of an image's border) or "clusters" (of the model's features). None: the role where there is one, else the background of
            images, else clusters.

    Raises:
        ColumnError: No such attribute.
        MethodError: More than 50 groups, or only one.
    """
    corpus: Corpus = run.corpus
    if by is None:
        by = "group" if corpus.groups is not None else "background" if corpus.modality == "image" else "clusters"
    if by == "clusters":
        code = clusters(run.gather([Features(split=None)])["features"])
        names = [f"cluster {number}" for number in range(int(code.max(initial=-1)) + 1)]
    else:
        values = _values(corpus, by)
        if by == "background" and "border brightness" in values:
            looks = ("border brightness", "border redness", "border blueness")
            values["background"] = background(*(values[name].to_numpy() for name in looks))
        if by not in values:
            raise ColumnError(f"There is no '{by}' to make groups by.", nearest(by, [*values, "clusters"]))
        cuts = cut({by: values[by]}, LEAST)
        code, names = cuts.code[:, 0].astype(np.int64), [_short(name, by) for name in cuts.names[0]]
    if (code < 0).any() and names:
        code, names = np.where(code < 0, len(names), code), [*names, "other"]
    if not 2 <= len(names) <= MOST:
        raise MethodError(
            f"'{by}' makes {len(names) or 'no'} group{'s' if len(names) != 1 else ''} of at least {LEAST} examples.",
            f"Choose what makes 2 to {MOST} groups: a column, or clusters.",
        )
    return Groups(by, tuple(names), code)


def _values(corpus: Corpus, by: str) -> dict[str, pl.Series]:
    """What is asked for alone where that is a role or a column, else all attributes."""
    if by == "group" and corpus.groups is not None:
        return {by: corpus.groups}
    if corpus.kinds.get(by) in ("numeric", "categorical", "datetime"):
        return {by: pl.concat([frame for _, frame in corpus.batches(None, [by])]).to_series()}
    return attributes(corpus, corpus.rows())


def _short(name: str, by: str) -> str:
    """`sex = Female` as `Female`, where what it is of is said elsewhere."""
    return name.removeprefix(f"{by} = ")


def background(
    brightness: Float[np.ndarray, " row"], redness: Float[np.ndarray, " row"], blueness: Float[np.ndarray, " row"]
) -> pl.Series:
    """Colour of a border in a word.

    Grey shades where red and blue are within 20 (of 255) of green.

    >>> background(np.array([10.0, 250, 120, 120]), np.array([0.0, 0, 60, -40]), np.array([0.0, 0, 5, -30])).to_list()
    ['dark', 'bright', 'red', 'green']
    """
    plain = (np.abs(redness) < 20) & (np.abs(blueness) < 20)
    shade = np.select([brightness < 64, brightness > 192], ["dark", "bright"], "grey")
    colour = np.select([(redness < 0) & (blueness < 0), blueness >= redness], ["green", "blue"], "red")
    return pl.Series(np.where(plain, shade, colour))
