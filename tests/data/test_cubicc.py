"""Birds of eight kinds: the authors' files and CUB-200-2011, both tiny and of the published format."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from unbraid.data._arrays import to_images, to_strings
from unbraid.data._cubicc import _split, cubicc

WORDS = ["<exc>", "<pad>", "<eos>", "this", "bird", "is", "red", ",", "grey"]
SENTENCES = ["this bird is red <eos> <pad>", "bird is , grey <exc> <eos>", "is <eos> <pad> <pad> <pad> <pad>"]


def write_release(folder, n=40):
    """Sample ``i`` of grey ``i / n``, of kind ``i % 8`` and species ``i % 22``, with sentence ``i % 3``."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers = torch.tensor([[WORDS.index(word) for word in sentence.split()] for sentence in SENTENCES])
    grey = torch.arange(n) / n
    tensors = {
        "images": grey[:, None, None, None].expand(n, 3, 16, 16).clone(),
        "captions": torch.nn.functional.one_hot(numbers[torch.arange(n) % 3], len(WORDS)).float(),
        "labels": torch.arange(n) % 8,
        "original_labels": torch.arange(n) % 22,
        "train_test_labelling": torch.zeros(n),
    }
    for name, one in tensors.items():
        torch.save(one, folder / f"{name}.pt")
    order = np.random.default_rng(0).permutation(n)
    for name, rows in zip(("train", "validation", "test"), np.split(order[:-2], [n - 10, n - 6]), strict=True):
        np.save(folder / f"{name}_split.npy", rows)
    vocabulary = {"w2i": {word: i for i, word in enumerate(WORDS)}, "i2w": dict(enumerate(WORDS))}
    (folder / "cub.vocab").write_text(json.dumps(vocabulary))
    return folder, order


SPECIES = ["Black_footed_Albatross", "Hooded_Oriole", "House_Wren", "Scott_Oriole"]


