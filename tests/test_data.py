"""The interface of the data sources, the folder source, CIFAR, and the cache."""

import ast
import hashlib
import os
import pickle
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from robustlib import data
from robustlib.core.checks import UnknownNameError, check_images
from robustlib.data import base, folder, images


@pytest.fixture(autouse=True)
def data_dir(tmp_path, monkeypatch):
    place = tmp_path / "data-dir"
    monkeypatch.setenv("ROBUSTLIB_DATA", str(place))
    return place


def write_image(path, seed=0, size=(8, 8), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return pixels


@pytest.fixture
def root(tmp_path):
    """Three classes; 4, 3 and 2 training images, 2 test images each, 8 x 8 pixels."""
    place = tmp_path / "pictures"
    for label, (name, count) in enumerate([("ape", 4), ("bee", 3), ("cat", 2)]):
        for i in range(count):
            write_image(place / "train" / name / f"{i}.png", seed=100 * label + i)
        for i in range(2):
            write_image(place / "test" / name / f"{i}.png", seed=1000 + 100 * label + i)
    return place


def load_folder(root, **arguments):
    return data.load("folder", root=root, **({"image_size": 8} | arguments))


def test_modules_import_only_those_before_them():
    order = [
        ("images",),
        ("streamed",),
        ("base",),
        ("cifar", "folder", "shapes10", "shared"),
        ("__init__",),
    ]
    before, package = set(), "robustlib.data."
    for names in order:
        for name in names:
            tree = ast.parse(Path(data.__file__).with_name(f"{name}.py").read_text())
            used = set()
            for node in ast.walk(tree):
                if isinstance(node, ast.ImportFrom) and f"{node.module}.".startswith(package):
                    module = f"{node.module}.".removeprefix(package).strip(".")
                    used |= {module} if module else {alias.name for alias in node.names}
            assert used <= before, name
        before |= {*names}
    assert len(before) == len(list(Path(data.__file__).parent.glob("*.py")))


# --- The interface --------------------------------------------------------------------------


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(UnknownNameError, match="Did you mean 'cifar10'"):
        data.load("cifar-10")


def test_sources_of_one_size_refuse_others():
    with pytest.raises(ValueError, match="32 pixels only"):
        data.load("shapes10", image_size=64)
    with pytest.raises(ValueError, match="32 pixels only"):
        data.load("cifar10", image_size=64)
    with pytest.raises(ValueError, match="takes no root"):
        data.load("shapes10", root="somewhere")


@pytest.mark.parametrize("bad", [-1, 2.5, True, "10"])
def test_sizes_must_be_counts(root, bad):
    with pytest.raises(ValueError, match="n_train must be an integer"):
        load_folder(root, n_train=bad)
    with pytest.raises(ValueError, match="n_test must be an integer"):
        data.load("shapes10", n_train=1, n_test=bad)


def test_split_refuses_wrong_types():
    images, labels = torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match="uint8"):
        data.Split(images.float(), labels, labels)
    with pytest.raises(ValueError, match="got ndarray"):
        data.Split(images.numpy(), labels, labels)
    with pytest.raises(ValueError, match="labels must be int64"):
        data.Split(images, labels.float(), labels)
    with pytest.raises(ValueError, match="ids must be int64"):
        data.Split(images, labels, labels[:1])
    with pytest.raises(ValueError, match="files must name 2 files"):
        data.Split(images, labels, labels, ["a.png"])


@pytest.mark.parametrize("make", [list, np.array, torch.tensor, lambda x: np.array(x, np.uint8)])
def test_split_takes_whole_numbers_of_any_kind(make):
    split = data.Split(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), make([1, 0]), make([7, 8]))
    assert split.labels.dtype == split.ids.dtype == torch.int64
    assert (split.labels.tolist(), split.ids.tolist()) == ([1, 0], [7, 8])
    assert split.first(np.int64(1)).ids.tolist() == [7]


def test_split_takes_arrays_that_may_not_be_written_to():
    labels = np.arange(2)
    labels.flags.writeable = False
    split = data.Split(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), labels, labels)
    assert split.labels.tolist() == [0, 1]


