"""Models: encoders that turn columns into tensors, and the modules that are trained on these.

>>> encoder = encoder_for(corpus, "auto").fit(corpus, corpus.rows("train"))                                 # doctest: +SKIP
>>> module = module_for("auto", encoder.shape, width=2, seed=0, normalisation=encoder.normalisation)       # doctest: +SKIP
"""

from __future__ import annotations

from imprint.models.choice import encoder_for, resolve, solver_of
from imprint.models.encoder import Encoder, load_encoder
from imprint.models.estimator import Estimator, is_estimator, require_network
from imprint.models.features import features
from imprint.models.frozen import Frozen
from imprint.models.modules import module_for

__all__ = [
    "Encoder",
    "Estimator",
    "Frozen",
    "encoder_for",
    "features",
    "is_estimator",
    "load_encoder",
    "module_for",
    "require_network",
    "resolve",
    "solver_of",
]