def write_birds(folder, n_per_species=10):
    """Every image of one colour, its ten captions about its number."""
    lines = {name: [] for name in ("images", "image_class_labels", "train_test_split", "parts/part_locs")}
    for number in range(1, n_per_species * len(SPECIES) + 1):
        species = (number - 1) % len(SPECIES)
        name = f"{species + 1:03}.{SPECIES[species]}/{SPECIES[species]}_{number:04}_{7 * number}"
        for kind in ("images", "text_c10"):
            (folder / kind / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 10), (5 * number, 0, 0)).save(
            folder / "images" / f"{name}.jpg", quality=100, subsampling=0
        )
        captions = [f"Bird {number} says {k}." for k in range(10)]
        (folder / "text_c10" / f"{name}.txt").write_text("\n".join(captions))
        lines["images"].append(f"{number} {name}.jpg")
        lines["image_class_labels"].append(f"{number} {species + 1}")
        lines["train_test_split"].append(f"{number} 1")
        lines["parts/part_locs"].append(f"{number} 1 0 0 0")
    lines["parts/parts"] = ["1 back"]
    lines["classes"] = [f"{i} {i:03}.{name}" for i, name in enumerate(SPECIES, start=1)]
    (folder / "parts").mkdir()
    for name, content in lines.items():
        (folder / f"{name}.txt").write_text("\n".join(content) + "\n")
    return folder


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    return write_release(tmp_path_factory.mktemp("CUBICC"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_birds(tmp_path_factory.mktemp("CUB_200_2011"))


# ---- the authors' files -------------------------------------------------------------------


def test_published_samples_are_read_as_they_are(release):
    folder, order = release
    made = cubicc(folder, size=16)
    kept = np.sort(order[:-2])  # two are in no part
    np.testing.assert_array_equal(made.obs_names, [f"sample_{i}" for i in kept])
    np.testing.assert_array_equal(made.obs["category"].astype(int), kept % 8)
    np.testing.assert_array_equal(made.obs["species"].astype(int), kept % 22)
    np.testing.assert_allclose(to_images(made["image"]).mean(axis=(1, 2, 3)), kept / 40, atol=1e-6)
    for part, rows in {"train": order[:30], "val": order[30:34], "test": order[34:38]}.items():
        np.testing.assert_array_equal(np.flatnonzero(made.obs["split"] == part), np.searchsorted(kept, np.sort(rows)))


def test_published_captions_keep_their_words(release):
    folder, _ = release
    made = cubicc(folder, size=16)
    expected = ["this bird is red", "bird is , grey <unknown>", "is"]
    kept = made.obs_names.str.removeprefix("sample_").astype(int)
    assert to_strings(made["caption"]) == [expected[i % 3] for i in kept]
    assert made["caption"].shape == (38, 6)
    noted = made["caption"].uns["unbraid_array"]["vocabulary"]
    assert list(noted) == ["<padding>", "<unknown>", "this", "bird", "is", "red", ",", "grey"]


def test_published_images_may_be_scaled(release):
    folder, order = release
    made = cubicc(folder, size=8)
    assert made["image"].shape == (38, 3 * 64)
    np.testing.assert_allclose(made["image"].X, cubicc(folder, size=16)["image"].X[:, :192], atol=1e-6)  # of one colour


def test_missing_and_wrong_published_files_are_named(tmp_path):
    folder, _ = write_release(tmp_path)
    (folder / "cub.vocab").write_text(json.dumps({"i2w": {"0": "<exc>"}}))
    with pytest.raises(ValueError, match=r"captions\.pt must have one of the 1 words .* and has shape \(40, 6, 9\)"):
        cubicc(folder)
    (folder / "cub.vocab").write_text("{}")
    with pytest.raises(ValueError, match=r"cub\.vocab is no vocabulary"):
        cubicc(folder)
    (folder / "cub.vocab").unlink()
    (folder / "test_split.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks test_split\.npy, cub\.vocab. Download CUBICC\.zip, to which"):
        cubicc(folder)
    folder, _ = write_release(tmp_path)
    torch.save(torch.arange(39), folder / "original_labels.pt")
    with pytest.raises(ValueError, match=r"original_labels\.pt has shape \(39,\); labels\.pt has 40 samples"):
        cubicc(folder)
    folder, _ = write_release(tmp_path)
    np.save(folder / "test_split.npy", [40])
    with pytest.raises(ValueError, match=r"test_split\.npy names samples beyond the 40"):
        cubicc(folder)
    (folder / "images.pt").write_bytes(b"<html>")
    with pytest.raises(ValueError, match=r"images\.pt is no complete file of a tensor"):
        cubicc(folder)


def test_arguments_of_the_other_files_are_refused(release):
    folder, _ = release
    with pytest.raises(ValueError, match="`categories` is of CUB_200_2011; .* leave it out"):
        cubicc(folder, categories={"House_Wren": "Wren"})
    with pytest.raises(ValueError, match="`captions` is of CUB_200_2011"):
        cubicc(folder, captions=folder)


# ---- made anew ----------------------------------------------------------------------------


def test_made_anew_the_kind_is_the_last_part_of_the_name(folder):
    made = cubicc(folder, size=8)
    assert made.shape == (300, 3 * 64 + 32)
    assert made.obs["category"].value_counts().to_dict() == {"Oriole": 200, "Wren": 100}
    assert made.obs["species"].cat.categories.tolist() == ["Hooded_Oriole", "House_Wren", "Scott_Oriole"]
    number = made.obs["image"].str.extract(r"_(\d{4})_", expand=False).astype(int).to_numpy()
    assert to_strings(made["caption"])[:11] == [f"bird 2 says {k}" for k in range(10)] + ["bird 3 says 0"]
    np.testing.assert_allclose(to_images(made["image"])[:, 0].mean(axis=(1, 2)) * 255, 5 * number, atol=2)


def test_made_anew_the_kinds_may_be_given(folder):
    made = cubicc(folder, size=8, categories={"Black_footed_Albatross": "Sea", "Scott_Oriole": "Land"})
    assert made.obs["category"].value_counts().to_dict() == {"Sea": 100, "Land": 100}
    with pytest.raises(KeyError, match="names 'House Wren', which is no species. Did you mean 'House_Wren'"):
        cubicc(folder, categories={"House Wren": "Wren"})
    with pytest.raises(ValueError, match="no image of a species with a category"):
        cubicc(folder, categories={})


def test_made_anew_captions_of_an_image_are_in_one_part(folder):
    made = cubicc(folder, size=8)
    parts = made.obs.groupby("image", observed=True)["split"].agg(["nunique", "first"])
    assert (parts["nunique"] == 1).all()
    assert parts["first"].value_counts().to_dict() == {
        "train": 27,
        "test": 2,
        "val": 1,
    }  # 30 images, of which 4.9 and 5.0 %
    assert (cubicc(folder, size=8, seed=1).obs["split"] != made.obs["split"]).any()
    assert _split(13_131, np.random.default_rng(0)).value_counts().to_dict() == {
        "train": 11_834,
        "val": 638,
        "test": 659,
    }


def test_without_any_files_both_sources_are_named(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"lacks images, images\.txt, .*Download CUB_200_2011\.tgz.*CUBICC\.zip"
    ):
        cubicc(tmp_path)


def test_missing_captions_and_images_are_named(tmp_path):
    folder = write_birds(tmp_path, n_per_species=1)
    picture = next((folder / "images").glob("*House_Wren/*.jpg"))
    picture.write_bytes(b"")
    with pytest.raises(ValueError, match=r"House_Wren_0003_21\.jpg is no complete image"):
        cubicc(folder, size=8)
    next((folder / "text_c10").glob("*House_Wren/*.txt")).unlink()
    with pytest.raises(FileNotFoundError, match=r"has no captions of .*House_Wren_0003_21\.jpg. Download"):
        cubicc(folder, size=8)
