"""A user's labelled images: folders and the outputs they stand for, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from robustlib import data
from robustlib.card import load_images
from robustlib.card.images import MEMORY_LIMIT, readable
from robustlib.data import DataError

SIZE = 16


@pytest.fixture(autouse=True)
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROBUSTLIB_DATA", str(tmp_path / "data"))


def make_folder(root: Path, classes: Sequence[str], count: int = 2) -> Path:
    """Images of odd sizes, `count` a class."""
    generator = np.random.default_rng(0)
    for k, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(count):
            pixels = generator.integers(0, 256, (20 + 3 * k, 30 - i, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


def write_classes(file: Path, lines: Sequence[str]) -> Path:
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "pets", ["cat", "dog", "eel"])


def labels_by_folder(found: data.Split) -> dict[str, set[int]]:
    labels: dict[str, set[int]] = {}
    for file, label in zip(found.files, found.labels.tolist(), strict=True):
        labels.setdefault(file.split("/")[0], set()).add(label)
    return labels


# --- What works -----------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [0, 4])
def test_a_folder_is_read_as_everywhere(pets: Path, n: int) -> None:
    expected, names = data.load_images(pets, n=n, image_size=SIZE)
    found = load_images(pets, image_size=SIZE, n=n, outputs=3)
    assert found.classes == names == ("cat", "dog", "eel")
    assert torch.equal(found.split.images, expected.float_images().mul(255).round().byte())
    assert torch.equal(found.split.labels, expected.labels)
    assert torch.equal(found.split.ids, expected.ids)
    assert found.split.files == expected.files
    assert found.unreadable == ()
    assert found.notes == (
        "The outputs are, in the alphabetical order of the folders: cat, dog, eel.",
    )


def test_a_file_of_classes_decides(pets: Path, tmp_path: Path) -> None:
    lines = ["ant", "eel", "cat", "bee", "dog", "bee"]
    file = write_classes(tmp_path / "names.txt", lines)
    found = load_images(pets, image_size=SIZE, classes=file, outputs=6)
    assert found.classes == tuple(lines)
    assert labels_by_folder(found.split) == {"cat": {2}, "dog": {4}, "eel": {1}}
    assert "3 of the 6 outputs have images." in found.notes
    plain = load_images(pets, image_size=SIZE, n=3)
    subset = load_images(pets, image_size=SIZE, classes=file, n=3)
    assert subset.split.files == plain.split.files
    assert torch.equal(subset.split.images, plain.split.images)
    assert torch.equal(subset.split.ids, plain.split.ids)


def test_wordnet_ids_are_enough(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "in", ["0000_n01440764_tench", "n01443537", "n99999999x"])
    lines = ["n99999999x", "n01443537 goldfish, Carassius auratus", "n01440764 tench, Tinca tinca"]
    file = write_classes(tmp_path / "synsets.txt", lines)
    found = load_images(root, image_size=SIZE, classes=file)
    assert [
        labels_by_folder(found.split)[name] for name in sorted(p.name for p in root.iterdir())
    ] == [
        {2},
        {1},
        {0},
    ]


def test_folders_named_by_index(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "in", ["1", "10", "2"])
    file = write_classes(tmp_path / "n.txt", [str(i) for i in range(11)])
    found = load_images(root, image_size=SIZE, classes=file, outputs=11)
    assert labels_by_folder(found.split) == {"1": {1}, "10": {10}, "2": {2}}


@pytest.mark.parametrize(
    ("parts", "used"), [("train test", "test"), ("train val", "val"), ("val", "val")]
)
def test_the_part_that_is_not_for_training(tmp_path: Path, parts: str, used: str) -> None:
    for part in parts.split():
        make_folder(tmp_path / "set" / part, ["cat", f"only in {part}"])
    found = load_images(tmp_path / "set", image_size=SIZE)
    assert found.classes == ("cat", f"only in {used}")


def test_a_class_called_test_is_a_class(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "set", ["test", "train", "trial"])
    assert load_images(root, image_size=SIZE).classes == ("test", "train", "trial")


def test_a_data_set_by_name(tmp_path: Path) -> None:
    expected = data.load("shapes10", n_train=10, n_test=20)
    found = load_images("shapes10", image_size=32, n=20, outputs=10)
    assert found.classes == expected.classes
    assert found.split.digest() == expected.test.digest()
    lines = [*reversed(expected.classes), "another"]
    file = write_classes(tmp_path / "names.txt", lines)
    turned = load_images("shapes10", image_size=32, n=20, classes=file)
    assert torch.equal(turned.split.labels, 9 - expected.test.labels)
    with pytest.raises(ValueError, match="of 10 classes, but the model has 5 outputs"):
        load_images("shapes10", image_size=32, n=20, outputs=5)
    with pytest.raises(ValueError, match="shapes10 has images of 32 pixels only"):
        load_images("shapes10", image_size=64, n=20)


def test_unreadable_files_are_left_out_and_named(pets: Path) -> None:
    (pets / "dog" / "0.png").write_bytes(b"no image")
    (pets / "eel" / "1.png").write_bytes(b"")
    found = load_images(pets, image_size=SIZE)
    expected = data.load_images(
        make_folder(pets.parent / "whole", ["cat", "dog", "eel"]), image_size=SIZE
    )[0]
    assert sorted(found.unreadable) == ["dog/0.png", "eel/1.png"]
    assert len(found.split) == 4
    keep = [expected.files.index(file) for file in found.split.files]
    assert torch.equal(found.split.images, expected.images[keep])
    assert torch.equal(found.split.labels, expected.labels[keep])
    assert torch.equal(found.split.ids, expected.ids[keep])
    assert found.notes[-1].startswith("2 image(s) can't be read and are left out: ")


def test_fewer_images_than_asked_for(pets: Path) -> None:
    assert len(load_images(pets, image_size=SIZE, n=100).split) == 6


# --- What is refused ------------------------------------------------------------------------------


def test_none_can_be_read(pets: Path) -> None:
    for file in pets.glob("*/*.png"):
        file.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"none of the 6 images can be read.*\.png"):
        load_images(pets, image_size=SIZE)


def test_another_number_of_classes_than_outputs(pets: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="of 3 classes, but the model has 5 outputs: give classes, a"
    ):
        load_images(pets, image_size=SIZE, outputs=5)
    file = write_classes(tmp_path / "names.txt", ["cat", "dog", "eel"])
    with pytest.raises(ValueError, match=r"names.txt names 3 classes, but the model has 5 outputs"):
        load_images(pets, image_size=SIZE, outputs=5, classes=file)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["cat", "doge", "eel"], r"1 of 3 class folders.*'dog' \(nearest there: 'doge'\)"),
        (["a", "b", "c"], "3 of 3 class folders"),
        (["cat", "dog", "dog", "eel"], "'dog' is named on the lines 2 and 3"),
        (["cat", "", "dog", "eel"], "line 2 of .* is empty"),
        ([" "], "is empty; it must name"),
    ],
)
def test_a_file_of_classes_that_does_not_fit(
    lines: list[str], message: str, pets: Path, tmp_path: Path
) -> None:
    file = write_classes(tmp_path / "names.txt", lines)
    with pytest.raises(DataError, match=message):
        load_images(pets, image_size=SIZE, classes=file)


def test_two_folders_of_one_output(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "in", ["0_n01440764", "n01440764"])
    file = write_classes(tmp_path / "names.txt", ["n01440764", "n01443537"])
    with pytest.raises(DataError, match="'0_n01440764' and 'n01440764' are both line 1"):
        load_images(root, image_size=SIZE, classes=file)


def test_a_file_of_classes_that_is_no_text(pets: Path, tmp_path: Path) -> None:
    (tmp_path / "names.bin").write_bytes(b"\xff\xfe\x00")
    for name in ("names.bin", "none.txt", "."):
        with pytest.raises(DataError, match="can't be read as text"):
            load_images(pets, image_size=SIZE, classes=tmp_path / name)


def test_folders_without_images(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no folder .*nothing.*shapes10"):
        load_images(tmp_path / "nothing", image_size=SIZE)
    (tmp_path / "bare").mkdir()
    with pytest.raises(DataError, match="one folder for each class"):
        load_images(tmp_path / "bare", image_size=SIZE)
    make_folder(tmp_path / "set" / "train", ["cat", "dog"])
    with pytest.raises(DataError, match=r"neither test/ nor val/; give .*train if"):
        load_images(tmp_path / "set", image_size=SIZE)


def test_more_than_memory_holds_is_told_before_decoding(pets: Path) -> None:
    side = int((MEMORY_LIMIT / 3 / 5) ** 0.5)  # five of the six images fit
    with pytest.raises(ValueError, match=r"6 images .* take 9.6 GiB; give n, at most 5,"):
        load_images(pets, image_size=side)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("n01440764 tench", "tench"),
        ("0002_n01484850_great_white_shark", "great white shark"),
        ("n01440764: tench, Tinca tinca", "tench, Tinca tinca"),
        ("n01440764", "n01440764"),
        ("3", "3"),
    ],
)
def test_classes_are_called_as_people_call_them(name: str, words: str) -> None:
    assert readable(name) == words
