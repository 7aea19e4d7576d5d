"""Images and texts become modalities, and come back as they were."""

import mudata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

import unbraid as ub
from unbraid.data import registry_key
from unbraid.data._arrays import images, text, to_images, to_strings

WORDS = ["<padding>", "<unknown>", "red", "blue", "gull", "tern"]
SENTENCES = ["A small red bird.", "a gull's wing", "the small gull", ""]


def pixels(n=4, shape=(3, 4, 5), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


def paired(n=12, seed=0):
    """Images and texts of the same cells."""
    rng = np.random.default_rng(seed)
    sentences = [" ".join(rng.choice(WORDS[2:], size=3)) for _ in range(n)]
    return mudata.MuData({"image": images(pixels(n)), "caption": text(sentences, vocabulary=WORDS)})


def state_of(mdata, modality, **setup):
    model = ub.model.LinearSplit
    model.setup_mudata(mdata, **setup)
    registry = model._get_most_recent_anndata_manager(mdata, required=True).registry
    return registry["field_registries"][registry_key(modality)]["state_registry"]


# ---- images -----------------------------------------------------------------------------------


def test_images_lie_flat_and_come_back():
    values = pixels()
    adata = images(values, obs_names=list("abcd"))
    assert adata.X.dtype == np.float32
    assert adata.obs_names.tolist() == list("abcd")
    for c, y, x in [(0, 0, 0), (2, 3, 4), (1, 2, 0)]:
        np.testing.assert_allclose(adata[:, f"c{c}y{y}x{x}"].X.ravel(), values[:, c, y, x] / 255, rtol=1e-6)
    np.testing.assert_array_equal((to_images(adata) * 255).round(), values)
    np.testing.assert_array_equal(to_images(adata.X, (3, 4, 5)), to_images(adata))


def test_floating_point_images_are_kept_and_one_channel_needs_no_axis():
    values = np.random.default_rng(0).random((3, 4, 5))
    adata = images(values)
    np.testing.assert_array_equal(adata.X, values.reshape(3, 20).astype(np.float32))
    assert to_images(adata).shape == (3, 1, 4, 5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((3, 4)), r"must have shape .* got \(3, 4\)"),
        (np.zeros((3, 32, 32, 3)), r"channels before height and width.*transpose\(0, 3, 1, 2\)"),
        (np.full((2, 4, 4), 255.0), "from 0 to 1; these are float64 from 255 to 255"),
        (np.full((2, 4, 4), -0.1), "from 0 to 1"),
        (np.full((2, 4, 4), np.nan), "from 0 to 1"),
        (np.zeros((2, 4, 4), dtype=np.int64), "these are int64 from 0 to 0"),
    ],
)
def test_what_is_no_image_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        images(values)


def test_tables_and_names_must_fit():
    table = pd.DataFrame({"label": [1, 2, 3, 4]}, index=[7, 8, 9, 10])
    adata = images(pixels(), obs=table)
    assert adata.obs_names.tolist() == ["7", "8", "9", "10"]
    assert adata.obs["label"].tolist() == [1, 2, 3, 4]
    assert table.index.tolist() == [7, 8, 9, 10]  # the user's stays
    assert images(pixels(), obs=table, obs_names=list("abcd")).obs_names.tolist() == list("abcd")
    with pytest.raises(ValueError, match="`obs_names` must have one row for each of the 4 samples, got 3"):
        images(pixels(), obs_names=list("abc"))


def test_shapes_must_be_known_and_fit():
    with pytest.raises(ValueError, match=r"`unbraid.data.images` knows its `shape`: give `shape`"):
        to_images(pixels().reshape(4, -1))
    with pytest.raises(ValueError, match=r"60 values per row are no images of `shape` \(3, 4, 4\)"):
        to_images(pixels().reshape(4, -1), (3, 4, 4))


# ---- texts ------------------------------------------------------------------------------------


