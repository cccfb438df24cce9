"""Imprint: what every training example does to your model; find it, act on it, prove it by retraining.

The public names load on first use, so that `import imprint` stays fast and works without the optional parts.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Public name -> module that holds it.
_EXPORTS = {
    "Corpus": "imprint.corpus",
    "open": "imprint.corpus",
    "Learner": "imprint.fitting",
    "Run": "imprint.recording",
    "fit": "imprint.recording",
    "load": "imprint.recording",
    "watch": "imprint.recording",
    "Fleet": "imprint.fleets",
    "fleet": "imprint.fleets",
    "score": "imprint.scoring",
    "clean": "imprint.cleaning",
    "trace": "imprint.tracing",
    "select": "imprint.selecting",
    "Selection": "imprint.answers",
    "forget": "imprint.forgetting",
    "erase": "imprint.forgetting",
    "Attribution": "imprint.answers",
    "verify": "imprint.verifying",
    "compare": "imprint.verifying",
    "Comparison": "imprint.answers",
    "price": "imprint.auditing",
    "audit": "imprint.auditing",
    "ImprintError": "imprint.errors",
}
__all__ = [
    "Attribution", "Comparison", "Corpus", "Fleet", "ImprintError", "Learner", "Run", "Selection", "audit", "clean", "compare", "erase",
    "fit", "fleet", "forget", "load", "open", "price", "score", "select", "trace", "verify", "watch",
]  # fmt: skip

if TYPE_CHECKING:
    from imprint.answers import Attribution, Comparison, Selection
    from imprint.auditing.audit import audit
    from imprint.auditing.price import price
    from imprint.cleaning import clean
    from imprint.corpus import Corpus, open
    from imprint.errors import ImprintError
    from imprint.fitting import Learner
    from imprint.fleets.fleet import Fleet, fleet
    from imprint.forgetting import erase, forget
    from imprint.recording import Run, load
    from imprint.recording.fit import fit
    from imprint.recording.watch import watch
    from imprint.scoring import score
    from imprint.selecting import select
    from imprint.tracing import trace
    from imprint.verifying import compare, verify


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    if f"imprint.{name}" in _EXPORTS.values():  # imprint.cleaning.overlap(run) without an import of its own
        return importlib.import_module(f"imprint.{name}")
    raise AttributeError(f"module 'imprint' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
