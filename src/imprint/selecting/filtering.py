"""Data filtering networks: a small model of trusted data says which examples of the pool go with it.

Fang et al. (2023) train a network on a little data of high quality, rank a large pool by how well the two sides of each pair fit
by it (an image and its caption), and keep the top. A labelled example is such a pair too: here the filter is a logistic (for quantities
a ridge) head on the features, fitted to the trusted examples, and the value of an example is how likely it thinks the example's label.

A filter is not judged by its own accuracy. In the paper, filters that classify better induce worse training sets, and what made one
better was cleaner data to learn from. So it is judged by the model that it induces: `imprint.verify(selection)`.

`dfn-domain` asks the other question, with no labels: whether an example looks like the trusted ones rather than like the rest. The
paper found such filters (trusted against pool) weaker where labels matter; they are for pools of mixed origin.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from imprint.errors import MethodError
from imprint.fitting.logistic import logistic
from imprint.fitting.ridge import ridge
from imprint.methods import method
from imprint.recording.needs import Features, Target
from imprint.selecting.evidence import Budget, Random, Trusted
from imprint.selecting.picks import Picks, ranked

# Penalties of the heads, on features with a mean square of one (`benchmarks/targeting.py`). Trusted examples are few, so that a filter of
# pairs takes a stronger one than our "logistic" learner (3e-3). What is not trusted may be of the trusted domain too, and a filter of
# domains must not fit it: at 3 it is nearly the difference of two means.
PAIRS, QUANTITIES, DOMAIN = 0.1, 1e-2, 3.0
FANG = "Fang et al. 2023 (DFN), arXiv:2309.17425"


def pair_quality(
    features: Float[Tensor, "example feature"], target: Tensor, trusted: Bool[Tensor, " example"]
) -> Float[Tensor, " example"]:
    """Log-likelihood (nats) of each example's label by a head that was fitted to the trusted examples: higher = the pair fits better.

    Of quantities it is minus half the squared error, in variances of the trusted examples' errors about their mean.

    Args:
        features: Feature vectors of all examples.
        target: Class codes `[example]`, labels `[example, label]`, or quantities `[example]`.
        trusted: Which examples are trusted.

    Raises:
        MethodError: The trusted examples are all of one class.

    >>> features = torch.tensor([[-2.0], [-1.0], [1.0], [2.0], [1.5]])
    >>> pair_quality(features, torch.tensor([0, 0, 1, 1, 0]), torch.tensor([1, 1, 1, 1, 0], dtype=torch.bool)).argmin()
    tensor(4)
    """
    x = _scaled(features)
    if target.ndim == 1 and target.is_floating_point():
        known = target[trusted].double()
        W, b = ridge(x[trusted], known[:, None], decay=QUANTITIES)
        error = target.double() - (x @ W.float() + b).squeeze(1)
        return (-0.5 * error.square() / known.var(correction=0).clamp(min=torch.finfo(torch.float64).tiny)).float()
    if target.ndim == 1 and len(torch.unique(target[trusted])) < 2:
        raise MethodError(
            f"All {int(trusted.sum()):,} trusted examples are of one class, and a filter of pairs learns to tell classes apart.",
            "Name trusted examples of all classes; or choose dfn-domain, which reads no labels.",
        )
    classes = int(target.max()) + 1 if target.ndim == 1 else None
    W, b = logistic(x[trusted], target[trusted], decay=PAIRS, classes=classes)
    logits = x @ W.float() + b.float()
    if target.ndim == 2:
        return -F.binary_cross_entropy_with_logits(logits, target.float(), reduction="none").sum(1)
    return -F.cross_entropy(logits, target, reduction="none")


def domain_likeness(
    features: Float[Tensor, "example feature"], trusted: Bool[Tensor, " example"]
) -> Float[Tensor, " example"]:
    """Log odds that an example is one of the trusted and not of the rest, by a head to which both together weigh the same.

    Args:
        features: Feature vectors of all examples.
        trusted: Which examples are trusted.

    Raises:
        MethodError: All examples are trusted.

    >>> domain_likeness(torch.tensor([[0.0], [0.1], [5.0], [0.2]]), torch.tensor([1, 1, 0, 0], dtype=torch.bool)).argmin()
    tensor(2)
    """
    if bool(trusted.all()):
        raise MethodError(
            "All training examples are trusted, so that there is nothing to part them from.", "Trust fewer."
        )
    x = _scaled(features)
    share = trusted.double().mean()
    weight = torch.where(trusted, 0.5 / share, 0.5 / (1 - share))
    W, b = logistic(x, trusted.long(), weight, DOMAIN)
    W, b = W.float(), b.float()
    return x @ (W[:, 1] - W[:, 0]) + (b[1] - b[0])


def _scaled(features: Float[Tensor, "example feature"]) -> Float[Tensor, "example feature"]:
    """Features with a mean square of one, so that a penalty means the same whatever model they are of."""
    scale = features.float().square().mean().sqrt()
    return features.float() / scale.clamp(min=torch.finfo(torch.float32).tiny)


@method(
    "select", "dfn", higher="its label is likelier to a head fitted to the trusted examples",
    needs=[Features(), Target(), Trusted(), Budget(), Random()], source=FANG,
)  # fmt: skip
def dfn(
    features: Float[Tensor, "example feature"], target: Tensor, trusted: Bool[Tensor, " example"], budget: int,
    generator: torch.Generator,
) -> Picks:  # fmt: skip
    """Examples whose label fits what they look like, by a small filter that was fitted to trusted examples.

    Hard examples rank low along with wrong ones, and examples of a class that no trusted one is of rank last. Trusted examples are
    ranked as all the others are.

    >>> features = torch.tensor([[-2.0], [-1.0], [1.0], [2.0], [1.5]])
    >>> trusted = torch.tensor([1, 1, 1, 1, 0], dtype=torch.bool)
    >>> dfn(features, torch.tensor([0, 0, 1, 1, 0]), trusted, 4, torch.Generator()).order.sort().values
    tensor([0, 1, 2, 3])
    """
    value = pair_quality(features, target, trusted)
    unknown = 0
    if target.ndim == 1 and not target.is_floating_point():
        known = torch.bincount(target[trusted], minlength=int(target.max()) + 1) > 0
        unknown = int((~known[target]).sum())
    note = f"{unknown:,} examples are of classes without a trusted example and rank last." if unknown else ""
    return Picks(ranked(value, budget, generator), value=value, note=note)


@method(
    "select", "dfn-domain", higher="looks like the trusted examples rather than like the rest",
    needs=[Features(), Trusted(), Budget(), Random()], source=f"{FANG}: the binary filter",
)  # fmt: skip
def dfn_domain(
    features: Float[Tensor, "example feature"], trusted: Bool[Tensor, " example"], budget: int, generator: torch.Generator
) -> Picks:  # fmt: skip
    """Examples that look like the trusted ones, by a head that parts these from the rest of the pool; reads no labels.

    >>> features = torch.tensor([[0.0], [0.1], [5.0], [0.2]])
    >>> dfn_domain(features, torch.tensor([1, 1, 0, 0], dtype=torch.bool), 3, torch.Generator()).order.sort().values
    tensor([0, 1, 3])
    """
    value = domain_likeness(features, trusted)
    return Picks(ranked(value, budget, generator), value=value)