def test_words_are_numbered_by_frequency_whatever_the_order_of_the_texts():
    adata = text(SENTENCES)
    words = list(adata.uns["unbraid_array"]["vocabulary"])
    assert words == ["<padding>", "<unknown>", "a", "small", "bird", "gull", "gull's", "red", "the", "wing"]
    assert adata.X.tolist() == [[2, 3, 7, 4], [2, 6, 9, 0], [8, 3, 5, 0], [0, 0, 0, 0]]
    assert list(text(SENTENCES[::-1]).uns["unbraid_array"]["vocabulary"]) == words
    assert to_strings(adata) == ["a small red bird", "a gull's wing", "the small gull", ""]


def test_rare_words_become_unknown_and_long_texts_are_cut():
    adata = text(SENTENCES, max_words=4, length=3)
    assert adata.X.tolist() == [[2, 3, 1], [2, 1, 1], [1, 3, 1], [0, 0, 0]]
    assert to_strings(adata)[1] == "a <unknown> <unknown>"
    assert text(SENTENCES, length=6).X.shape == (4, 6)


def test_a_vocabulary_is_taken_over():
    first = text(SENTENCES)
    words = first.uns["unbraid_array"]["vocabulary"]
    again = text(["red gull", "purple bird"], vocabulary=words, length=4)
    assert again.X.tolist() == [[7, 5, 0, 0], [1, 4, 0, 0]]
    assert list(again.uns["unbraid_array"]["vocabulary"]) == list(words)
    np.testing.assert_array_equal(text(first.X.astype(int), vocabulary=words).X, first.X)


def test_token_numbers_are_taken_as_they_are():
    adata = text([[2, 5, 3], [1], np.array([4, 2])])
    assert adata.X.tolist() == [[2, 5, 3], [1, 0, 0], [4, 2, 0]]
    assert len(adata.uns["unbraid_array"]["vocabulary"]) == 6


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        (["", "..."], {}, "hold no word"),
        (["a", [1]], {}, "not both"),
        ([[1.5]], {}, "whole numbers"),
        ([[-1]], {}, "whole numbers"),
        ([[9]], {"vocabulary": ["<padding>", "<unknown>", "a"]}, "Token 9 has no place in the vocabulary of 3 words"),
        (["a"], {"vocabulary": ["a", "b"]}, "must begin with '<padding>' and '<unknown>'"),
        (["a"], {"vocabulary": ["<padding>", "<unknown>", "a", "a"]}, "names 'a' more than once"),
    ],
)
def test_what_is_no_text_is_refused(texts, options, message):
    with pytest.raises(ValueError, match=message):
        text(texts, **options)


def test_tokens_outside_the_vocabulary_are_no_words():
    words = ["<padding>", "<unknown>", "a"]
    assert to_strings(np.array([[2, 0], [1, 2]]), words) == ["a", "<unknown> a"]
    for bad in ([[3]], [[0.5]], [[-1]]):
        with pytest.raises(ValueError, match="whole numbers from 0 to 2"):
            to_strings(np.array(bad), words)
    with pytest.raises(ValueError, match="give `vocabulary`"):
        to_strings(np.array([[1]]))


# ---- together ---------------------------------------------------------------------------------


def test_files_keep_shape_and_vocabulary(tmp_path):
    mdata = paired()
    mdata.write(tmp_path / "both.h5mu")
    read = mudata.read_h5mu(tmp_path / "both.h5mu")
    np.testing.assert_array_equal(to_images(read["image"]), to_images(mdata["image"]))
    assert to_strings(read["caption"]) == to_strings(mdata["caption"])
    for one in (mdata, read):
        assert state_of(one, "image")["shape"] == (3, 4, 5)
        state = state_of(one, "caption")
        assert (state["shape"], state["n_categories"]) == ((3,), 6)


def test_models_are_told_what_the_modalities_are():
    mdata = paired()
    ub.model.MMVAE.setup_mudata(mdata)
    model = ub.model.MMVAE(mdata, encoders={"caption": "text"}, decoders={"caption": "text"})
    specs = {spec.name: spec for spec in model._specs(None)}
    image, caption = specs["image"], specs["caption"]
    assert (image.likelihood, image.transform, image.shape, image.n_categories) == ("laplace", "scale", (3, 4, 5), None)
    assert (caption.likelihood, caption.transform, caption.shape) == ("categorical", "identity", (3,))
    assert caption.n_categories == 6


