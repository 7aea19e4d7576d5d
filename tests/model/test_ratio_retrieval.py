"""Vectors of models that retrieve by likelihood ratio."""

import numpy as np
import pytest
import torch

import unbraid as ub
from unbraid.objectives import canonical_log_ratio


@pytest.mark.parametrize("name", ["LinearSplit", "Unbraid"])
def test_retrieval_vectors_lie_beside_the_codes_of_their_modality(name, make_mdata):
    """Also where a modality has its cells in another order and some lack it."""
    mdata = make_mdata(missing={"prot": 0.3})
    cls = getattr(ub.model, name)
    cls.setup_mudata(mdata)
    model = cls(mdata, ridge=0.1)
    model.train(max_epochs=0, seed=0)
    with pytest.raises(RuntimeError, match="not trained"):
        cls(mdata).write_retrieval()
    assert model.write_retrieval() is mdata
    vectors = model.get_retrieval_representation("prot", role="target")
    rows = mdata.obs_names.get_indexer(mdata["prot"].obs_names)
    np.testing.assert_array_equal(mdata["prot"].obsm["Z_target"], vectors[rows])
    assert np.isnan(np.delete(vectors, rows, axis=0)).all()
    # by hand: the likelihood ratio, but for what belongs to the query alone
    codes = {m: torch.as_tensor(model.get_latent_representation(kind="shared", modality=m)) for m in model.modalities}
    if name == "LinearSplit":
        rho = model.module.correlations.value
        expected = canonical_log_ratio(codes["rna"], codes["prot"], rho).numpy()
        found = mdata["rna"].obsm["Z_query"] @ mdata["prot"].obsm["Z_target"].T
        constant = found - expected
        np.testing.assert_allclose(constant - constant[:, :1], 0, atol=1e-3)
