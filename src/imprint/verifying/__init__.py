"""Verifying: hold an answer against models that were trained as if one had acted on it."""

from imprint.verifying.edits import verify
from imprint.verifying.interval import crossed_interval

__all__ = ["crossed_interval", "verify"]