@pytest.mark.parametrize("cls", [ub.model.LinearSplit, ub.model.CLIP, ub.model.Unbraid])
def test_numbers_of_words_are_not_taken_for_amounts(cls):
    mdata = paired()
    cls.setup_mudata(mdata)
    with pytest.raises(ValueError, match=f"'caption' holds categories.*{cls.__name__} would take for amounts"):
        cls(mdata)


def test_a_perceptron_does_not_read_words():
    mdata = paired()
    ub.model.IDMVAE.setup_mudata(mdata)
    with pytest.raises(ValueError, match=r"'caption' holds categories.*`encoders=\{'caption': 'text'\}`"):
        ub.model.IDMVAE(mdata)


def test_the_user_has_the_last_word_on_the_likelihood():
    state = state_of(paired(), "image", likelihoods={"image": "normal", "caption": "nb"})
    assert state["likelihood"] == "normal"
    assert state["shape"] == (3, 4, 5)
    binary = paired()
    binary["image"].X = (binary["image"].X > 0.5).astype(np.float32)
    assert state_of(binary, "image")["likelihood"] == "bernoulli"


def test_a_part_of_the_pixels_has_no_shape_and_an_embedding_neither():
    mdata = paired()
    part = mudata.MuData({"image": mdata["image"][:, :50].copy(), "caption": mdata["caption"]})
    assert state_of(part, "image")["shape"] is None
    mdata["image"].obsm["X_pca"] = np.random.default_rng(0).normal(size=(12, 60))
    state = state_of(mdata, "image", layers={"image": "obsm:X_pca"})
    assert (state["shape"], state["likelihood"]) == (None, "normal")


def test_tokens_are_checked_at_setup():
    for value, message in [(6.0, "holds the token 6, but its vocabulary has 6 words"), (0.5, "no whole numbers")]:
        mdata = paired()
        mdata["caption"].X[3, 1] = value
        with pytest.raises(ValueError, match=message):
            ub.model.LinearSplit.setup_mudata(mdata)
    plain = paired()
    plain["image"].X = plain["image"].X - 0.5
    with pytest.raises(ValueError, match="no whole numbers from 0 under the likelihood 'categorical'"):
        ub.model.LinearSplit.setup_mudata(plain, likelihoods={"image": "categorical"})


def test_a_query_needs_the_same_vocabulary():
    mdata, query = paired(), paired(seed=1)
    model = ub.model.MMVAE
    model.setup_mudata(mdata)
    fitted = model(mdata, n_shared=2, n_hidden=4, encoders={"caption": "text"}, decoders={"caption": "text"})
    fitted.train(max_epochs=1, progress_bar=False, accelerator="cpu")
    assert fitted.get_latent_representation(query).shape[0] == 12
    query["caption"].uns["unbraid_array"]["vocabulary"] = np.array([*WORDS[:2], *WORDS[:1:-1]], dtype=object)
    query = mudata.MuData(dict(query.mod))
    with pytest.raises(
        ValueError, match=r"'caption' has another vocabulary.*`unbraid.data.text\(..., vocabulary=...\)`"
    ):
        fitted.get_latent_representation(query)


def test_registries_without_shapes_still_load():
    """Those of models saved before modalities had any."""
    mdata = paired()
    plain = mudata.MuData({m: AnnData(a.X, obs=a.obs, var=a.var) for m, a in mdata.mod.items()})
    model = ub.model.LinearSplit
    model.setup_mudata(plain)
    fitted = model(plain)
    for name in ("image", "caption"):
        state = fitted.registry_["field_registries"][registry_key(name)]["state_registry"]
        for key in ("shape", "vocabulary", "n_categories"):
            assert state.pop(key) is None
    assert [spec.shape for spec in fitted._specs(None)] == [None, None]
    query = paired(seed=1)
    fitted.train()
    assert np.isfinite(fitted.get_latent_representation(query)).all()