def test_float_images_are_an_image_batch(root):
    split = load_folder(root).train
    assert torch.equal(check_images(split.float_images()), split.images / 255)
    assert torch.equal(split.float_images(slice(1, 3)), split.images[1:3] / 255)
    assert torch.equal(split.float_images(torch.tensor([2, 0])), split.images[[2, 0]] / 255)
    assert len(split.to("cpu")) == len(split) == 9


def test_fingerprint_changes_with_anything_that_matters(root):
    original = load_folder(root)
    train = original.train

    def fingerprint(classes=original.classes, **changed):
        fields = {"images": train.images, "labels": train.labels, "ids": train.ids} | changed
        return base.Dataset.build("x", classes, data.Split(**fields), original.test).fingerprint

    pixel = train.images.clone()
    pixel[0, 0, 0, 0] ^= 1
    prints = {
        original.fingerprint,
        fingerprint(images=pixel),
        fingerprint(labels=train.labels.roll(1)),
        fingerprint(ids=train.ids.roll(1)),
        fingerprint(classes=("ape", "bee", "cow")),
    }
    assert len(prints) == 5
    assert fingerprint() == original.fingerprint
    assert len(original.fingerprint) == 64


def test_numbers_of_any_kind_are_taken(root):
    expected = load_folder(root, n_train=3, n_test=3)
    for three, eight in ((np.int64(3), np.int32(8)), (3.0, 8.0), (torch.tensor(3), np.array(8))):
        found = load_folder(root, n_train=three, n_test=three, image_size=eight)
        assert found.fingerprint == expected.fingerprint
    with pytest.raises(ValueError, match="in_memory must be True or False"):
        load_folder(root, in_memory="yes")


def test_other_defaults_change_nothing(root, data_dir):
    expected = load_folder(root)
    shutil.rmtree(data_dir)
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    try:
        found, streamed = load_folder(root), load_folder(root, in_memory=False)
        for split in (found.train, streamed.train):
            assert torch.equal(split.float_images(), expected.train.images.float() / 255)
            assert split.float_images().dtype == torch.float32
            assert split.float_images(slice(0)).dtype == torch.float32
        assert found.fingerprint == expected.fingerprint
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)


def test_a_folder_split_knows_its_files(root):
    whole, streamed = load_folder(root).train, load_folder(root, in_memory=False).train
    part = load_folder(root, n_train=5).train
    assert whole.files == streamed.files
    assert part.files == whole.files[:5] == whole.first(5).files == whole.to("cpu").first(5).files
    for image, name in zip(whole.images, whole.files, strict=True):
        with Image.open(root / "train" / name) as expected:
            assert np.array_equal(image.permute(1, 2, 0).numpy(), np.asarray(expected))


# --- Subsets --------------------------------------------------------------------------------


