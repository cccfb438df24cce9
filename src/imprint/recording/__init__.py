"""Recording: a training on disk (`Run`), how it is made (`fit`, `watch`) and opened (`load`)."""

from imprint.recording.fit import fit
from imprint.recording.model import Model
from imprint.recording.run import Run, load
from imprint.recording.watch import Watch, watch

__all__ = ["Model", "Run", "Watch", "fit", "load", "watch"]
