"""Simulated paired data whose shared and specific parts are known, each a MuData that keeps its truth."""

from unbraid.data.simulate._citeseq import citeseq
from unbraid.data.simulate._classes import classes
from unbraid.data.simulate._disentangled_ssl import disentangled_ssl, disentangled_ssl_mixed
from unbraid.data.simulate._drug_screen import drug_screen
from unbraid.data.simulate._indiseek import indiseek
from unbraid.data.simulate._nonlinear import nonlinear
from unbraid.data.simulate._two_factors import two_factors

__all__ = [
    "citeseq",
    "classes",
    "disentangled_ssl",
    "disentangled_ssl_mixed",
    "drug_screen",
    "indiseek",
    "nonlinear",
    "two_factors",
]