def test_subsets_are_balanced_nested_and_shuffled():
    labels = np.repeat(np.arange(5), 40)
    order = base.balanced_order(labels)
    assert sorted(order) == list(range(200))
    for n in (5, 50, 125):
        subset = base.subset_ids(labels, n, "n")
        assert np.array_equal(subset, order[:n])
        assert set(np.bincount(labels[subset], minlength=5)) == {n // 5}
    assert np.mean(np.diff(order[labels[order] == 0]) > 0) < 0.8


def test_unbalanced_classes_run_out_one_by_one():
    labels = np.array([0, 0, 0, 0, 1, 2, 2])
    assert list(labels[base.balanced_order(labels)]) == [0, 1, 2, 0, 2, 0, 0]


def test_folder_subset_keeps_ids_and_pixels(root):
    whole, part = load_folder(root), load_folder(root, n_train=6, n_test=3)
    assert (len(part.train), len(part.test)) == (6, 3)
    assert part.train.labels.bincount().tolist() == [2, 2, 2]
    for small, large in ((part.train, whole.train), (part.test, whole.test)):
        n = len(small)
        assert torch.equal(small.images, large.images[:n])
        assert torch.equal(small.ids, large.ids[:n])


def test_more_than_there_is(root):
    with pytest.raises(ValueError, match="n_train=10, but there are only 9"):
        load_folder(root, n_train=10)
    with pytest.raises(ValueError, match="n_test=7, but there are only 6"):
        load_folder(root, n_test=7)


# --- Folder ---------------------------------------------------------------------------------


def test_folder_reads_pixels_and_labels(root):
    dataset = load_folder(root)
    assert dataset.classes == ("ape", "bee", "cat")
    assert dataset.image_size == 8
    files = [("ape", i) for i in range(4)] + [("bee", i) for i in range(3)]
    files += [("cat", i) for i in range(2)]
    for image, label, index in zip(*dataset.train.tensors().values(), strict=True):
        name, number = files[index]
        assert dataset.classes[label] == name
        with Image.open(root / "train" / name / f"{number}.png") as expected:
            assert np.array_equal(image.permute(1, 2, 0).numpy(), np.asarray(expected))


def test_folder_val_instead_of_test(root):
    expected = load_folder(root)
    (root / "test").rename(root / "val")
    assert load_folder(root).fingerprint == expected.fingerprint


def test_folder_resizes_as_torchvision_does(root):
    write_image(root / "train" / "ape" / "wide.png", size=(90, 50))
    split = load_folder(root, image_size=28).train
    with Image.open(root / "train" / "ape" / "wide.png") as image:
        resized = torchvision.transforms.functional.resize(image, 32)
        expected = torchvision.transforms.functional.center_crop(resized, 28)
    found = split.images[split.ids == 4][0].permute(1, 2, 0)
    assert np.array_equal(found.numpy(), np.asarray(expected))


@pytest.mark.parametrize("size", [(3, 40), (40, 3), (7, 8), (300, 5)])
def test_folder_takes_images_of_any_shape(root, size):
    write_image(root / "train" / "ape" / "odd.png", size=size)
    assert load_folder(root).train.images.shape == (10, 3, 8, 8)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1"])
def test_folder_converts_to_rgb(root, mode):
    write_image(root / "train" / "ape" / "other.png", mode=mode)
    assert load_folder(root).train.images.shape == (10, 3, 8, 8)


def test_folder_names_what_it_passes_over_in_one_warning(root):
    expected = load_folder(root).fingerprint
    (root / "train" / "ape" / ".DS_Store.png").write_text("no image")
    (root / "train" / ".git").mkdir()
    assert load_folder(root).fingerprint == expected, "hidden files, silently"
    for name in ("train/ape/deep/a.heic", "train/list.txt", "test/bee/b.svg", "test/bee/c.PNG.gz"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("no image")
    os.mkfifo(root / "train" / "cat" / "pipe.png")
    with pytest.warns(UserWarning, match=r"5 file\(s\) passed over") as caught:
        assert load_folder(root).fingerprint == expected
    (warning,) = caught
    assert warning.filename == __file__
    for name in ("a.heic", "list.txt", "b.svg", "c.PNG.gz", "pipe.png"):
        assert name in str(warning.message)


def test_folder_finds_a_relative_root(root, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    expected = load_folder("pictures").fingerprint
    monkeypatch.chdir(root)
    monkeypatch.setattr(folder.paths, "project_root", lambda: tmp_path)
    assert load_folder("pictures").fingerprint == expected


def remove_all(place):
    for path in sorted(place.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    place.rmdir()


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        ("", r"there is no folder .*pictures; name one that holds train/"),
        ("train", r"pictures has no folder train/"),
        ("test", r"pictures has neither test/ nor val/"),
        ("test/bee", r"1 class\(es\) of .*train have no folder in .*test: bee"),
        ("train/cat", r"1 class\(es\) of .*test have no folder in .*train: cat"),
    ],
)
def test_folder_says_what_is_missing(root, gone, message):
    remove_all(root / gone)
    with pytest.raises(data.DataError, match=message):
        load_folder(root)


def test_folder_without_images(root):
    for path in (root / "test" / "bee").iterdir():
        path.unlink()
    with pytest.raises(data.DataError, match=r"test/bee has no images .*\.png"):
        load_folder(root)
    remove_all(root / "test")
    (root / "test").mkdir()
    with pytest.raises(data.DataError, match=r"test has no images: it should hold one folder"):
        load_folder(root)


def test_folder_needs_a_root():
    with pytest.raises(data.DataError, match="needs root"):
        data.load("folder")


@pytest.mark.parametrize("bad", [0, -3, 2.5, True, "8"])
def test_folder_image_size(root, bad):
    with pytest.raises(ValueError, match="image_size must be an integer"):
        load_folder(root, image_size=bad)


@pytest.mark.parametrize("content", [b"", b"not an image", "truncated"])
def test_folder_names_an_unreadable_image(root, content):
    broken = root / "train" / "bee" / "1.png"
    broken.write_bytes(broken.read_bytes()[:60] if content == "truncated" else content)
    with pytest.raises(data.DataError, match=r"can't read the image .*train/bee/1\.png"):
        load_folder(root)


def test_folder_names_a_broken_link(root):
    (root / "test" / "cat" / "gone.png").symlink_to(root / "nowhere.png")
    with pytest.raises(data.DataError, match=r"can't read the image .*test/cat/gone\.png"):
        load_folder(root)


@pytest.mark.parametrize("in_memory", [True, False])
def test_names_that_are_not_utf_8(root, in_memory):
    expected = load_folder(root, in_memory=in_memory)
    pixels = expected.train.float_images()
    odd = os.fsdecode(b"bee\xff")
    try:
        for part in ("train", "test"):
            (root / part / "bee" / "1.png").rename(root / part / "bee" / os.fsdecode(b"1\xff.png"))
            (root / part / "bee").rename(root / part / odd)
    except OSError:
        pytest.skip("this disk takes UTF-8 names only")
    found = load_folder(root, in_memory=in_memory)
    assert found.classes == ("ape", odd, "cat")
    assert torch.equal(found.train.float_images(), pixels)
    assert found.fingerprint != expected.fingerprint
    (root / "train" / odd / "0.png").write_bytes(b"no image")
    with pytest.raises(data.DataError, match=r"bee\\xff/0\.png"):
        load_folder(root, in_memory=in_memory).train.float_images()


def test_folder_that_leads_back_to_itself(root):
    (root / "train" / "ape" / "all").symlink_to(root / "train")
    with pytest.raises(data.DataError, match="leads back to"):
        load_folder(root)


def test_folder_that_cannot_be_listed(root):
    (root / "train" / "self").symlink_to(root / "train" / "self")
    with pytest.raises(data.DataError, match=r"can't list the folder .*train \("):
        load_folder(root)


# --- The cache ------------------------------------------------------------------------------


def test_second_load_decodes_nothing(root, monkeypatch):
    expected = load_folder(root).fingerprint
    monkeypatch.setattr(folder, "_decode", None)
    assert load_folder(root).fingerprint == expected


def test_changed_image_is_read_again(root):
    before = load_folder(root).fingerprint
    write_image(root / "train" / "ape" / "0.png", seed=5, size=(9, 9))
    assert load_folder(root).fingerprint != before


def test_a_changed_decoder_decodes_again(root, monkeypatch):
    before = load_folder(root)
    streamed = load_folder(root, in_memory=False).fingerprint
    monkeypatch.setattr(images, "_LONG", 5)
    assert load_folder(root, in_memory=False).fingerprint != streamed
    monkeypatch.setattr(folder, "_decode", lambda files, *_: torch.zeros_like(before.train.images))
    with pytest.raises(ValueError, match="labels must be int64"):  # so it was called
        load_folder(root)


def test_a_cache_that_cannot_be_read_is_made_again(root, data_dir, monkeypatch):
    expected = load_folder(root).fingerprint

    def forbidden(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(base.tensorfile, "read", forbidden)
    with pytest.warns(UserWarning, match=r"can't read .*Permission denied.*making it again"):
        assert load_folder(root).fingerprint == expected


def test_the_cache_is_readable_as_the_umask_says(root, data_dir):
    before = os.umask(0o022)
    try:
        load_folder(root)
    finally:
        os.umask(before)
    assert data_dir.joinpath("cache").stat().st_mode & 0o777 == 0o755
    for file in (data_dir / "cache").iterdir():
        assert file.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("damage", ["pixel", "half", "empty", "foreign"])
def test_damaged_cache_is_made_again_with_a_warning(root, data_dir, damage):
    expected = load_folder(root).fingerprint
    for file in (data_dir / "cache").iterdir():
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        pieces = {"pixel": content, "half": content[: len(content) // 2], "empty": b""}
        file.write_bytes(pieces.get(damage, b"something else altogether"))
    with pytest.warns(UserWarning, match="is damaged .* making it again"):
        assert load_folder(root).fingerprint == expected
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_folder(root).fingerprint == expected


def test_no_temporary_files_are_left(root, data_dir):
    load_folder(root)
    assert {file.suffix for file in (data_dir / "cache").iterdir()} == {".safetensors"}


def test_data_folder_that_cannot_be_written_only_warns(root, data_dir):
    data_dir.write_text("a file where a folder should be")
    with pytest.warns(UserWarning, match="can't keep data in"):
        assert len(load_folder(root).train) == 9


# --- CIFAR ----------------------------------------------------------------------------------


def fake_archive(place, monkeypatch, source, key):
    """Files in the layout of the published archive, with their checksums told to torchvision."""
    directory = place / source.base_folder
    directory.mkdir(parents=True)
    rng = np.random.default_rng(0)

    def write(name, content):
        payload = pickle.dumps(content)
        (directory / name).write_bytes(payload)
        return [name, hashlib.md5(payload).hexdigest()]

    def batch(n):
        pixels = rng.integers(0, 256, (n, 3072), dtype=np.uint8)
        return {"data": pixels, key: [i % 4 for i in range(n)]}

    train, test = [batch(12), batch(12)], batch(8)
    names = write("meta-file", {"names": ["ape", "bee", "cat", "dog"]})
    monkeypatch.setattr(source, "train_list", [write(f"b{i}", b) for i, b in enumerate(train)])
    monkeypatch.setattr(source, "test_list", [write("test", test)])
    meta = {"filename": names[0], "key": "names", "md5": names[1]}
    monkeypatch.setattr(source, "meta", meta)
    return np.concatenate([b["data"] for b in train]).reshape(-1, 3, 32, 32)


@pytest.mark.parametrize(
    ("name", "source", "key"),
    [
        ("cifar10", torchvision.datasets.CIFAR10, "labels"),
        ("cifar100", torchvision.datasets.CIFAR100, "fine_labels"),
    ],
)
def test_cifar_from_an_archive_on_disk(data_dir, monkeypatch, name, source, key):
    pixels = fake_archive(data_dir / name, monkeypatch, source, key)
    dataset = data.load(name, n_train=8)
    assert dataset.classes == ("ape", "bee", "cat", "dog")
    assert (len(dataset.train), len(dataset.test)) == (8, 8)
    assert np.array_equal(dataset.train.images.numpy(), pixels[dataset.train.ids])
    assert torch.equal(dataset.train.labels, dataset.train.ids % 4)
    with pytest.raises(ValueError, match="there are only 24"):
        data.load(name, n_train=25)


def test_cifar_without_a_network_says_what_to_do(data_dir, monkeypatch):
    def no_network(*_arguments, **_options):
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.datasets.cifar, "download_and_extract_archive", no_network)
    with pytest.raises(data.DataUnavailableError) as raised:
        data.load("cifar10")
    message = str(raised.value)
    assert str(data_dir / "cifar10") in message
    for part in ("cifar-10-python.tar.gz", "no route to host", "dataset='folder'", "shapes10"):
        assert part in message
    assert isinstance(raised.value, ValueError)


def test_cifar_tampered_file_is_never_unpickled(data_dir, monkeypatch):
    source = torchvision.datasets.CIFAR10
    fake_archive(data_dir / "cifar10", monkeypatch, source, "labels")
    (data_dir / "cifar10" / source.base_folder / "b1").write_bytes(b"cos\nsystem\n")
    monkeypatch.setattr(
        torchvision.datasets.cifar, "download_and_extract_archive", lambda *a, **k: None
    )
    with pytest.raises(data.DataUnavailableError, match="not found or corrupted"):
        data.load("cifar10")


def test_one_folder_of_images_is_enough_to_evaluate_on(root) -> None:
    whole = data.load("folder", root=root, image_size=16).test
    for in_memory in (None, True, False):
        split, classes = data.load_images(root / "test", image_size=16, in_memory=in_memory)
        assert classes == data.load("folder", root=root, image_size=16).classes
        assert torch.equal(split.labels, whole.labels)
        assert torch.equal(split.float_images(), whole.float_images())
        assert isinstance(split, data.StreamedSplit) is (in_memory is False)
    part, _ = data.load_images(root / "test", n=2, image_size=16)
    assert torch.equal(part.ids, whole.ids[:2])
    with pytest.raises(
        data.DataError, match=r"there is no folder .*nowhere; name one that holds class"
    ):
        data.load_images(root / "nowhere")
    with pytest.raises(ValueError, match="n must be an integer"):
        data.load_images(root / "test", n=-1)
