"""Newton's step to the head of the retained examples, with a proved bound on what is left to it.

A solved head minimises `F(W, b) = sum_i w_i loss_i / S + decay/2 |W|^2` (for ridge: squared errors and `decay |W|^2`), which is strongly
convex in the weights with modulus `mu` = decay (ridge: 2 decay). With the intercepts at their best for these weights, their gradient
vanishes, and strong convexity gives

    mu |W - W*|^2  <=  <grad_W F(W, b), W - W*>      and so      |W - W*|  <=  |grad_W F(W, b)| / mu

for the only minimum W* of the examples that are left, whatever led to W. The gradient is computed over all of them, in float64; what
rounding to the module's float32 adds is measured and added. So the bound does not rest on the step having been a good one.
(Guo et al. 2020, arXiv:1911.03030, bound the same residual in advance, and add noise that hides it; nothing is hidden here.)
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from imprint.errors import MethodError
from imprint.fitting.heads import head, put
from imprint.fitting.logistic import LEAST_DECAY, Problem, principal
from imprint.fitting.ridge import penalty
from imprint.forgetting.analytic import design, weight, without
from imprint.forgetting.controls import ENCODER
from imprint.forgetting.job import Forgetting, Forgotten
from imprint.methods import method
from imprint.models import solver_of
from imprint.recording.fit import MOMENTS

# Newton's steps for the intercepts, whose gradient has to vanish; they double the digits each.
INTERCEPT_STEPS = 30
# How far the conjugate gradients go for a step, as a share of its gradient.
ACCURACY = 1e-3


@method(
    "forget",
    "newton",
    higher="forgets more",
    needs=(),
    source="Guo et al. 2020, arXiv:1911.03030",
    tasks=("classification", "multilabel", "regression"),
    exact=False,
)
def newton(job: Forgetting, *, steps: int = 2) -> Forgotten:
    """Newton's steps of a ridge or logistic head to the minimum without the examples, with a proved bound on the distance left.

    Serves solved heads (`model="ridge"` or "logistic", also behind a frozen backbone). The bound is on the weights of the head, stands in
    `guarantee` and holds whatever the number of steps; each squares what the one before left. A ridge head is there after one.
    """
    solver = solver_of(job.learner.model)
    if solver is None:
        raise MethodError(
            f"'newton' needs an objective with one minimum, and this run trained {job.learner.model!r}.",
            "Fit with Learner(model='logistic') or 'ridge', or choose another method.",
        )
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise MethodError(f"steps={steps!r} is not a whole number above 0.", "Take 1 or 2.")
    before = head(job.module)
    W, b = before.weight.detach().double().T.cpu(), before.bias.detach().double().cpu()
    evidence = None
    if solver == "logistic":
        W, b, gradient, modulus = logistic_steps(job, W, b, steps)
    else:
        left, _ = without(job)
        if left is None:
            raise MethodError(
                "The head has more features than examples, and the run keeps no moments.", "Use method='analytic'."
            )
        decay = float(job.learner.weight_decay or 0.0)
        W, b = left.head(decay)
        m = left.moments
        square = m.square - torch.outer(m.inputs, m.inputs) / m.total
        alpha = penalty(torch.tensor(decay).to(square), m.total, square.diagonal().sum(), len(square))
        cross = m.cross - torch.outer(m.inputs, m.target) / m.total
        gradient = float(2 * (square @ W + alpha * W - cross).norm() / m.total)
        modulus = float(2 * alpha / m.total)
        evidence = {MOMENTS: left.tensors()}
    put(job.module, W, b)
    rounded = float((head(job.module).weight.detach().double().T.to(W.device) - W).norm())
    bound = gradient / modulus + rounded
    guarantee = (
        f"Proved: the weights are within {bound:.1e} of the only minimum of the objective without the examples (its gradient is "
        f"{gradient:.1e} where it is {modulus:g}-strongly convex; rounding adds {rounded:.0e}); their own norm is {float(W.norm()):.3g}. "
        f"{ENCODER}"
    )
    measured = {"gradient": gradient, "modulus": modulus, "rounding": rounded, "bound": bound}
    return Forgotten(job.module.eval(), False, guarantee, trained=steps, measured=measured, evidence=evidence)


def logistic_steps(
    job: Forgetting, W: Float[Tensor, "feature output"], b: Float[Tensor, " output"], steps: int
) -> tuple[Float[Tensor, "feature output"], Float[Tensor, " output"], float, float]:
    """Weights, intercepts, norm of the weights' gradient and modulus of convexity after some steps from the parent's head."""
    part, features = job.retain, design(job, job.retain)
    weights = weight(job, part)
    weights = torch.ones(len(part), dtype=torch.float64, device=features.device) if weights is None else weights
    space = principal(features, weights)
    target = part.target.to(features.device)
    decay = max(float(job.learner.weight_decay or 0.0), LEAST_DECAY)
    problem = Problem.of(
        space.design, target[:, None], weights[:, None], torch.tensor([decay]).to(weights), job.task.width
    )
    W, b = W.to(features.device), b.to(features.device)
    found = torch.cat([(b + space.origin @ W)[None], W if space.basis is None else space.basis.T @ W])[:, None]
    found = found.masked_fill(problem.absent, 0)
    point = problem.at(found)
    for _ in range(steps):
        norm = point.gradient.square().sum((0, 2)).sqrt()
        step = problem.newton(point, torch.full_like(norm, ACCURACY, dtype=torch.float32))
        found, point, _ = problem.search(found, point, norm, step)
    found[0, 0] = intercepts(problem, found)
    gradient = float(problem.at(found).gradient[1:].norm())
    heads, constants = space.heads(problem.closed(found))
    return heads[0], constants[0], gradient, decay


def intercepts(problem: Problem, heads: Float[Tensor, "column 1 output"]) -> Float[Tensor, " output"]:
    """The best intercepts for these weights: their gradient vanishes to rounding."""
    w, y = problem.weight[:, 0], problem.target[:, 0]
    absent, several = problem.absent[0], y.ndim == 2
    fixed, best = problem.design[:, 1:] @ heads[1:, 0], heads[0, 0].clone()
    seen = y.double() if several else torch.nn.functional.one_hot(y, fixed.shape[1]).double()
    seen = w @ seen
    least = torch.inf
    for _ in range(INTERCEPT_STEPS):
        logits = fixed + best
        p = logits.sigmoid() if several else logits.masked_fill(absent, -torch.inf).softmax(1)
        gradient = (w @ p - seen).masked_fill(absent, 0)
        norm = float(gradient.norm())
        if norm >= least / 2 and norm < 1e-12:
            break
        least = min(least, norm)
        bent = torch.diag(w @ (p * (1 - p))) if several else torch.diag(w @ p) - p.T @ (p * w[:, None])
        bent[absent] = 0
        bent[:, absent] = 0
        step = torch.linalg.pinv(bent, hermitian=True) @ gradient
        best = best - step * min(1.0, 2.0 / max(float(step.abs().max()), 1e-300))
    return best
