"""The torch side of each family: a batch in, latents and named loss terms out."""

from unbraid.module._base import InnerLoop, Kind, Latents, Peers, SplitModule, Stage, on_present_rows, total_loss
from unbraid.module._clustered_vae import ClusteredVAE, DualLevelVAE
from unbraid.module._conditional import ConditionalContrast, ConditionalModule
from unbraid.module._contrastive import ContrastiveModule
from unbraid.module._deep_clustering import DeepClustering
from unbraid.module._disentangled_vae import DisentangledVAE
from unbraid.module._independence import Independence, independence_weights
from unbraid.module._linear import LinearModule
from unbraid.module._multimodal_vae import MultimodalVAE
from unbraid.module._views import JointModule, ViewsModule

__all__ = [
    "ClusteredVAE",
    "ConditionalContrast",
    "ConditionalModule",
    "ContrastiveModule",
    "DeepClustering",
    "DisentangledVAE",
    "DualLevelVAE",
    "Independence",
    "InnerLoop",
    "JointModule",
    "Kind",
    "Latents",
    "LinearModule",
    "MultimodalVAE",
    "Peers",
    "SplitModule",
    "Stage",
    "independence_weights",
    "ViewsModule",
    "on_present_rows",
    "total_loss",
]
