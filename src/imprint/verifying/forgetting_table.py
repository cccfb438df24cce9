"""From what arms answered to a table with intervals: how near is each to models that never saw the examples?

Intervals are about other models, other judges and other examples from the same source:

    klom, klom-95, klom-99          jackknife over models and judges, bootstrap over examples (`imprint.verifying.resampling`)
    accuracy, loss, agreement, ...  means over models x examples: `imprint.verifying.interval.crossed_interval`
    relearn, probe, cka-parent, cue means over models; cka-oracle over models x judges: the same
    lira-*, rmia-*                  variance over models, bootstrap over forgotten and held-out examples; no narrower than Wilson's interval

`change` is the value less that of doing nothing, `gap` that less the oracle's: of as many models, asked about the same rows and judged by
the same oracles, so that what both arms share cancels. The models of doing nothing are those that a method's models were made from.

Several measures on the forgotten examples ask one question: is this arm told apart from models that never saw them? Asked of such models,
one of six intervals at 95 % would leave out zero in every fourth verdict. So the intervals of their gaps, and of their changes, are wide
enough for all six together to hold at the level that was asked for (Bonferroni).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from imprint.answers import Forgetfulness
from imprint.fitting import generator
from imprint.forgetting.klom import klom
from imprint.forgetting.oracles import margins
from imprint.tasks import Batch, Task
from imprint.verifying.arms import Arm, Rows
from imprint.verifying.interval import crossed_interval
from imprint.verifying.membership import lira, rmia
from imprint.verifying.resampling import Mean, Measured, Rate, Spread, attack_rates, distance

# Rates of false alarms, in percent, and with how many held-out examples each can be seen at all.
FALSE_ALARMS = {"1": 0.01, "0.1": 0.001}
# How much more likely a member has to be for RMIA, online as the authors have it. Values have no probability but that of an assumed noise,
# whose scale the ratio depends on: with a unit variance hardly any ratio reaches 2, all scores tie, and the attack would find nobody.
GAMMA = 2.0
STATISTICS = ("klom", "klom-95", "klom-99")
# What is better, by measure; of forgotten examples the oracles say how good a model should be.
BETTER = {
    "agreement": "higher", "relearn": "oracle", "cka-oracle": "higher", "cka-parent": "oracle", "probe": "higher", "recovery": "higher",
    "cue": "lower",
}  # fmt: skip
SCHEMA = {
    "measure": pl.String, "set": pl.String, "arm": pl.String, "value": pl.Float64, "low": pl.Float64, "high": pl.Float64,
    "better": pl.String, "change": pl.Float64, "change_low": pl.Float64, "change_high": pl.Float64, "gap": pl.Float64,
    "gap_low": pl.Float64, "gap_high": pl.Float64,
}  # fmt: skip

# How many measures on the forgotten examples tell an arm from the oracles: distance, headline, loss, two attacks, relearning.
FAMILY = 6

Row = dict[str, Any]


@dataclass(frozen=True)
class Shadows:
    """What shadow models say of candidates and of a population: all that an attack learns from.

    Attributes:
        outputs: Of candidates, forgotten ones first.
        inside: Which model saw which candidate.
        population: Of examples that none saw; None where there are too few.
    """

    outputs: Float[Tensor, "model candidate ..."]
    inside: Bool[Tensor, "model candidate"]
    population: Float[Tensor, "model z ..."] | None


@dataclass(frozen=True)
class Answers:
    """All that a table is made of.

    Attributes:
        task: The task.
        target: Encoded targets of `rows.all`.
        rows: What was asked about.
        arms: Methods, "nothing" and "oracle".
        judges: Outputs of the oracles that are not an arm; of one oracle the arm itself.
        shadows: For the attacks; None for none.
        right: Places in `rows.all` of forgotten examples whose right targets are known, and these; None for none.
        level: Of the intervals.
    """

    task: Task
    target: Tensor
    rows: Rows
    arms: Mapping[str, Arm]
    judges: Float[Tensor, "judge row ..."]
    shadows: Shadows | None = None
    right: tuple[Int[Tensor, " row"], Tensor] | None = None
    level: float = 0.95

    def table(self) -> pl.DataFrame:
        """One row per measure, set and arm, in this order."""
        rows = [*self._distances(), *self._means(), *self._attacks(), *self._figures()]
        return pl.DataFrame(rows, schema=SCHEMA)

    # --------------------------------------------------------------------------------------------- distance of outputs

    def _distances(self) -> list[Row]:
        measure = self._klom if len(self.judges) > 1 else self._largest
        return [row for name, some in self.rows.sets.items() for row in measure(name, self.rows.places(some))]

    def _klom(self, name: str, places: Int[Tensor, " row"]) -> list[Row]:
        target = self.target[places]
        judges = margins(self.task, self.judges[:, places], target)
        found = {}
        for arm, one in self.arms.items():
            draw = generator(0, "forgetting", "examples", name)
            found[arm] = distance(margins(self.task, one.outputs[:, places], target), judges, klom, draw)
        return [
            row
            for number, statistic in enumerate(STATISTICS)
            for row in self._compared(statistic, name, {arm: one[number] for arm, one in found.items()}, "lower")
        ]

    def _largest(self, name: str, places: Int[Tensor, " row"]) -> list[Row]:
        """The largest difference from the one oracle's outputs: there is no chance in it, and so no interval."""
        judge = self.judges[:, places].double()
        largest = {
            arm: (one.outputs[:, places].double() - judge).abs().amax().view(1, 1) for arm, one in self.arms.items()
        }
        return self._compared("distance", name, largest, "lower")

    # --------------------------------------------------------------------------------------------- means over models x examples

    def _means(self) -> list[Row]:
        rows = []
        for name, some in self.rows.sets.items():
            places = self.rows.places(some)
            target, forgotten = self.target[places], name == "forget"
            said = consensus(self.task, self.judges[:, places])
            values = {arm: one.outputs[:, places] for arm, one in self.arms.items()}
            if gives_credit(self.task, target):
                better = "oracle" if forgotten else "higher"
                rows += self._compared(self.task.headline, name, self._credit(values, target), better)
            losses = {arm: torch.stack([loss_of(self.task, o, target) for o in one]) for arm, one in values.items()}
            rows += self._compared("loss", name, losses, "oracle" if forgotten else "lower")
            if gives_credit(self.task, said):
                rows += self._compared("agreement", name, self._credit(values, said), BETTER["agreement"])
        if self.right is not None and gives_credit(self.task, self.right[1]):
            places, target = self.right
            values = {arm: one.outputs[:, places] for arm, one in self.arms.items()}
            rows += self._compared("recovery", "forget", self._credit(values, target), BETTER["recovery"])
        return rows

    def _credit(self, outputs: Mapping[str, Tensor], target: Tensor) -> dict[str, Float[Tensor, "model example"]]:
        return {arm: torch.stack([self.task.credit(o, target).double() for o in one]) for arm, one in outputs.items()}

    # --------------------------------------------------------------------------------------------- attacks, figures of models

    def _attacks(self) -> list[Row]:
        if self.shadows is None:
            return []
        rows: list[Row] = []
        for attack in ("lira", "rmia"):
            if attack == "rmia" and self.shadows.population is None:
                continue
            seen = {name: rate for name, rate in FALSE_ALARMS.items() if self.rows.members * rate >= 1}
            found = {}
            for arm, one in self.arms.items():
                scores = self._scores(attack, one)
                parts = scores[:, : self.rows.members], scores[:, self.rows.members :]
                found[arm] = attack_rates(*parts, list(seen.values()), generator(0, "forgetting", attack))
            for number, name in enumerate(["auroc", *(f"tpr-{name}" for name in seen)]):
                values = {arm: one[number] for arm, one in found.items()}
                rows += self._compared(f"{attack}-{name}", "forget", values, "lower" if number else "oracle")
        return rows

    def _scores(self, attack: str, arm: Arm) -> Float[Tensor, "model candidate"]:
        shadows = self.shadows
        assert shadows is not None
        places = self.rows.places(self.rows.candidates)
        target, observed = self.target[places], arm.outputs[:, places]
        if attack == "lira":
            known = margins(self.task, shadows.outputs, target)
            return lira(known, shadows.inside, margins(self.task, observed, target))
        others = self.rows.places(self.rows.population)
        assert shadows.population is not None
        return rmia(
            self._logp(shadows.outputs, target), shadows.inside, self._logp(observed, target),
            self._logp(shadows.population, self.target[others]), self._logp(arm.outputs[:, others], self.target[others]),
            gamma=1.0 if self.task.name == "regression" else GAMMA,
        )  # fmt: skip

    def _logp(self, outputs: Float[Tensor, "model row ..."], target: Tensor) -> Float[Tensor, "model row"]:
        return -torch.stack([loss_of(self.task, one, target) for one in outputs])

    def _figures(self) -> list[Row]:
        rows = []
        for name in [one for one in BETTER if any(one in arm.figures for arm in self.arms.values())]:
            values = {arm: one.figures[name] for arm, one in self.arms.items()}
            shaped = {arm: one if one.ndim == 2 else one[:, None] for arm, one in values.items()}
            rows += self._compared(name, "forget" if name == "relearn" else "held-out", shaped, BETTER[name])
        return rows

    # --------------------------------------------------------------------------------------------- rows

    def _compared(self, measure: str, name: str, values: Mapping[str, Any], better: str) -> list[Row]:
        """Rows of one measure: each arm's value, and its differences to doing nothing and to the oracles, with intervals.

        Args:
            measure: Its name.
            name: Of the set.
            values: Arm -> values `[model, example]`, a spread or a rate: whatever has a difference and an interval.
            better: What is better.
        """
        telling = name == "forget" and measure in Forgetfulness.TELLING
        wide = 1 - (1 - self.level) / FAMILY if telling else self.level
        rows = []
        for arm, one in values.items():
            value, (low, high) = self._measured(one, self.level)
            row = {"measure": measure, "set": name, "arm": arm, "value": value, "better": better}
            row |= self._within(measure, value, low, high)
            for column, other in (("change", "nothing"), ("gap", "oracle")):
                if arm != other and not (column == "change" and arm == "oracle"):
                    moved, (least, most) = self._measured(one - values[other], wide)
                    row |= {column: moved, f"{column}_low": least, f"{column}_high": most}
            rows.append(row)
        return rows

    def _measured(self, value: Float[Tensor, "model example"] | Mean | Spread | Rate, level: float) -> Measured:
        return crossed_interval(value, level) if isinstance(value, Tensor) else value.measured(level)

    def _within(self, measure: str, value: float, low: float, high: float) -> Row:
        """An interval's ends, within what the measure can be."""
        r2 = self.task.name == "regression" and measure in (self.task.headline, "agreement", "probe", "recovery")
        open_ended = measure in (*STATISTICS, "distance", "loss", "relearn")
        least, most = -math.inf if r2 else 0.0, math.inf if open_ended else 1.0
        return {"low": min(value, max(least, low)), "high": max(value, min(most, high))}


def consensus(task: Task, judges: Float[Tensor, "judge row ..."]) -> Tensor:
    """What judges predict together, encoded: by their mean probability, of values by their mean.

    >>> from imprint.tasks import Classification
    >>> logits = torch.tensor([[[9.0, 0.0]], [[0.0, 1.0]], [[0.0, 1.0]]])
    >>> consensus(Classification((0, 1)), logits)
    tensor([0])
    """
    if task.name == "multilabel":
        return (task.probabilities(judges.double()).mean(0) > 0.5).float()
    if task.name == "classification":
        return task.predict(task.probabilities(judges.double()).mean(0))
    return task.predict(judges.double().mean(0)).float()


def gives_credit(task: Task, target: Tensor) -> bool:
    """Whether the headline metric is defined on these targets: R2 is not of one value, or of equal ones."""
    return len(target) > 0 and (task.name != "regression" or bool((target != target[0]).any()))


def loss_of(task: Task, outputs: Float[Tensor, "row ..."], target: Tensor) -> Float[Tensor, " row"]:
    """Loss of each example, in nats (of values half the squared error)."""
    return task.loss(
        outputs.double(), Batch(outputs, target.double() if target.is_floating_point() else target)
    ).double()
