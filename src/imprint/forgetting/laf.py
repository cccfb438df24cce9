"""Label-agnostic forgetting: representations of the forgotten examples leave the place that they had, and no label is read.

Two small variational autoencoders learn what representations look like: one those of all training examples, one those of the forgotten.
Then two steps take turns. One moves the representations so that the first autoencoder knows the retained ones and the second no longer
the forgotten ones; it may fade, as each term lies between 1 and e:

    mean of exp(m / (1 + m)) of the retained  -  the same of the forgotten,      m = squared error of the autoencoder

The other brings the retained ones back to where the parent has them, and keeps the forgotten ones away from theirs (d = 1 - cosine):

    mean over the retained of d  -  log of the sum over the forgotten of exp(d / temperature)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from imprint.errors import MethodError
from imprint.fitting import derive
from imprint.forgetting.descent import NONE
from imprint.forgetting.job import Forgetting, Forgotten, Part
from imprint.forgetting.stepping import (
    Share,
    Steps,
    batch_size,
    blocks,
    cycled,
    epochs_of,
    rate_of,
    steps_of,
    teacher_of,
    united,
    weights,
    within,
)
from imprint.methods import method
from imprint.models.features import last_input

# Of the autoencoders, as in the authors' code: passes, learning rate, weight of the divergence from the prior, width of the hidden layers.
PASSES, AUTO_RATE, PRIOR, HIDDEN = 10, 1e-3, 0.025, (128, 32)
# Few examples are passed over until this many steps are taken: an autoencoder that has learned nothing leads nowhere.
LEAST_STEPS = 100
# Rate of the first step in units of that of the second.
EXTRACT = 0.5
SEARCH = {
    "learning_rate": (Share(1.0), Share(0.3), Share(0.1)),
    "epochs": (20, 5),
    "temperature": (5.0, 20.0),
    "repair": (0, 1),
}


class Autoencoder(nn.Module):
    """A variational autoencoder of representations.

    Its output is linear: the authors' sigmoid can say nothing of representations beyond [0, 1].

    Args:
        width: Numbers in a representation.
        latent: Numbers in its code.
    """

    def __init__(self, width: int, latent: int) -> None:
        super().__init__()
        wide, narrow = HIDDEN
        self.encode = nn.Sequential(nn.Linear(width, wide), nn.ReLU(), nn.Linear(wide, narrow), nn.ReLU())
        self.code = nn.Linear(narrow, 2 * latent)
        self.decode = nn.Sequential(
            nn.Linear(latent, narrow), nn.ReLU(), nn.Linear(narrow, wide), nn.ReLU(), nn.Linear(wide, width)
        )

    def forward(
        self, features: Float[Tensor, "example d"], random: bool = True
    ) -> tuple[Float[Tensor, "example d"], Float[Tensor, " example"]]:
        """(what comes back, divergence of the code from a standard normal in nats); without chance, of the mean code."""
        mean, log = self.code(self.encode(features)).chunk(2, 1)
        drawn = mean + torch.exp(0.5 * log) * torch.randn_like(log) if random else mean
        return self.decode(drawn), 0.5 * (log.exp() + mean.square() - 1 - log).sum(1)


@method(
    "forget", "laf", higher="forgets more", needs=(), exact=False, search=SEARCH,
    source="Shen et al. 2024, openreview.net/forum?id=SIZWiya7FE, github.com/ShaofeiShen768/LAF",
)  # fmt: skip
def laf(
    job: Forgetting,
    *,
    latent: int = 8,
    temperature: float = 5.0,
    repair: int = 0,
    epochs: int = 20,
    learning_rate: float | None = None,
) -> Forgotten:
    """Move the forgotten examples' representations away and hold those of the others, without a label (LAF).

    Args:
        job: The request.
        latent: Numbers in a code of the autoencoders; 8 for the authors' small networks, 16 for ResNets.
        temperature: Of the distances of the forgotten; the authors take 5 or 20. The lower, the more they count.
        repair: Passes over the retained examples that the output layer is trained for at the end, with labels (LAF+R); 0 for none.
        epochs: Passes over the forgotten examples, each beside as many retained ones.
        learning_rate: Of what holds; what moves has half of it. None for the parent's peak, as with the authors.

    Raises:
        MethodError: The model has no hidden representation.
    """
    temperature = within("temperature", temperature, 0, 1e6, open_low=True)
    rate = rate_of(job, learning_rate, share=1.0)
    count = epochs_of(job, epochs)
    for name, value, least in (("latent", latent, 1), ("repair", repair, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise MethodError(f"{name}={value!r} is not a whole number from {least}.", f"Give {least} or more.")
    weights(job)
    check_hidden(job)
    teacher = teacher_of(job)
    total = count * steps_of(job, job.forget)
    # An optimizer for each, as with the authors: each has its own idea of how large its gradients are.
    move, hold = Steps(job, EXTRACT * rate, total, decay=0.0), Steps(job, rate, total, decay=0.0)
    every, gone = (
        autoencoder(job, part, latent, purpose)
        for part, purpose in ((united(job.forget, job.retain), "all"), (job.forget, "forgotten"))
    )
    job.module.eval()
    kept = cycled(job, job.retain)
    for epoch in range(count):
        for forgotten in blocks(job, job.forget, epoch):
            retained = next(kept)
            here, there = hidden(job, retained.inputs), hidden(job, forgotten.inputs)
            move(unlike(every, here).mean() - unlike(gone, there).mean())
            with torch.no_grad():
                before = [hidden(job, one.inputs, teacher) for one in (retained, forgotten)]
            near = apart(hidden(job, retained.inputs), before[0]).mean()
            far = torch.logsumexp(apart(hidden(job, forgotten.inputs), before[1]) / temperature, 0)
            hold(near - far)
        move.check()
        hold.check()
    done = move.close() + hold.close()
    if repair:
        done += repaired(job, repair, rate)
    return Forgotten(job.module.eval(), False, NONE, done)


def hidden(job: Forgetting, inputs: Tensor, module: nn.Module | None = None) -> Float[Tensor, "example d"]:
    """The representation of examples: what goes into the last linear layer, with gradients."""
    used = job.module if module is None else module
    return last_input(used, lambda: job.forward(inputs, used)).flatten(1).float()


def unlike(auto: Autoencoder, features: Float[Tensor, "example d"]) -> Float[Tensor, " example"]:
    """How little an autoencoder knows representations: from 1 (they come back as they are) to e."""
    back, _ = auto(features, random=False)
    error = (back - features).square().sum(1)
    return torch.exp(error / (error + 1))


def apart(one: Float[Tensor, "example d"], other: Float[Tensor, "example d"]) -> Float[Tensor, " example"]:
    """1 - cosine of the angle between representations."""
    return 1 - F.cosine_similarity(one, other, dim=1)


def autoencoder(job: Forgetting, part: Part, latent: int, purpose: str) -> Autoencoder:
    """An autoencoder of the representations of a part by the parent."""
    with torch.no_grad():
        features = torch.cat([hidden(job, part.inputs(some).to(job.device)) for some in torch.split(part.places, 1024)])
    with torch.random.fork_rng([job.device] if job.device.type == "cuda" else []):
        torch.manual_seed(derive(job.seed, "forget", "autoencoder", purpose))
        auto = Autoencoder(features.shape[1], latent).to(job.device)
        optimizer = torch.optim.Adam(auto.parameters(), lr=AUTO_RATE)
        for _ in range(max(PASSES, -(-LEAST_STEPS // steps_of(job, part)))):
            for chosen in torch.split(torch.randperm(len(features), device=job.device), batch_size(job)):
                back, divergence = auto(features[chosen])
                loss = ((back - features[chosen]).square().sum(1) + PRIOR * divergence).mean()
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
    return auto.eval().requires_grad_(False)


def repaired(job: Forgetting, epochs: int, rate: float) -> int:
    """Train the output layer on the retained examples; the number of steps."""
    head = [one for one in job.module.modules() if isinstance(one, nn.Linear)][-1]
    steps = Steps(
        job, rate, epochs * steps_of(job, job.retain), [one for one in head.parameters() if one.requires_grad]
    )
    for epoch in range(epochs):
        for block in blocks(job, job.retain, epoch):
            steps(block.mean(job.loss(job.forward(block.inputs), block.target)))
        steps.check()
    return steps.close()


def check_hidden(job: Forgetting) -> None:
    """Raise `MethodError` if a model's representation does not depend on weights that are trained."""
    few = job.forget.inputs(job.forget.places[:2]).to(job.device)
    if not hidden(job, few).requires_grad:
        raise MethodError(
            f"The model of {job.run.path} is linear in its inputs: it has no representation that could be moved.",
            "Choose method='newton', 'analytic' or 'fine-tune'.",
        )
