"""Measures of what an embedding holds. They take any embedding, whichever model made it."""

from unbraid.metrics._probe import ProbeResult, probe

__all__ = ["ProbeResult", "probe"]
