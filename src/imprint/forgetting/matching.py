"""Datamodel matching: say what a retrained model would answer, by attribution, and fine-tune towards that.

    wanted[q] = parent[q] - multiplier x sum over the forgotten i of score[q, i]

for the forgotten examples and some retained ones. A score says what example i adds to the answer q; where it comes from decides what is
matched:

| attribution                     | reads                     | a score is in                  | what is shifted                  |
|---------------------------------|---------------------------|--------------------------------|----------------------------------|
| "datamodel", "subset-influence" | a fleet on random halves  | outputs, where they are kept   | every output, as in the paper    |
|                                 |                           | else margins of the target     | the target's output              |
| "influence-..."                 | curvature, gradients      | n times a rise in loss         | the target's output              |

A verb does not know another: the method is looked up in the registry by its name, and called with the evidence that it asks for.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from imprint import evidence
from imprint.errors import EvidenceError, MethodError
from imprint.fitting import generator
from imprint.fleets.evidence import fleet_of
from imprint.forgetting.descent import NONE
from imprint.forgetting.job import Forgetting, Forgotten, Part
from imprint.forgetting.layout import is_final
from imprint.forgetting.stepping import (
    RATE,
    Share,
    Steps,
    blocks,
    epochs_of,
    rate_of,
    some,
    steps_of,
    training,
    united,
    weights,
    within,
)
from imprint.methods import Method, check_serves, lookup
from imprint.methods import method as registers
from imprint.recording.needs import FleetNeed, Membership, Need, Subsets
from imprint.tasks import Batch, Classification, Multilabel

# The learning rate is multiplied with it after each epoch, as in the authors' code.
DECAY = 0.95
INFLUENCE = "influence-"
SEARCH = {
    "learning_rate": (Share(RATE), Share(0.1), Share(1.0)),
    "multiplier": (1.0, 0.5, 2.0),
    "epochs": (5, 15),
    "retain": (3.0, 10.0),
}


@registers(
    "forget", "datamodel-matching", higher="forgets more", needs=(), exact=False, search=SEARCH,
    source="Georgiev et al. 2024, arXiv:2410.23232",
)  # fmt: skip
def datamodel_matching(
    job: Forgetting,
    *,
    attribution: str = "datamodel",
    members: int | None = None,
    multiplier: float = 1.0,
    retain: float = 3.0,
    epochs: int = 5,
    learning_rate: float | None = None,
) -> Forgotten:
    """Predict by attribution what a model without the forgotten examples would say, and fine-tune to say it (datamodel matching).

    A fleet of trainings on random halves is the price of "datamodel": it is kept with the run, and serves every later request. Without
    one, choose an influence: it costs no training.

    Args:
        job: The request.
        attribution: Name of a trace method: "datamodel", "subset-influence", or one of the influences.
        members: Trainings of the fleet; None as the method declares.
        multiplier: Of the predicted change.
        retain: Retained examples that are matched, too, in units of the forgotten ones.
        epochs: Passes over these examples.
        learning_rate: None for three tenths of the parent's peak.

    Raises:
        MethodError: The trace method is unknown, or does not say how much an answer changes.
    """
    multiplier, retain = within("multiplier", multiplier, -1e6, 1e6), within("retain", retain, 0, 1e6)
    epochs, rate = epochs_of(job, epochs), rate_of(job, learning_rate)
    weights(job)  # says that there are none before a fleet is trained
    one = attributing(attribution, members)
    check_serves([one], job.run)
    kept = some(job.retain, round(retain * len(job.forget)), generator(job.seed, "forget", "matched"))
    part = united(job.forget, kept)
    wanted = finite(predicted(job, one, part, multiplier), one)
    steps = Steps(job, rate, epochs * steps_of(job, part))
    with training(job):
        for epoch in range(epochs):
            for block in blocks(job, part, epoch):
                aim = wanted[torch.searchsorted(part.places, block.places)].to(job.device)
                steps((job.forward(block.inputs) - aim).square().mean(), rate * DECAY**epoch)
            steps.check()
    note = f"Matched to what {one.name} predicts of {len(part):,} examples"
    note += f", from {one.members} trainings." if one.members else "."
    notes: tuple[str, ...] = (note,)
    if not reads_subsets(one) and not is_final(job):
        notes = (
            note,
            "The influence was taken at the run's own weights, and not at those of the model that forgets.",
        )
    return Forgotten(job.module, False, NONE, steps.close(), notes)


def attributing(name: str, members: int | None) -> Method:
    """The trace method of a name.

    Raises:
        MethodError: It is unknown, or its scores do not say how much an answer changes.
    """
    one = lookup("trace", name)
    if not reads_subsets(one) and not name.startswith(INFLUENCE):
        raise MethodError(
            f"The scores of '{name}' rank examples, and do not say how much an answer changes without them.",
            "Choose attribution='datamodel', 'subset-influence' or 'influence-ekfac'.",
        )
    return one if members is None else one.with_members(members)


def reads_subsets(one: Method) -> bool:
    """Whether a method predicts what models say from who was in their training sets, and reads nothing else."""
    return {type(need) for need in one.needs} == {Subsets, Membership}


def predicted(job: Forgetting, one: Method, part: Part, multiplier: float) -> Float[Tensor, "example ..."]:
    """Outputs of a model that never saw the forgotten examples, on a part, as a trace method predicts them."""
    parent = job.outputs(part)
    gone = torch.zeros(1, len(job.forget) + len(job.retain), dtype=torch.bool)
    gone[0, job.forget.places] = True
    rows = part.rows.numpy()
    queries = {split: rows for split in map(evidence.split_of, one.needs) if split not in (None, "train")}
    if not reads_subsets(one):
        found = one.function(**evidence.gather(job.run, one.needs, queries, job.progress))
        rise = multiplier * found.predict(gone)[:, 0].float() / gone.shape[1]
        return with_loss(job, parent, part.target, rise)
    outcome = next(need for need in one.needs if isinstance(need, Subsets))
    evidence.collect(job.run, one.needs, queries, job.progress)
    membership = evidence.value(job.run, next(need for need in one.needs if isinstance(need, Membership)), {})
    logits = outputs_of(job, outcome, rows)
    if logits is None:
        margin = evidence.value(job.run, outcome, queries)
        fall = one.function(**{outcome.name: margin, "membership": membership}).predict(gone)[:, 0]
        return shifted(job, parent, part.target, -multiplier * fall.float())
    found = one.function(**{outcome.name: logits.flatten(1), "membership": membership})
    return parent - multiplier * found.predict(gone)[:, 0].float().view(parent.shape)


def outputs_of(job: Forgetting, outcome: Need, rows: np.ndarray) -> Tensor | None:
    """What the members of the fleet say of rows, `[member, example, ...]`; None where only a summary was kept."""
    assert isinstance(outcome, FleetNeed)
    members = fleet_of(job.run, outcome)
    if members.manifest["keep"] != "logits":
        return None
    return members.outcomes("logits", rows=rows).float()


def shifted(
    job: Forgetting, outputs: Float[Tensor, "example ..."], target: Tensor, change: Float[Tensor, " example"]
) -> Float[Tensor, "example ..."]:
    """Outputs whose margins have changed by so much, through what speaks for the target: its logit, each label's, or the value itself.

    Raises:
        MethodError: The task is another.
    """
    if isinstance(job.task, Classification):
        return outputs.scatter_add(1, target[:, None], change[:, None])
    if isinstance(job.task, Multilabel):
        return outputs + change[:, None] * (2 * target - 1)
    away = torch.sign(outputs[:, 0] - target)
    error = ((outputs[:, 0] - target).abs() - change).clamp(min=0)
    return (target + torch.where(away == 0, 1.0, away) * error)[:, None]


def with_loss(
    job: Forgetting, outputs: Float[Tensor, "example ..."], target: Tensor, rise: Float[Tensor, " example"]
) -> Float[Tensor, "example ..."]:
    """Outputs whose losses have risen by so much (nats), through what speaks for the target.

    Of a class this has a closed form: its logit is the log-odds of its probability, plus the log of the sum of the others' exponentials.
    Of labels, and of values, all that speak for the target move alike, to first order.
    """
    loss = job.task.loss(outputs, Batch(outputs, target))
    aim = (loss + rise).clamp(LEAST_LOSS, MOST_LOSS)
    if isinstance(job.task, Classification):
        others = outputs.scatter(1, target[:, None], -torch.inf).logsumexp(1)
        return outputs.scatter(1, target[:, None], (others - (aim + torch.log(-torch.expm1(-aim))))[:, None])
    if isinstance(job.task, Multilabel):
        slope = ((2 * target - 1) * (target - outputs.sigmoid())).mean(1).clamp(min=1e-3)
        return shifted(job, outputs, target, -(aim - loss) / slope)
    return shifted(job, outputs, target, (2 * loss).sqrt() - (2 * aim).sqrt())


# No prediction is taken beyond these: probabilities of 0.9999 and 2e-9. What is true to first order knows no bounds.
LEAST_LOSS, MOST_LOSS = 1e-4, 20.0


def finite(wanted: Tensor, one: Method) -> Tensor:
    """What is predicted, if it is finite."""
    if not bool(torch.isfinite(wanted).all()):
        raise EvidenceError(
            f"The prediction of '{one.name}' is not finite.",
            "A training of the fleet has diverged: lower the learning rate.",
        )
    return wanted


__all__ = ["datamodel_matching", "predicted", "shifted", "with_loss"]
