"""Integrations: callbacks that record trainings of other frameworks. Each needs its framework only when imported."""
