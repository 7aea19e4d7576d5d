"""``ub.tl.suggest_pairs``: questions that pay."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy.optimize import linear_sum_assignment
from scipy.stats import entropy
from sklearn.mixture import GaussianMixture

from unbraid.data import Pairs, components, read_pairs
from unbraid.pp import add_pairs, pairs_from_labels
from unbraid.tl import constrained_kmeans, suggest_pairs


class Mixture:
    """A Gaussian mixture on the cells' values, which are its latents."""

    registry_ = {"setup_args": {"pairs_key": "pairs"}}

    def __init__(self, adata, n_clusters, seed=0):
        self.adata = adata
        self.mixture = GaussianMixture(n_clusters, covariance_type="spherical", n_init=3, random_state=seed)
        self.mixture.fit(adata.X)

    def predict_cluster(self, mdata=None, soft=False):
        probability = self.mixture.predict_proba(self.get_latent_representation(mdata))
        return probability if soft else probability.argmax(axis=1)

    def get_latent_representation(self, mdata=None, kind="shared"):
        if kind != "shared":
            raise ValueError(f"Mixture has no {kind!r} latents.")
        return (self.adata if mdata is None else mdata).X


def cells(seed, n_obs=300, n_classes=6, n_features=4, spread=1.5):
    """Overlapping Gaussian classes."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(n_classes, size=n_obs)
    x = spread * rng.standard_normal((n_classes, n_features))[labels] + rng.standard_normal((n_obs, n_features))
    return AnnData(x, obs=pd.DataFrame({"label": labels}, index=[f"cell{i}" for i in range(n_obs)]))


def answer(adata, questions):
    labels = adata.obs["label"]
    same = labels[questions["first"]].to_numpy() == labels[questions["second"]].to_numpy()
    add_pairs(adata, questions["first"], questions["second"], same)


def accuracy(adata):
    labels = adata.obs["label"].to_numpy()
    clusters = constrained_kmeans(adata, "pairs", 6, use_rep="X")
    table = np.zeros((6, 6))
    np.add.at(table, (labels, clusters), 1)
    return table[linear_sum_assignment(-table)].sum() / len(labels)


@pytest.fixture(scope="module")
def model():
    return Mixture(cells(0), 6)


def test_answers_are_worth_more_than_those_to_random_pairs():
    at_random, suggested, in_rounds = [], [], []
    for seed in range(3):
        adata = cells(seed)
        pairs_from_labels(adata, "label", n_pairs=60, seed=seed)
        at_random.append(accuracy(adata))
        for found, rounds in ((suggested, (60,)), (in_rounds, (20, 20, 20))):
            del adata.obsp["pairs"]
            for n in rounds:
                answer(adata, suggest_pairs(Mixture(adata, 6), n))
            assert len(read_pairs(adata, "pairs")) == 60
            found.append(accuracy(adata))
    assert np.mean(suggested) > np.mean(at_random) + 0.01
    assert np.mean(in_rounds) > np.mean(at_random) + 0.01


def test_columns_and_kinds(model):
    found = suggest_pairs(model, 24)
    assert list(found.columns) == ["first", "second", "probability", "reason"]
    assert len(found) == 24
    p = pd.DataFrame(model.predict_cluster(soft=True), index=model.adata.obs_names)
    expected = (p.loc[found["first"]].to_numpy() * p.loc[found["second"]].to_numpy()).sum(axis=1)
    np.testing.assert_allclose(found["probability"], expected)
    kinds = found["reason"].str.replace(r"\d", "", regex=True).value_counts().to_dict()
    assert kinds == {
        "uncertain cell, typical cell of cluster ": 18,
        "clusters  and  are close and may be one": 3,
        "cluster  is wide and may be two": 3,
    }
    uncertain = found[found["reason"].str.startswith("uncertain")]
    assert uncertain["first"].is_unique
    # they are among the 5 * 24 most uncertain cells, and their partners are cells that are certain
    uncertainty = pd.Series(entropy(p, axis=1), p.index)
    assert set(uncertain["first"]) <= set(uncertainty.nlargest(120).index)
    assert uncertainty[uncertain["second"]].max() < uncertainty[uncertain["first"]].min()


def test_it_is_deterministic_and_the_first_questions_are_the_same(model):
    pd.testing.assert_frame_equal(suggest_pairs(model, 24), suggest_pairs(model, 24))
    pd.testing.assert_frame_equal(
        suggest_pairs(model, 10, n_candidates=50), suggest_pairs(model, 24, n_candidates=50).iloc[:10]
    )


def test_no_question_is_asked_twice_nor_one_that_is_answered_by_others():
    adata = cells(1)
    model = Mixture(adata, 6)
    for _ in range(6):
        questions = suggest_pairs(model, 25)
        known = read_pairs(adata, "pairs") if "pairs" in adata.obsp else Pairs([], [])
        chain = components(known, adata.n_obs)
        apart = {frozenset(pair) for pair in chain[known.cannot].tolist()}
        rows = np.stack([adata.obs_names.get_indexer(questions[side]) for side in ("first", "second")], axis=1)
        asked = [frozenset(pair) for pair in chain[rows].tolist()]
        assert len(questions) == len(set(asked)) == 25
        assert all(len(pair) == 2 for pair in asked)
        assert not apart & set(asked)
        answer(adata, questions)


def test_clusters_that_are_one_and_a_cluster_that_is_two_are_asked_about():
    rng = np.random.default_rng(0)
    centres = np.array([[0.0, 0.0], [0.5, 0.0], [20.0, 0.0], [20.0, 9.0]])  # 0 and 1 are one; 2 holds two
    of = np.repeat([0, 1, 2, 3], 50)
    adata = AnnData(centres[of] + 0.3 * rng.normal(size=(200, 2)), obs=pd.DataFrame(index=map(str, range(200))))

    class Fixed(Mixture):
        def __init__(self, adata):
            self.adata = adata

        def predict_cluster(self, mdata=None, soft=False):
            return np.eye(3)[np.minimum(of, 2)]

    found = suggest_pairs(Fixed(adata), 16)
    first = {word: found[found["reason"].str.contains(word)].iloc[0] for word in ("may be one", "may be two")}
    assert {int(first["may be one"][side]) // 50 for side in ("first", "second")} == {0, 1}
    assert {int(first["may be two"][side]) // 50 for side in ("first", "second")} == {2, 3}
    assert first["may be two"]["probability"] == 1


def test_few_cells_have_few_questions():
    adata = cells(0, n_obs=4)
    model = Mixture(adata, 2)
    found = suggest_pairs(model, 50)
    assert 0 < len(found) <= 6
    assert len({frozenset(pair) for pair in found[["first", "second"]].to_numpy()}) == len(found)
    adata.obsp["pairs"] = Pairs([], [(a, b) for a in range(4) for b in range(a + 1, 4)]).matrix(4)
    assert list(suggest_pairs(model, 50).columns) == ["first", "second", "probability", "reason"]
    assert len(suggest_pairs(model, 50)) == 0


def test_task_latents_and_other_cells(model):
    asked = []

    class Task(Mixture):
        def get_latent_representation(self, mdata=None, kind="shared"):
            asked.append(kind)
            return super().get_latent_representation(mdata)

    task = Task(model.adata, 6)
    asked.clear()
    other = model.adata[100:200].copy()
    found = suggest_pairs(task, 10, mdata=other)
    assert "task" in asked
    assert set(found["first"]) | set(found["second"]) <= set(other.obs_names)


def test_mistakes_are_named(model):
    with pytest.raises(ValueError, match="`n` must be a whole number"):
        suggest_pairs(model, 0)
    with pytest.raises(ValueError, match="`n_candidates` must be a whole number"):
        suggest_pairs(model, n_candidates=0)

    class Short(Mixture):
        def predict_cluster(self, mdata=None, soft=False):
            return super().predict_cluster(mdata, soft)[:-1]

    with pytest.raises(ValueError, match="clusters of 299 cells and latents of 300, but there are 300"):
        suggest_pairs(Short(model.adata, 6))
