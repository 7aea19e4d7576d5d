"""Counterfactuals of any embedding, and how much of them either code carries over."""

import numpy as np
import pytest

import unbraid as ub


@pytest.fixture(scope="module")
def screen():
    """A screen with its true codes, of one cell line without plate effects."""
    mdata = ub.data.simulate.drug_screen(
        200, 3, n_cell_lines=1, n_features=30, activity_share=0.45, state_share=0.45, plate_share=0.0, seed=0
    )
    rows = mdata.obs_names.get_indexer(mdata["molecule"].obs_names)
    mdata["molecule"].obsm["Z_c"] = mdata.obsm["true_shared"][rows]
    mdata["phenotype"].obsm["Z_c"] = mdata.obsm["true_shared"][
        mdata.obs_names.get_indexer(mdata["phenotype"].obs_names)
    ]
    mdata["phenotype"].obsm["Z_s"] = mdata["phenotype"].obsm["true_specific"]
    return mdata


def treated(mdata, part):
    return np.flatnonzero((mdata.obs["split"] == part) & mdata.obs["compound"].notna())


def loadings(mdata):
    """What a linear regression on both true codes finds of the wells that have them."""
    z = np.hstack([mdata.obsm["true_shared"], mdata["phenotype"].obsm["true_specific"]])
    x = mdata["phenotype"].X
    return np.linalg.lstsq(np.hstack([z, np.ones((len(z), 1))]), x, rcond=None)[0]


def test_the_drug_of_one_well_in_the_state_of_another(screen):
    a, b = treated(screen, "test")[:40], treated(screen, "test")[47:87]  # of other compounds
    train = (screen.obs["split"] == "train").to_numpy()
    found = ub.tl.counterfactual(
        screen, "phenotype", a, b, shared_modality="molecule", train=train, decoder="linear", groups=None
    )
    assert found.shape == (40, 30)
    assert found.X.dtype == np.float32
    assert list(found.var_names) == list(screen["phenotype"].var_names)
    assert list(found.obs["shared_from"]) == list(screen.obs_names[a])
    z = np.hstack([screen.obsm["true_shared"][a], screen["phenotype"].obsm["true_specific"][b], np.ones((40, 1))])
    expected = z @ loadings(screen)
    assert np.corrcoef(found.X.ravel(), expected.ravel())[0, 1] > 0.98
    own = ub.tl.counterfactual(screen, "phenotype", b, b, train=train, decoder="linear")
    assert np.corrcoef(found.X.ravel(), own.X.ravel())[0, 1] < 0.8


def test_names_masks_and_numbers_are_the_same_observations(screen):
    names = screen.obs_names[:3].to_list()
    options = {"shared_modality": "molecule", "decoder": "linear"}
    by_number = ub.tl.counterfactual(screen, "phenotype", [0, 1, 2], [-1, 4, 5], **options)
    by_name = ub.tl.counterfactual(
        screen, "phenotype", names, screen.obs_names[[-1, 4, 5]].to_list(), train=np.ones(screen.n_obs, bool), **options
    )
    np.testing.assert_array_equal(by_number.X, by_name.X)
    assert by_number.obs_names[0] == f"{names[0]} in {screen.obs_names[-1]}"
    again = ub.tl.counterfactual(screen, "phenotype", [0, 0], [1, 1], **options)
    assert again.obs_names.is_unique


def test_what_was_never_seen_is_flagged(screen):
    far = screen.copy()
    row = treated(far, "test")[0]
    far["phenotype"].obsm["Z_s"][row] = 50.0
    found = ub.tl.counterfactual(far, "phenotype", treated(far, "test")[1:3], [row, row + 1], decoder="linear")
    assert found.obs["off_support"].tolist() == [True, False]
    assert found.obs["support"].between(0, 1).all()


