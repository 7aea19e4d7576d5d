"""``simulate.drug_screen``: plates, replicates, and what is where."""

import numpy as np
import pytest
from sklearn.linear_model import LinearRegression

from unbraid.data.simulate import drug_screen


@pytest.fixture(scope="module")
def screen():
    return drug_screen(400, 3, seed=1)


def explained(z, x):
    residual = x - LinearRegression().fit(z, x).predict(z)
    return 1 - residual.var(axis=0).sum() / x.var(axis=0).sum()


def test_shapes_and_names(screen):
    assert screen["molecule"].shape == (400 * 3 * 2, 256)
    assert screen["phenotype"].shape == (400 * 3 * 2 + 4 * 42, 100)  # 7 plates of 57 or 58 compounds, six times
    assert screen["molecule"].X.dtype == screen["phenotype"].X.dtype == np.float32
    assert screen.obs["plate"].nunique() == 42
    assert screen.obs.groupby("plate", observed=True)["cell_line"].nunique().max() == 1
    parameters = screen.uns["simulation"]["parameters"]
    assert (parameters["n_compounds"], parameters["confounding"]) == (400, 0.5)


def test_untreated_wells_have_no_molecule(screen):
    untreated = screen.obs["compound"].isna()
    assert untreated.sum() == 4 * 42
    assert set(screen.obs_names[~untreated]) == set(screen["molecule"].obs_names)
    assert (screen.obsm["true_shared"][untreated.to_numpy()] == 0).all()
    assert set(screen.obs.loc[untreated, "split"]) == {"train"}


def test_a_compound_has_one_molecule_and_its_replicates_meet_the_same_compounds(screen):
    obs = screen.obs.dropna(subset="compound")
    assert obs.groupby("compound", observed=True).size().eq(6).all()
    x = screen["molecule"][obs.index].X
    first = obs["compound"].cat.codes.to_numpy()
    np.testing.assert_array_equal(x, x[np.unique(first, return_index=True)[1]][first])
    assert x[: len(x) // 6].mean() == pytest.approx(0.15, abs=0.01)
    company = {plate: frozenset(wells["compound"]) for plate, wells in obs.groupby("plate", observed=True)}
    assert len(set(company.values())) == 7
    split = obs.groupby("compound", observed=True)["split"].nunique()
    assert (split == 1).all()
    assert obs.drop_duplicates("compound")["split"].value_counts().to_dict() == {"train": 280, "val": 40, "test": 80}


def test_every_part_has_its_share_of_the_variance():
    mdata = drug_screen(400, 3, activity_share=0.3, state_share=0.2, plate_share=0.25, seed=0)
    treated = mdata.obs["compound"].notna().to_numpy()
    x = mdata["phenotype"].X[treated]
    assert x.var(axis=0).mean() == pytest.approx(1, abs=0.05)
    plate = np.eye(42)[mdata.obs["plate"].cat.codes[treated]]
    line = np.eye(2)[mdata.obs["cell_line"].cat.codes[treated]]
    shared = mdata.obsm["true_shared"][treated]
    by_line = (shared[:, :, None] * line[:, None]).reshape(len(x), -1)
    assert explained(by_line, x) == pytest.approx(0.3, abs=0.03)
    assert explained(shared, x) == pytest.approx(0.3 * 0.85, abs=0.04)  # half of what is a line's own is common to two
    assert explained(mdata["phenotype"].obsm["true_specific"][treated], x) == pytest.approx(0.2, abs=0.03)
    assert explained(plate, x) == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize(("confounding", "low", "high"), [(0.0, 0.0, 0.1), (1.0, 0.85, 1.0)])
def test_structure_tells_the_plate_as_far_as_asked(confounding, low, high):
    mdata = drug_screen(600, 1, n_cell_lines=1, confounding=confounding, seed=0)
    chemistry = mdata["molecule"].obsm["true_specific"][:, :1]
    plate = np.eye(10)[mdata.obs.loc[mdata["molecule"].obs_names, "plate"].cat.codes]
    assert low <= explained(plate, chemistry) <= high


def test_the_seed_decides():
    one, two, other = (drug_screen(20, 1, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one["phenotype"].X, two["phenotype"].X)
    assert abs(one["phenotype"].X - other["phenotype"].X).max() > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_compounds": 5}, "`n_compounds` must be a whole number of at least 10"),
        ({"n_replicates": 0}, "`n_replicates` must be"),
        ({"activity_share": 0.6}, "sum to less than 1"),
        ({"state_share": -0.1}, "must not be negative"),
        ({"confounding": 2}, "`confounding` must be from 0 to 1"),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        drug_screen(**options)
