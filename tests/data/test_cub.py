"""Birds, on tiny files of the official format."""

import numpy as np
import pytest
from PIL import Image

from unbraid.data import datasets
from unbraid.data._arrays import to_images, to_strings

PARTS = ["back", "beak", "belly", "breast", "crown", "forehead", "left eye", "left leg", "left wing", "nape",
         "right eye", "right leg", "right wing", "tail", "throat"]  # fmt: skip
SPECIES = ["Black_footed_Albatross", "Hooded_Oriole", "House_Wren"]
# x of beak, crown, back and tail of a picture 40 wide; None: not visible
PLACES = {
    "left": (4, 8, 20, 36),
    "right": (35, 30, 20, 4),
    "no head": (None, None, 20, 36),
    "no body": (4, 8, None, None),
    "from the front": (20, 20, 20, 19),
}


def write_birds(folder, n_per_species=20, n_captions=3, size=(40, 30)):
    """Every image of one colour, its direction in turn, its captions about its number."""
    lines = {name: [] for name in ("images", "image_class_labels", "train_test_split", "part_locs")}
    for number in range(1, n_per_species * len(SPECIES) + 1):
        species = (number - 1) % len(SPECIES)
        name = f"{species + 1:03}.{SPECIES[species]}/{SPECIES[species]}_{number:04}_{7 * number}.jpg"
        (folder / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "text_c10" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (number, 2 * number, 0)).save(folder / "images" / name, quality=100, subsampling=0)
        captions = [f"This bird, number {number}, says {k}." for k in range(n_captions)]
        (folder / "text_c10" / name).with_suffix(".txt").write_text("\n".join(captions) + "\n")
        lines["images"].append(f"{number} {name}")
        lines["image_class_labels"].append(f"{number} {species + 1}")
        lines["train_test_split"].append(f"{number} {number % 2}")
        xs = dict(zip(("beak", "crown", "back", "tail"), list(PLACES.values())[number % 5], strict=True))
        for part, title in enumerate(PARTS, start=1):
            x = xs.get(title, 39 if title in ("nape", "throat") else None)  # those two say nothing
            lines["part_locs"].append(f"{number} {part} {x or 0:.1f} 10.0 {int(x is not None)}")
    lines["parts"] = [f"{i} {title}" for i, title in enumerate(PARTS, start=1)]
    lines["classes"] = [f"{i} {i:03}.{name}" for i, name in enumerate(SPECIES, start=1)]
    (folder / "parts").mkdir(exist_ok=True)
    for name, content in lines.items():
        where = folder / "parts" if name.startswith("part") else folder
        (where / f"{name}.txt").write_text("\n".join(content) + "\n")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_birds(tmp_path_factory.mktemp("CUB_200_2011"))


@pytest.fixture(scope="module")
def birds(folder):
    return datasets.cub_captions(folder, n_captions=3, size=8, length=6)


def numbers(birds):
    return birds.obs["image"].str.extract(r"_(\d{4})_", expand=False).astype(int).to_numpy()


def test_every_caption_makes_a_sample_with_its_image(birds):
    assert birds.shape == (180, 3 * 64 + 6)
    n = numbers(birds)
    np.testing.assert_array_equal(n, np.repeat(np.arange(1, 61), 3))
    colors = to_images(birds["image"]).mean(axis=(2, 3)) * 255
    np.testing.assert_allclose(colors[:, :2], np.stack([n, 2 * n], axis=1), atol=2)
    expected = [f"this bird number {i} says {k}" for i, k in zip(n, np.tile([0, 1, 2], 60), strict=True)]
    assert to_strings(birds["caption"]) == expected


def test_categories_are_the_last_part_of_the_name(birds, folder):
    species = birds.obs["species"].astype(str)
    assert set(species) == set(SPECIES)
    assert (birds.obs["category"][species == "Hooded_Oriole"] == "Oriole").all()
    assert birds.obs["category"][species == "Black_footed_Albatross"].isna().all()
    given = {"Black_footed_Albatross": "Sea"}
    own = datasets.cub_captions(folder, n_captions=1, size=8, categories=given)
    assert own.obs["category"].value_counts().to_dict() == {"Sea": 20}
    with pytest.raises(KeyError, match="names 'Hooded Oriole', which is no species. Did you mean 'Hooded_Oriole'"):
        datasets.cub_captions(folder, n_captions=1, size=8, categories={"Hooded Oriole": "Oriole"})


