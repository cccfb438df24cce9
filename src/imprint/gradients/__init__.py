"""Per-example gradients as evidence: captured in factored form, multiplied, projected, and kept in a run."""

from imprint.gradients.capture import Capture, capture
from imprint.gradients.examples import Examples
from imprint.gradients.layer import LayerGradient
from imprint.gradients.products import full, products, squared_norms
from imprint.gradients.projected import Projected
from imprint.gradients.projections import Projection
from imprint.gradients.recording import next_token, project
from imprint.gradients.token_scores import direction, token_scores

__all__ = [
    "Capture",
    "Examples",
    "LayerGradient",
    "Projected",
    "Projection",
    "capture",
    "direction",
    "full",
    "next_token",
    "products",
    "project",
    "squared_norms",
    "token_scores",
]
