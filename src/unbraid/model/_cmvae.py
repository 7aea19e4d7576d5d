"""CMVAE: a shared latent with clusters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from unbraid._messages import check_whole
from unbraid.model.base import ClusterMixin, GenerativeModel
from unbraid.module import ClusteredVAE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mudata import MuData

    from unbraid.module._networks import Networks


class CMVAE(ClusterMixin, GenerativeModel):
    r"""Clustering multimodal variational autoencoder: :class:`MMVAEPlus` with a mixture prior on the shared latent.

    .. math:: p(z) = \sum_c \pi_c\, p(z \mid c) ,

    components with learned means and weights and a fixed scale [1]_. A cell's cluster is the largest of
    the mean over its modalities of :math:`p(c \mid \mathbb E\, q(z \mid x_m))`; ``predict_cluster(vote=True)`` is the vote
    of the paper.

    Parameters
    ----------
    mdata
        MuData registered by :meth:`setup_mudata`.
    n_shared, n_specific
        Dimensions of z and of every :math:`w_m`.
    n_clusters
        Components of the mixture. If the number of clusters is not known, take too many, and
        :meth:`choose_n_clusters` after training.
    place_clusters
        Put the components where k-means finds clusters of the posterior means, after the first stage of training
        (``"warmup"``) and at the end. False learns them by gradients alone, in one stage, as published: components may
        then end up empty, or several in one cluster.
    encoders, decoders
        ``"mlp"``, ``"resnet"``, ``"text"``, a :class:`torch.nn.Module`, or one of them per modality.
    beta
        Weight of the divergences.
    estimator, n_importance
        As of :class:`MMVAEPlus`.
    registry
        Registry of a saved model, to load it without data.
    **options
        Of all generative models: see :class:`~unbraid.model.base.GenerativeModel`.

    Raises
    ------
    ValueError
        If an option has no such value.

    Notes
    -----
    Clusters follow what varies most in z, which need not be what one has in mind: :class:`DL2` lets pairs of cells say.
    The diffusion decoders of the paper's second stage are not part of this model.

    References
    ----------
    .. [1] Palumbo et al. Deep generative clustering with multimodal diffusion variational autoencoders. ICLR 2024.

    Examples
    --------
    >>> mdata = ub.data.simulate.citeseq(n_obs=500)
    >>> ub.model.CMVAE.setup_mudata(mdata, batch_key="batch")
    >>> model = ub.model.CMVAE(mdata, n_shared=16, n_specific=16, n_clusters=8)
    >>> model.train()
    >>> mdata.obs["cluster"] = model.predict_cluster()
    """

    _needs_specific = True
    _module_cls = ClusteredVAE

    def __init__(
        self,
        mdata: MuData | None = None,
        n_shared: int = 32,
        n_specific: int = 32,
        n_clusters: int = 10,
        encoders: Networks = "mlp",
        decoders: Networks = "mlp",
        *,
        place_clusters: bool = True,
        beta: float = 1.0,
        estimator: str = "elbo",
        n_importance: int = 1,
        registry: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(mdata, registry)
        check_whole("n_clusters", n_clusters, 2)
        self.module = self._build_module(
            n_shared,
            n_specific,
            n_clusters=n_clusters,
            place_clusters=place_clusters,
            encoders=encoders,
            decoders=decoders,
            beta=beta,
            estimator=estimator,
            n_importance=n_importance,
            **{"posterior": "laplace", "posterior_scale": "softmax", **options},
        )
        self._finish(locals())

    @torch.no_grad()
    def choose_n_clusters(self, mdata: MuData | None = None, *, indices: Sequence[int] | None = None) -> pd.Series:
        r"""Leave out one cluster after the other, the smallest first, and keep the number that serves best.

        With :math:`H` the entropy of :math:`p(c \mid z)` at posterior means, over all cells and modalities, the number
        K with the least

        .. math:: h(K) = \mathbb E \Big[ \beta \frac{H}{\log K} - \frac{1}{d} \log p(z) \Big]

        is kept (the paper's entropy-based choice): few cells are between clusters, and z is likely. What was left out is never
        predicted or sampled again, and stays out if training goes on. At least two are kept.

        Parameters
        ----------
        mdata
            Cells; those of the set-up by default.
        indices
            Cells, by number, by name or as a mask; all by default.

        Returns
        -------
        h by number of clusters, for pandas or a plot.
        """
        found = []
        for batch in self._batches(mdata, indices):
            log_joint, present = self.module.mixture_log_joint(batch), self.module.present(batch)
            found.append(log_joint[present])
        mixture = self.module.mixture
        log_joint, kept = torch.cat(found).double(), mixture.kept.clone()
        steps = {}
        while kept.sum() > 1:
            weight = mixture.log_weights[kept].double().logsumexp(0)  # of what is left, to be 1
            each = log_joint[:, kept] - weight
            n, probabilities = each.shape[1], each.softmax(1)
            entropy = torch.special.entr(probabilities).sum(1) / (np.log(n))
            h = self.module.beta * entropy - each.logsumexp(1) / mixture.means.shape[1]
            steps[n] = float(h.mean()), kept.clone()
            smallest = probabilities.sum(0).argmin()
            kept[kept.nonzero()[smallest]] = False
        best = min(steps, key=lambda n: steps[n][0])
        mixture.kept.copy_(steps[best][1])
        return pd.Series({n: h for n, (h, _) in steps.items()}, name="h").rename_axis("n_clusters")