def test_the_head_points_where_it_lies_beside_the_body(birds):
    n = numbers(birds)
    direction = birds.obs["direction"].astype(object).to_numpy()
    for remainder, name in enumerate(PLACES):
        chosen = direction[n % 5 == remainder]
        if name in ("left", "right"):
            assert (chosen == name).all()
        else:
            assert all(one is np.nan or one != one for one in chosen), name


def test_splits_keep_captions_of_an_image_together(birds, folder):
    per_image = birds.obs.groupby("image", observed=True)["split"].agg(["nunique", "first"])
    assert (per_image["nunique"] == 1).all()
    assert per_image["first"].value_counts().to_dict() == {"train": 52, "val": 4, "test": 4}  # of 40 with a category
    assert birds.obs["category"][birds.obs["split"] != "train"].notna().all()
    np.testing.assert_array_equal(birds.obs["official_split"] == "train", numbers(birds) % 2 == 1)
    other = datasets.cub_captions(folder, n_captions=3, size=8, seed=1)
    assert (other.obs["split"] != birds.obs["split"]).any()


def test_captions_may_lie_elsewhere_and_rare_words_become_unknown(folder, tmp_path):
    (folder / "text_c10").rename(tmp_path / "captions")
    try:
        with pytest.raises(FileNotFoundError, match=r"no folder .*text_c10. Download the captions of Reed"):
            datasets.cub_captions(folder)
        options = {"captions": tmp_path / "captions", "n_captions": 1, "size": 8, "max_words": 6}
        made = datasets.cub_captions(folder, **options)
    finally:
        (tmp_path / "captions").rename(folder / "text_c10")
    assert len(made["caption"].uns["unbraid_array"]["vocabulary"]) == 6
    assert made["caption"].n_vars == 32
    with pytest.raises(ValueError, match=r"has 3 captions; `n_captions` is 10"):
        datasets.cub_captions(folder, size=8)


def test_missing_and_broken_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"lacks images, images\.txt, .*parts/part_locs\.txt. Download CUB_200"):
        datasets.cub_captions(tmp_path)
    folder = write_birds(tmp_path, n_per_species=1)
    picture = next((folder / "images").glob("*Wren/*.jpg"))
    content = picture.read_bytes()
    picture.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"House_Wren_0003_21\.jpg is no complete image"):
        datasets.cub_captions(folder, n_captions=1, size=8)
    picture.write_bytes(content)
    labels = folder / "image_class_labels.txt"
    labels.write_text("1 1\n2 2\n")
    with pytest.raises(ValueError, match=r"image 003\.House_Wren/House_Wren_0003_21\.jpg has no class"):
        datasets.cub_captions(folder, n_captions=1, size=8)
    labels.write_text("1 1\n2\n3 3\n")
    with pytest.raises(ValueError, match="Line 2 of .* does not hold 2 values"):
        datasets.cub_captions(folder, n_captions=1, size=8)
    labels.write_text("1 1\n2 2\n3 3\n")
    captions = next((folder / "text_c10").glob("*Oriole/*.txt"))
    other_spelling = captions.rename(captions.with_name("Hooded_Orioles_0002_14.txt"))
    datasets.cub_captions(folder, n_captions=1, size=8)
    other_spelling.unlink()
    with pytest.raises(FileNotFoundError, match=r"has no captions of .*Hooded_Oriole_0002_14\.jpg. Download"):
        datasets.cub_captions(folder, n_captions=1, size=8)


def test_grey_pictures_are_read_too(tmp_path):
    folder = write_birds(tmp_path, n_per_species=1)
    picture = next((folder / "images").glob("*Wren/*.jpg"))
    Image.new("L", (10, 10), 100).save(picture, quality=100)
    made = datasets.cub_captions(folder, n_captions=1, size=8)
    np.testing.assert_allclose(made["image"].X[2], 100 / 255, atol=0.01)
