"""The models: one file per method, each after its paper's method section."""

from unbraid.model import base
from unbraid.model._cidec import CIDEC
from unbraid.model._clip import CLIP
from unbraid.model._cmvae import CMVAE
from unbraid.model._comm import CoMM
from unbraid.model._dcgmm import DCGMM
from unbraid.model._disentangled_ssl import DisentangledSSL
from unbraid.model._dl2 import DL2
from unbraid.model._dmvae import DMVAE
from unbraid.model._factor_cl import FactorCL
from unbraid.model._factorized_cl import FactorizedCL
from unbraid.model._focal import FOCAL
from unbraid.model._idmvae import IDMVAE
from unbraid.model._indiseek import IndiSeek
from unbraid.model._info_disen import InfoDisen
from unbraid.model._joint_opt import JointOpt
from unbraid.model._linear_split import LinearSplit
from unbraid.model._mmvae import MMVAE
from unbraid.model._mmvae_plus import MMVAEPlus
from unbraid.model._mopoe_vae import MoPoEVAE
from unbraid.model._sdec import SDEC
from unbraid.model._swap_vae import SwapVAE
from unbraid.model._unbraid import Unbraid
from unbraid.model._unbraid_report import UnbraidReport
from unbraid.model._vade import VaDE
from unbraid.model._vol_max_dcc import VolMaxDCC

__all__ = [
    "CIDEC",
    "CLIP",
    "CMVAE",
    "CoMM",
    "DCGMM",
    "DL2",
    "DMVAE",
    "DisentangledSSL",
    "FOCAL",
    "FactorCL",
    "FactorizedCL",
    "IDMVAE",
    "IndiSeek",
    "InfoDisen",
    "JointOpt",
    "LinearSplit",
    "MMVAE",
    "MMVAEPlus",
    "MoPoEVAE",
    "SDEC",
    "SwapVAE",
    "Unbraid",
    "UnbraidReport",
    "VaDE",
    "VolMaxDCC",
    "base",
]
