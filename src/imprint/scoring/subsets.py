"""Scores from fleets: how the models that saw an example differ from those that did not.

A fleet is trained once on random subsets and kept with the run; every method here (and every trace method that needs subsets) reads
the same 64 models, so that asking a second one costs nothing. Each example is in each subset by a coin of its own at one half: that is
the definition of the Banzhaf value, and for a difference of two means a half is also the share at which a given number of models
says most (Feldman and Zhang take 0.7, which keeps the models nearer to that of all data and leaves fewer of them without the example).

`[member, example]` in, `[example]` out.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from imprint.methods import method
from imprint.recording.needs import BagCounts, Bags, Membership, Subsets, Utility


def difference(
    values: Float[Tensor, "member #example"], membership: Bool[Tensor, "member example"]
) -> Float[Tensor, " example"]:
    """Mean value over the members that saw the example less the mean over those that did not, in float64.

    Where all members saw it, or none did, there is nothing to compare: the difference is 0, which speaks neither for nor against the
    example. With 64 members and fair coins that happens to one example in 10^19, with 8 members to one in 128.

    >>> difference(torch.tensor([[1.0], [3.0], [5.0]]), torch.tensor([[True, True], [True, True], [False, True]]))
    tensor([-3.,  0.], dtype=torch.float64)
    """
    saw = membership.double()
    values = values.double().expand_as(saw)
    seen = saw.sum(0)
    unseen = len(saw) - seen
    total, with_it = values.sum(0), (values * saw).sum(0)
    found = with_it / seen.clamp(min=1) - (total - with_it) / unseen.clamp(min=1)
    return torch.where((seen > 0) & (unseen > 0), found, 0.0)


@method(
    "score", "memorisation", higher="more memorised", needs=[Subsets("confidence"), Membership()],
    tasks=["classification", "multilabel"], source="Feldman 2020, arXiv:1906.05271; Feldman, Zhang 2020, arXiv:2008.03703",
)  # fmt: skip
def memorisation(
    confidence: Float[Tensor, "member example"], membership: Bool[Tensor, "member example"]
) -> Float[Tensor, " example"]:
    """Probability given to the example's own label by models that saw it, less that by models that did not; at most 1.

    Near 1: only models that saw the example know its label (a rare example, or a wrong label). Near 0: they say the same either
    way. The definition speaks of the probability that a trained model predicts the label; here the model's own probability of it
    stands for whether its largest output hits, which has the same meaning and varies less from model to model (it ranks planted
    label errors a little better: benchmarks/memorisation.py). Multilabel: the geometric mean over labels. The models must fit what
    they saw: of a training that stops before that it says little.

    Do not use it to tell rare from wrong: both are memorised. An example that was in no subset or in all of them gets 0.

    >>> memorisation(torch.tensor([[1.0, 0.9], [0.2, 0.9]]), torch.tensor([[True, True], [False, False]]))
    tensor([0.8000, 0.0000])
    """
    return difference(confidence, membership).float()


@method(
    "score", "banzhaf", higher="more valuable", needs=[Utility(), Membership()],
    source="Wang, Jia 2023 (maximum sample reuse), arXiv:2205.15466",
)  # fmt: skip
def banzhaf(utility: Float[Tensor, " member"], membership: Bool[Tensor, "member example"]) -> Float[Tensor, " example"]:
    """Held-out metric of models that saw the example, less that of models that did not (Banzhaf value; float64).

    The metric is the task's headline one (accuracy, F1, R2) on the validation split if there is one, else on the test split; below
    zero: models are better without the example. The mean over all subsets is the Banzhaf value; over sampled ones it is its
    maximum-sample-reuse estimate, whose standard error, 2 sd(metric) / sqrt(members), is the same for every example and can only be
    beaten by more members: compare it with the spread of the scores before reading a ranking.

    >>> banzhaf(torch.tensor([0.5, 0.7, 0.9]), torch.tensor([[False], [False], [True]]))
    tensor([0.3000], dtype=torch.float64)
    """
    return difference(utility[:, None], membership)


@method(
    "score", "data-oob", higher="easier", needs=[Bags("credit"), BagCounts()],
    source="Kwon, Zou 2023, arXiv:2304.07718",
)  # fmt: skip
def data_oob(
    credit: Float[Tensor, "member example"], counts: Int[Tensor, "member example"]
) -> Float[Tensor, " example"]:
    """How well models of bootstrap samples that did not draw the example predict it, on average (out of bag).

    Classification: the share of them that is right. Regression: 1 less their mean squared error, in squared standard deviations of
    the target (the paper's value plus 1, which turns its mean over the examples into the out-of-bag R2). Multilabel: their mean F1.
    Low values mark wrong and rare labels. It needs no held-out split. An example that every sample drew (with 64 samples: one in 10^12)
    has no such model and gets the mean of those that drew it, which flatters it.

    >>> data_oob(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), torch.tensor([[0, 2], [0, 0], [1, 0]]))
    tensor([0.5000, 1.0000])
    """
    out = (counts == 0).double()
    out = torch.where(out.any(0), out, 1.0)
    return ((credit * out).sum(0) / out.sum(0)).float()
