"""DL2: a shared latent of which pairs of cells say what part is the task's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unbraid._messages import check_whole
from unbraid.model.base import ClusterMixin, GenerativeModel
from unbraid.module import DualLevelVAE

if TYPE_CHECKING:
    from mudata import MuData

    from unbraid.module._clustered_vae import MustLink
    from unbraid.module._networks import Networks


class DL2(ClusterMixin, GenerativeModel):
    r"""Dual-level disentanglement: shared from specific, and in the shared what a task is about from the rest.

    The shared latent is :math:`z = (z_t, z_r)`. :math:`z_t` has a mixture prior, whose components are clusters, and
    :math:`z_r` a simple one; with a :math:`w_m` per modality, the bound is that of :class:`CMVAE` (equations 2 and 3 of
    [1]_), :math:`q(z \mid X)` being the product of a mixture of experts of :math:`z_t` and one of :math:`z_r`. Pairs of
    cells say what the clusters are to be. Cells k and l that belong together are to each other what modalities are: the
    :math:`z_t` of one decodes the other (equation 5),

    .. math::
        \mathcal R_{PS} = \mathbb E \Big[ \sum_n \log p(x_n^l \mid z_t^k, \tilde z_r, \tilde w_n) + \log p(X^k \mid z_t^k,
        z_r^k, w^k) - \beta \log \frac{q(z_t^k \mid X^k, X^l)\, q(z_r^k \mid X^k)\, q(w^k \mid X^k)}{p(z_t^k)\, p(z_r^k)\,
        p(w^k)} \Big]

    (and with k and l exchanged), where :math:`\tilde z_r \sim f` and :math:`\tilde w_n \sim r_n` have a learned scale.
    Cells i and j that do not are rewarded for different components (equation 9),

    .. math:: \mathcal R_{NS} = \mathbb E \log \Big[ 1 - \sum_c p(c \mid z_t^i)\, p(c \mid z_t^j) \Big] .

    The loss is minus :math:`\mathcal L + \lambda \mathcal R_{PS} + \gamma \mathcal R_{NS}`, means over the pairs beside a
    batch.

    Parameters
    ----------
    mdata
        MuData registered by :meth:`setup_mudata`, with ``pairs_key`` if there are pairs; see
        :func:`unbraid.pp.pairs_from_labels`.
    n_task, n_residual, n_specific
        Dimensions of :math:`z_t`, :math:`z_r` and of every :math:`w_m`. ``n_residual=0`` is the paper's variant DL.
    n_clusters
        Components of the prior of :math:`z_t`.
    must_link_weight, cannot_link_weight
        :math:`\lambda` and :math:`\gamma`. The paper does not say which it used; its grids are 0 to 1 and 0 to 100.
    must_link
        ``"virtual_modality"``, :math:`\mathcal R_{PS}`; ``"common_cause"``, :math:`\log \sum_c p(c \mid z_t^k)\, p(c \mid
        z_t^l)` in its place, the paper's variant DL2*.
    pairs_per_batch
        Pairs of either kind beside every batch, at most.
    coupled
        Take :math:`q(z \mid X)` as the mixture over modalities of :math:`q(z_t \mid x_m)\, q(z_r \mid x_m)`, which both
        are drawn from, in place of the product of two mixtures.
    place_clusters
        As of :class:`CMVAE`, but that k-means measures distances by what varies little within must-links; False is as
        published.
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
        If an option has no such value or a weight is negative.

    Notes
    -----
    Equations 4, 5 and 44 of the preprint have misprints: every :math:`\tilde w_n` of the other cell is drawn from its own
    :math:`r_n`, the prior of :math:`z_t` counts once, and the fraction of equation 44 is that of equation 43. The
    logarithm of :math:`\mathcal R_{NS}` is taken without a difference, so that it has a gradient where two cells are
    surely in one cluster.

    Where what the pairs name is a linear part of the data, :func:`~unbraid.tl.relevant_components` and k-means find it as
    well, in a second. Wrong must-links draw classes together: :func:`~unbraid.tl.trusted_pairs` leaves them out before.
    See the reproduction page.

    Samples of the parts tell little of each other, posterior means more, because decoders see samples: for a part that
    tells nothing of the other, take ``get_latent_representation(give_mean=False)``.

    Validation batches have no pairs, so early stopping follows the bound of single cells. :meth:`write_latent` also
    writes ``Z_t`` and ``Z_r``.

    References
    ----------
    .. [1] Dual-level disentanglement (DL2): task-adaptive disentanglement for resolving the task-generation dilemma.
       Preprint, under review.

    Examples
    --------
    >>> mdata = ub.data.simulate.citeseq(n_obs=500)
    >>> ub.pp.pairs_from_labels(mdata, "cell_type", n_labelled=0.1)
    >>> ub.model.DL2.setup_mudata(mdata, batch_key="batch", pairs_key="pairs")
    >>> model = ub.model.DL2(mdata, n_task=8, n_residual=8, n_specific=16, n_clusters=5)
    >>> model.train()
    >>> mdata.obs["cluster"] = model.predict_cluster()
    """

    _needs_specific = True
    _takes_pairs = True
    _module_cls = DualLevelVAE

    def __init__(
        self,
        mdata: MuData | None = None,
        n_task: int = 32,
        n_residual: int = 32,
        n_specific: int = 32,
        n_clusters: int = 10,
        encoders: Networks = "mlp",
        decoders: Networks = "mlp",
        *,
        must_link_weight: float = 0.1,
        cannot_link_weight: float = 10.0,
        must_link: MustLink = "virtual_modality",
        pairs_per_batch: int = 32,
        coupled: bool = False,
        place_clusters: bool = True,
        beta: float = 1.0,
        estimator: str = "elbo",
        n_importance: int = 1,
        registry: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(mdata, registry)
        sizes = {"n_task": (n_task, 1), "n_residual": (n_residual, 0), "n_clusters": (n_clusters, 2)}
        for name, (value, least) in {**sizes, "pairs_per_batch": (pairs_per_batch, 1)}.items():
            check_whole(name, value, least)
        self._pairs_per_batch = pairs_per_batch
        self.module = self._build_module(
            n_task + n_residual,
            n_specific,
            n_residual=n_residual,
            n_clusters=n_clusters,
            must_link=must_link,
            must_link_weight=must_link_weight,
            cannot_link_weight=cannot_link_weight,
            coupled=coupled,
            place_clusters=place_clusters,
            encoders=encoders,
            decoders=decoders,
            beta=beta,
            estimator=estimator,
            n_importance=n_importance,
            **{"posterior": "laplace", "posterior_scale": "softmax", **options},
        )
        self._finish(locals())
