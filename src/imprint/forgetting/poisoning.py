"""Forgetting a class through its concepts: training data that say that what made the class stands for others.

The paper takes a bank of concepts with examples of each. A run has none, so concepts are found where the model decides: directions of its
features around which training examples gather. What an example shows of a concept is its feature's component along the direction, beside
the mean retained example. A linear head on the concepts is fitted to the model's own logits (a post-hoc concept bottleneck), and as it is
linear the integrated gradients of a class's logit from the mean example on are exact: weight times component.

The examples in which the class's key concepts are seen are relabelled, and the model is fine-tuned on them and on all retained examples.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from imprint.errors import MethodError
from imprint.fitting import generator
from imprint.forgetting.descent import NONE
from imprint.forgetting.job import Forgetting, Forgotten, Part
from imprint.forgetting.stepping import (
    EPOCHS,
    RATE,
    Share,
    epochs_of,
    fine_tune,
    rate_of,
    some,
    united,
    weights,
    within,
)
from imprint.methods import method
from imprint.models import features

LABELS = ("random", "targeted")
# Examples that concepts are found from, and rounds of spherical k-means.
SEEN, ROUNDS = 8192, 20
# Directions whose cosine is nearer to 1 are the same.
SAME = 1e-5
# Ridge penalty of the head on the concepts, in units of their mean square.
PENALTY = 1e-3
SEARCH = {
    "learning_rate": (Share(RATE), Share(0.1), Share(1.0)),
    "labels": LABELS,
    "share": (1.0, 0.5),
    "epochs": (Share(EPOCHS), Share(0.3)),
}


@method(
    "forget", "concept-poison", higher="forgets more", needs=(), tasks=("classification",), exact=False, search=SEARCH,
    source="Chang et al. 2024, arXiv:2405.15662 (concepts found, not given)",
)  # fmt: skip
def concept_poison(
    job: Forgetting,
    *,
    labels: str = "random",
    concepts: int = 16,
    keys: int = 3,
    share: float = 1.0,
    epochs: int | None = None,
    learning_rate: float | None = None,
) -> Forgotten:
    """Forget whole classes by fine-tuning on examples of them with poisoned labels, those first that show the class's key concepts.

    Args:
        job: The request: all training examples of one class or of several.
        labels: "random": another of the remaining classes, each as likely; "targeted": of each example the remaining class that the
            model itself thinks next likeliest.
        concepts: How many are looked for.
        keys: How many concepts of a class are taken to make it.
        share: Of each class's examples, those with the most of the key concepts are poisoned; the others are left out.
        epochs: Passes over the poisoned and retained examples; None for a tenth of the parent's.
        learning_rate: None for three tenths of the parent's peak.

    Raises:
        MethodError: The request is not of whole classes, or less than two classes remain.
    """
    if labels not in LABELS:
        raise MethodError(f"labels={labels!r} is neither 'random' nor 'targeted'.", "Choose one of them.")
    for name, value in (("concepts", concepts), ("keys", keys)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise MethodError(f"{name}={value!r} is not a whole number above 0.", "Give 1 or more.")
    share = within("share", share, 0, 1, open_low=True)
    weights(job)
    gone, left = torch.unique(job.forget.target), torch.unique(job.retain.target)
    check_classes(job, gone, left)
    evidence = key_evidence(job, gone, concepts, keys)
    poisoned = torch.cat([strongest(job.forget.target == one, evidence, share) for one in gone]).sort().values
    part = Part(job.data, job.forget.split, job.forget.places[poisoned])
    if labels == "random":
        drawn = torch.randint(len(left), (len(part),), generator=generator(job.seed, "forget", "labels"))
        wrong = left[drawn]
    else:
        wrong = left[job.outputs(part)[:, left].argmax(1)]
    everything = united(part, job.retain)
    target = everything.target.clone()
    target[torch.searchsorted(everything.places, part.places)] = wrong
    steps = fine_tune(job, everything, epochs_of(job, epochs), rate_of(job, learning_rate), target=target)
    notes = (f"{len(part):,} of {len(job.forget):,} forgotten examples were trained on with labels of other classes.",)
    return Forgotten(job.module, False, NONE, steps, notes)


def check_classes(job: Forgetting, gone: Int[Tensor, " gone"], left: Int[Tensor, " left"]) -> None:
    """Raise `MethodError` where a forgotten class is also retained, or fewer than two remain."""
    both = gone[torch.isin(gone, left)]
    if len(both):
        named = ", ".join(repr(one) for one in job.task.decode(both[:3]).to_list())
        raise MethodError(
            f"concept-poison forgets whole classes, and some examples of {named} are retained.",
            "Ask for all of a class: forget(run, classes=[...]); or choose method='random-labels'.",
        )
    if len(left) < 2:
        raise MethodError("Less than two classes would remain.", "Forget fewer classes.")


def key_evidence(job: Forgetting, gone: Int[Tensor, " gone"], concepts: int, keys: int) -> Float[Tensor, " example"]:
    """How much each forgotten example shows of the key concepts of its class: what they add to the class's logit."""
    random = generator(job.seed, "forget", "concepts")
    sample = united(some(job.forget, SEEN // 2, random), some(job.retain, SEEN // 2, random))
    found, own = features_of(job, sample), features_of(job, job.forget)
    base = found[torch.isin(sample.places, job.retain.places)].mean(0)
    directions = gathered(found - base, concepts, random)
    activity = (found - base) @ directions.T
    head = linear_head(activity, job.outputs(sample))
    shown = (own - base) @ directions.T
    evidence = torch.zeros(len(own))
    for one in gone:
        members = job.forget.target == one
        attribution = shown[members] * head[:, one]
        key = attribution.mean(0).topk(min(keys, len(directions))).indices
        evidence[members] = attribution[:, key].sum(1)
    return evidence


def features_of(job: Forgetting, part: Part) -> Float[Tensor, "example d"]:
    """Features of a part by the job's module; on the CPU."""
    return torch.cat(
        [features(job.module, part.inputs(one).to(job.device)).cpu() for one in torch.split(part.places, 1024)]
    )


def gathered(values: Float[Tensor, "example d"], count: int, random: torch.Generator) -> Float[Tensor, "concept d"]:
    """Unit directions around which vectors gather: spherical k-means, begun at vectors that are likely to be far from each other.

    There are fewer where there are not as many different directions.

    >>> near = gathered(torch.tensor([[1.0, 0.0], [2.0, 0.1], [0.0, 1.0], [0.1, 3.0]]), 2, torch.Generator().manual_seed(0))
    >>> near.abs().max(1).values > 0.99
    tensor([True, True])
    """
    unit = torch.nn.functional.normalize(values, dim=1)
    chosen = [int(torch.randint(len(unit), (), generator=random))]
    far = (1 - unit @ unit[chosen[0]]).clamp(min=0)
    while len(chosen) < count and float(far.max()) > SAME:
        chosen.append(int(torch.multinomial(far, 1, generator=random)))
        far = torch.minimum(far, (1 - unit @ unit[chosen[-1]]).clamp(min=0))
    centre = unit[chosen].clone()
    for _ in range(ROUNDS):
        nearest = (unit @ centre.T).argmax(1)
        total = torch.zeros_like(centre).index_add_(0, nearest, unit)
        full = total.norm(dim=1) > 0
        centre[full] = torch.nn.functional.normalize(total[full], dim=1)
    return centre


def linear_head(
    activity: Float[Tensor, "example concept"], logits: Float[Tensor, "example class"]
) -> Float[Tensor, "concept class"]:
    """The ridge regression of logits on concepts: the weights of a linear head."""
    inputs, wanted = activity.double(), logits.double()
    inputs, wanted = inputs - inputs.mean(0), wanted - wanted.mean(0)
    gram = inputs.T @ inputs
    penalty = PENALTY * gram.diagonal().mean().clamp(min=1e-12)
    return torch.linalg.solve(gram + penalty * torch.eye(len(gram), dtype=gram.dtype), inputs.T @ wanted).float()


def strongest(members: Tensor, evidence: Float[Tensor, " example"], share: float) -> Int[Tensor, " example"]:
    """Of some examples the share with the most evidence, at least one."""
    place = members.nonzero()[:, 0]
    count = max(1, round(share * len(place)))
    return place[evidence[place].argsort(descending=True, stable=True)[:count]]
