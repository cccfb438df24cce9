"""Corpora: open a training set, give its examples ids that stay, and edit it into new versions."""

from imprint.corpus.corpus import Corpus
from imprint.corpus.edits import Edit
from imprint.corpus.opening import open
from imprint.corpus.roles import Roles

__all__ = ["Corpus", "Edit", "Roles", "open"]
