"""Faces, on tiny files of the published format."""

import json

import numpy as np
import pytest
from PIL import Image

from unbraid.data._arrays import to_images, to_strings
from unbraid.data._celeba import celeba_hq

N = 41
WITHOUT_LABELS = 5  # as 5380 of the published files


def write_faces(folder, *, dialog=True):
    """Face ``i`` of grey ``5 * i``; every third is male, every second smiles, and the degree is ``i % 6``."""
    images, labels = folder / ("image" if dialog else "CelebA-HQ-img"), folder
    if dialog:
        labels = folder / "classification_label"
    for one in (images, labels, folder / "text"):
        one.mkdir(parents=True, exist_ok=True)
    for i in range(N):
        Image.new("RGB", (12, 12), (5 * i, 5 * i, 0)).save(images / f"{i}.jpg", quality=100, subsampling=0)
    rows = [f"{i}.jpg  {-1} {1 if i % 3 == 0 else -1} {1 if i % 2 == 0 else -1}" for i in range(N)]
    text = "\n".join([str(N), "Bangs Male Smiling ", *rows])
    (labels / "CelebAMask-HQ-attribute-anno.txt").write_text(text)
    labelled = [i for i in range(N) if i != WITHOUT_LABELS]
    head = "img_name\tBangs\tEyeglasses\tNo_Beard\tSmiling\tYoung"
    rows = [f"{i}.jpg\t0\t1\t2\t{i % 6}\t3" for i in labelled]
    (labels / "combined_annotation_hq.txt").write_text("\n".join([head, *rows]) + "\n")
    if dialog:
        captions = {f"{i}.jpg": {"attribute_wise_captions": {}, "overall_caption": f"Face {i}."} for i in labelled}
        (folder / "text" / "captions_hq.json").write_text(json.dumps(captions))
    else:
        (folder / "text" / "celeba-caption").mkdir()
        for i in range(N):
            (folder / "text" / "celeba-caption" / f"{i}.txt").write_text(f"Face {i}.\nAnother line.\n")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_faces(tmp_path_factory.mktemp("CelebA"))


@pytest.fixture(scope="module")
def faces(folder):
    return celeba_hq(folder, size=8, length=3)


def numbers(faces):
    return faces.obs["image"].str.removesuffix(".jpg").astype(int).to_numpy()


def test_faces_have_their_captions_and_labels(faces):
    n = numbers(faces)
    np.testing.assert_array_equal(n, np.delete(np.arange(N), WITHOUT_LABELS))
    assert faces.shape == (N - 1, 3 * 64 + 3)
    colors = to_images(faces["image"]).mean(axis=(2, 3)) * 255
    np.testing.assert_allclose(colors[:, :2], np.stack([5 * n, 5 * n], axis=1), atol=2)
    assert to_strings(faces["caption"]) == [f"face {i}" for i in n]
    np.testing.assert_array_equal(faces.obs["gender"] == "male", n % 3 == 0)
    np.testing.assert_array_equal(faces.obs["smiling"], n % 2 == 0)
    np.testing.assert_array_equal(faces.obs["smile"].astype(int), n % 6)
    assert faces.obs["smile"].cat.ordered
    assert faces.obs_names[0] == "image_0"


def test_the_split_has_the_papers_proportions(faces, folder):
    assert faces.obs["split"].value_counts().to_dict() == {"train": 28, "test": 8, "val": 4}
    assert (celeba_hq(folder, size=8, seed=1).obs["split"] != faces.obs["split"]).any()
    from unbraid.data._celeba import _split

    assert _split(29_999, np.random.default_rng(0)).value_counts().to_dict() == {
        "train": 20_999,
        "val": 3_000,
        "test": 6_000,
    }


def test_captions_of_multi_modal_celeba_hq_are_read_too(tmp_path, faces):
    made = celeba_hq(write_faces(tmp_path, dialog=False), size=8, length=3)
    np.testing.assert_array_equal(made["image"].X, faces["image"].X)
    assert to_strings(made["caption"]) == to_strings(faces["caption"])
    assert made.obs.equals(faces.obs)


def test_rare_words_become_unknown(folder):
    made = celeba_hq(folder, size=8, max_words=5)
    assert len(made["caption"].uns["unbraid_array"]["vocabulary"]) == 5
    assert made["caption"].n_vars == 64


def test_missing_files_are_named_with_their_source(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"lacks image \(from image\.zip.*captions_hq\.json .*Download"):
        celeba_hq(tmp_path)
    write_faces(tmp_path)
    (tmp_path / "classification_label" / "combined_annotation_hq.txt").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"lacks combined_annotation_hq\.txt \(from .*CelebA-Dialog-combined\)\)"
    ):
        celeba_hq(tmp_path)


def test_a_missing_or_broken_image_is_named(tmp_path):
    picture = write_faces(tmp_path) / "image" / "7.jpg"
    content = picture.read_bytes()
    picture.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"7\.jpg is no complete image"):
        celeba_hq(tmp_path, size=8)
    picture.unlink()
    with pytest.raises(FileNotFoundError, match=r"There is no .*7\.jpg. Download"):
        celeba_hq(tmp_path, size=8)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("Smiling", "Smile", "has no column 'Smiling'. Did you mean 'Smile'"),
        ("3.jpg\t0\t1\t2\t3", "3.jpg\t0\t1\t2\t6", r"has Smiling 6 of 3\.jpg; it must be one of 0, 1, 2, 3, 4, 5"),
        ("4.jpg\t0\t", "4.jpg\t", r"has 4 labels of 4\.jpg, and 5 of 0\.jpg"),
        ("img_name\tBangs\tEyeglasses\tNo_Beard\tSmiling\tYoung\n", "", "has no column 'Smiling'. There is: '0', '1'"),
        (".jpg", ".png", r"No image has a caption .*'0\.jpg'.*'0\.jpg' and '0\.png'"),
    ],
)
def test_wrong_labels_are_named(tmp_path, old, new, message):
    file = write_faces(tmp_path) / "classification_label" / "combined_annotation_hq.txt"
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(ValueError, match=message):
        celeba_hq(tmp_path, size=8)


@pytest.mark.parametrize("content", ["{", "[]", '{"0.jpg": "text"}', '{"0.jpg": {}}'])
def test_wrong_captions_are_named(tmp_path, content):
    (write_faces(tmp_path) / "text" / "captions_hq.json").write_text(content)
    with pytest.raises(ValueError, match=r"captions_hq\.json is no complete table of captions"):
        celeba_hq(tmp_path, size=8)


def test_the_column_of_files_needs_no_name(tmp_path, faces):
    file = write_faces(tmp_path) / "classification_label" / "combined_annotation_hq.txt"
    file.write_text(file.read_text().replace("img_name", ""))
    assert celeba_hq(tmp_path, size=8).obs.equals(faces.obs)
