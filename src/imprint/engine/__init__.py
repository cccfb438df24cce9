"""Where the work of collecting evidence is done: in this process, or as tasks of a Ray cluster."""

from imprint.engine.engine import LOCAL, Engine, engine_of

__all__ = ["LOCAL", "Engine", "engine_of"]