def test_counts_are_decoded_as_counts():
    rng = np.random.default_rng(0)
    mdata = ub.data.simulate.citeseq(n_obs=300, n_genes=40, n_proteins=8, seed=0)
    mdata["rna"].obsm["Z_c"] = rng.normal(size=(300, 2))
    mdata["rna"].obsm["Z_s"] = np.log1p(mdata["rna"].X.toarray()[:, :4])
    total = np.asarray(mdata["rna"].X.sum(axis=1)).ravel()
    small, large = np.argsort(total)[[5, -5]]
    found = ub.tl.counterfactual(mdata, "rna", [0, 0], [small, large], max_epochs=3)
    assert (found.X >= 0).all()
    np.testing.assert_allclose(found.X.sum(axis=1), total[[small, large]], rtol=0.3)


def test_distances_say_what_either_code_carries(screen):
    """With true codes both parts carry; with noise for a code that code does not."""
    options = {"split_key": "split", "shared_modality": "molecule", "decoder": "linear", "n_bootstrap": 0}
    found = ub.tl.counterfactual_distance(shifted(screen), "phenotype", **options)
    assert found.diff_fd_c > 0.5 * found.fd_reference_test
    assert found.n_test == found.n_counterfactual
    # the shared code says nothing of the shift: the counterfactual stays where its state is from
    blind = shifted(screen)
    blind["molecule"].obsm["Z_c"] = np.random.default_rng(0).normal(size=blind["molecule"].obsm["Z_c"].shape)
    without = ub.tl.counterfactual_distance(blind, "phenotype", **options)
    assert without.diff_fd_c < 0.2 * found.diff_fd_c


def shifted(screen):
    """Test compounds that do something else than validation compounds, so that the parts differ."""
    mdata = screen.copy()
    test = (mdata.obs["split"] == "test").to_numpy()
    keep = mdata.obsm["true_shared"][:, 0] > 0
    chosen = (
        (test & keep) | ((mdata.obs["split"] == "val").to_numpy() & ~keep) | (mdata.obs["split"] == "train").to_numpy()
    )
    return mdata[chosen].copy()


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (("phenotyp", [0], [1]), {}, KeyError, "No modality 'phenotyp' in the MuData. Did you mean 'phenotype'"),
        (("phenotype", [0], [1]), {"shared_modality": "drug"}, KeyError, "No modality 'drug'"),
        (("phenotype", [0, 1], [1]), {}, ValueError, "pair cells: got 2 and 1"),
        (("phenotype", ["nobody"], [1]), {}, KeyError, "`shared_from`: there is no observation 'nobody'"),
        (("phenotype", [0], [10**6]), {}, IndexError, "`specific_from` runs from"),
        (("phenotype", [0], [1]), {"use_specific": "Z_x"}, KeyError, "Z_x"),
        (("phenotype", [0], [1]), {"layer": "raw"}, KeyError, "no layer 'raw'"),
        (("phenotype", [0], [1]), {"train": [0, 1, 2]}, ValueError, "3 observations to learn from"),
        (("phenotype", [0], [1]), {"decoder": "forest"}, ValueError, "`decoder` must be one of"),
        (
            ("phenotype", [-1], [1]),
            {"shared_modality": "molecule"},
            ValueError,
            "1 of 1 observations have no molecule:Z_c",
        ),
    ],
)
def test_mistakes_are_named(screen, arguments, options, error, message):
    with pytest.raises(error, match=message):
        ub.tl.counterfactual(screen, *arguments, **options)


def test_mistakes_in_splits_are_named(screen):
    with pytest.raises(KeyError, match="parts"):
        ub.tl.counterfactual_distance(screen, "phenotype", split_key="parts")
    other = screen.copy()
    other.obs["split"] = "train"
    with pytest.raises(ValueError, match="0 val observations have both codes"):
        ub.tl.counterfactual_distance(other, "phenotype", split_key="split")
    other.obs["split"] = "one"
    with pytest.raises(ValueError, match="must hold 'train', 'val' and 'test'; found \\['one'\\]"):
        ub.tl.counterfactual_distance(other, "phenotype", split_key="split")
    with pytest.raises(TypeError, match="Expected a MuData"):
        ub.tl.counterfactual(screen["phenotype"], "phenotype", [0], [1])
