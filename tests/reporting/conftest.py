"""The tests of the report import two neighbours of theirs, which the benchmark of its screens uses too."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
