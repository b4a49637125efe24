from __future__ import annotations

import json
import multiprocessing
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder

from robustlib import corruptions, models
from robustlib.core.checks import UnknownNameError
from robustlib.corruptions import corrupt
from robustlib.data import DataError, Dataset, Split
from robustlib.data import load as load_data
from robustlib.evaluation import evaluate
from robustlib.exchange import (
    MANIFEST,
    Stored,
    export_cifar_c,
    export_imagenet_c,
    reading,
    stored_names,
    writing,
)
from robustlib.exchange.__main__ import main
from robustlib.exchange.files import claim
from robustlib.models import Classifier

NAMES = ("fog", "contrast")


def rounded(split: Split, name: str, severity: int, seed: int = 0) -> torch.Tensor:
    """uint8 (N, 3, H, W): what a file should hold."""
    corrupted = corrupt(split.float_images(), name, severity, seed, split.ids)
    return corrupted.mul(255).round().to(torch.uint8)


def part_of(split: Split, index: torch.Tensor) -> Split:
    return Split(split.images[index], split.labels[index], split.ids[index])


def contents(folder: Path) -> dict[str, bytes]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.rglob("*.*") if path.is_file()}


def apply(stored: Stored, split: Split) -> torch.Tensor:
    return stored.apply(split.float_images(), split.labels, split.ids, None, 0)


def opened(path: Path) -> np.ndarray:
    """uint8 (H, W, 3)"""
    with Image.open(path) as image:
        assert image.mode == "RGB"
        return np.array(image)


def one_image(pixels: np.ndarray, image_id: int) -> Split:
    images = torch.from_numpy(pixels.transpose(2, 0, 1)[None].copy())
    return Split(images, torch.tensor([0]), torch.tensor([image_id]))


def make_images(root: Path, count: int = 3, side: int = 24) -> Path:
    """Class folders b and a; sizes and kinds differ if `side` is 0."""
    generator = np.random.default_rng(0)
    for label in ("b", "a"):
        (root / label).mkdir(parents=True)
        for i in range(count):
            size = (side or 20 + 4 * (i % 2), side or 30)
            pixels = generator.integers(0, 256, (*size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / label / f"{i}.png")
    return root


@pytest.fixture
def cifar(tiny: Dataset, tmp_path: Path) -> Path:
    export_cifar_c(tmp_path / "c", tiny.test, NAMES, progress=False)
    return tmp_path / "c"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return make_images(tmp_path / "photos")


def test_arrays_have_the_layout_of_cifar_10_c(tiny, tmp_path) -> None:
    shuffled = part_of(tiny.test, torch.randperm(60))
    written = export_cifar_c(tmp_path, shuffled, NAMES, seed=7, progress=False)
    assert written == 2 * 5 * 60
    assert {path.name for path in tmp_path.iterdir()} == {
        *("fog.npy", "contrast.npy", "labels.npy", "robustlib.json"),
        *("fog.json", "contrast.json"),
    }
    labels = np.load(tmp_path / "labels.npy")
    assert labels.dtype == np.uint8
    assert labels.tolist() == tiny.test.labels.tolist() * 5
    for name in NAMES:
        pixels = np.load(tmp_path / f"{name}.npy")
        assert pixels.dtype == np.uint8
        assert pixels.shape == (300, 16, 16, 3)
        for severity, block in enumerate(np.split(pixels, 5), start=1):
            expected = rounded(tiny.test, name, severity, seed=7)
            np.testing.assert_array_equal(block.transpose(0, 3, 1, 2), expected)


def test_batches_make_no_difference(tiny, tmp_path, monkeypatch) -> None:
    export_cifar_c(tmp_path / "one", tiny.test, NAMES, progress=False)
    monkeypatch.setattr(writing, "_BATCH_VALUES", 7 * 768 + 1)
    export_cifar_c(tmp_path / "many", tiny.test, NAMES, progress=False)
    assert contents(tmp_path / "one") == contents(tmp_path / "many")


def test_stored_arrays_are_mapped_and_read_by_id(tiny, cifar) -> None:
    assert stored_names(cifar) == ("contrast", "fog")
    some = part_of(tiny.test, torch.tensor([41, 3, 17]))
    for severity in (1, 5):
        stored = Stored("fog", severity, cifar)
        assert (stored.family, stored.needs_model) == ("weather", False)
        seen = apply(stored, some)
        assert seen.dtype == torch.float32
        assert seen.is_contiguous()
        assert torch.equal(seen, rounded(some, "fog", severity).float() / 255)
    first = reading._open_array(cifar / "fog.npy")
    assert isinstance(first, np.memmap)
    assert reading._open_array(cifar / "fog.npy") is first


def test_a_part_of_a_data_set_keeps_its_ids(tiny, tmp_path) -> None:
    part = part_of(tiny.test, torch.tensor([50, 8, 31, 2]))
    export_cifar_c(tmp_path, part, ["fog"], progress=False)
    assert np.load(tmp_path / "ids.npy").tolist() == [2, 8, 31, 50]
    few = part_of(part, torch.tensor([2, 0]))
    seen = apply(Stored("fog", 2, tmp_path), few)
    assert torch.equal(seen, rounded(few, "fog", 2).float() / 255)
    with pytest.raises(ValueError, match="4 images at each severity, and none of id 3"):
        apply(Stored("fog", 2, tmp_path), part_of(tiny.test, torch.tensor([2, 3])))


def test_a_second_export_adds_only_what_is_missing(tiny, cifar) -> None:
    before = times(cifar)
    assert export_cifar_c(cifar, tiny.test, ("fog", "snow"), progress=False) == 300
    assert before.items() <= times(cifar).items()
    assert export_cifar_c(cifar, tiny.test, ("fog", "snow"), progress=False) == 0
    assert stored_names(cifar) == ("contrast", "fog", "snow")


def test_having_run_changes_no_record(tiny, tmp_path) -> None:
    few, names = tiny.test.first(2), corruptions.names()
    assert export_cifar_c(tmp_path, few, names, progress=False) == len(names) * 10
    assert export_cifar_c(tmp_path, few, names, progress=False) == 0


def test_another_manifest_is_refused(tiny, cifar) -> None:
    before = contents(cifar)
    with pytest.raises(ValueError, match=r"made otherwise: seed 0 there, 1 now\. Name another"):
        export_cifar_c(cifar, tiny.test, ["snow"], seed=1)
    with pytest.raises(ValueError, match=r"split '.*' there, '.*' now, n 60 there, 9 now"):
        export_cifar_c(cifar, tiny.test.first(9), ["snow"])
    manifest = json.loads((cifar / MANIFEST).read_text())
    assert manifest["robustlib"] == "0.1.0"
    assert manifest["torch"] == torch.__version__
    assert contents(cifar) == before
    (cifar / MANIFEST).write_text("{")
    with pytest.raises(ValueError, match="is damaged"):
        export_cifar_c(cifar, tiny.test, ["snow"])
    (cifar / MANIFEST).unlink()
    with pytest.raises(ValueError, match="unknown origin"):
        export_cifar_c(cifar, tiny.test, ["snow"])


def test_bad_splits_and_names(tiny, tmp_path) -> None:
    twice = part_of(tiny.test, torch.tensor([1, 1]))
    many = Split(tiny.test.images, tiny.test.labels + 254, tiny.test.ids)
    for split, names, message in [
        (tiny.test, ["fogg"], "Did you mean 'fog'"),
        (tiny.test, [], "names .* is empty"),
        (tiny.test, ["fog", "fog"], "repeats"),
        (tiny.test.first(0), ["fog"], "at least one image"),
        (twice, ["fog"], "each id only once"),
        (many, ["fog"], r"classes 0 \.\. 255, got 254 \.\. 256"),
    ]:
        with pytest.raises(ValueError, match=message):
            export_cifar_c(tmp_path / "new", split, names)
    with pytest.raises(ValueError, match="seed must be an integer"):
        export_cifar_c(tmp_path / "new", tiny.test, ["fog"], seed=1.5)
    assert not (tmp_path / "new").exists()


def test_stored_refuses_what_does_not_fit(tiny, cifar) -> None:
    fog = Stored("fog", 3, cifar)
    with pytest.raises(UnknownNameError, match=r"'foq'.*'fog'.* Allowed: contrast, fog\."):
        Stored("foq", 3, cifar)
    with pytest.raises(ValueError, match="1 to 5"):
        Stored("fog", 0, cifar)
    with pytest.raises(DataError, match="there is no folder"):
        Stored("fog", 3, cifar / "missing")
    (cifar / "empty").mkdir()
    with pytest.raises(DataError, match="neither"):
        Stored("fog", 3, cifar / "empty")
    other = Split(tiny.test.images, tiny.test.labels.flip(0), tiny.test.ids)
    with pytest.raises(ValueError, match=r"image 0 as 0, the split as 2 \(40 of 60 differ\)"):
        apply(fog, other)
    with pytest.raises(ValueError, match="none of id 60"):
        apply(fog, Split(tiny.test.images, tiny.test.labels, tiny.test.ids + 1))
    with pytest.raises(ValueError, match=r"images of \(16, 16\) pixels, the split of \(16, 12\)"):
        apply(fog, Split(tiny.test.images[..., :12], tiny.test.labels, tiny.test.ids))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("fog", np.zeros((10, 16, 16, 3)), r"must be uint8 \(5 n, H, W, 3\).*got float64"),
        ("fog", np.zeros((11, 16, 16, 3), np.uint8), r"got uint8 \(11, 16, 16, 3\)"),
        ("fog", np.zeros((10, 3, 16, 16), np.uint8), r"got uint8 \(10, 3, 16, 16\)"),
        ("fog", np.zeros(10, np.uint8), r"got uint8 \(10,\)"),
        ("labels", np.zeros(299, np.uint8), r"integers \(300,\).*got uint8 \(299,\)"),
        ("labels", np.zeros(300), "got float64"),
        ("fog", b"no array", "can't read .*fog.npy"),
        ("labels", None, "can't read .*labels.npy"),
    ],
)
def test_stored_checks_the_files(tiny, cifar, file, content, message) -> None:
    path = cifar / f"{file}.npy"
    path.unlink()
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.save(path, content)
    with pytest.raises(DataError, match=message):
        apply(Stored("fog", 3, cifar), tiny.test)


def test_a_truncated_array_is_an_error(tiny, cifar) -> None:
    path = cifar / "fog.npy"
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(DataError, match="can't read"):
        apply(Stored("fog", 5, cifar), tiny.test)


@dataclass(frozen=True)
class Rounded:
    name: str
    severity: int
    label: str = "rounded"
    family: str = "weather"
    needs_model: bool = False

    def key(self) -> dict[str, object]:
        return vars(self)

    def apply(self, images, labels, ids, model, seed):
        corrupted = corrupt(images, self.name, self.severity, seed, ids)
        return corrupted.mul(255).round().to(torch.uint8).float() / 255


@pytest.fixture(scope="module")
def model() -> Classifier:
    network = models.build("small_resnet", classes=3, image_size=16, seed=0).eval()
    return models.wrap(network, name="none")


def test_evaluation_on_files_equals_that_on_rounded_images(tiny, cifar, model, store) -> None:
    def run(cells: list) -> tuple[np.ndarray, int]:
        result = evaluate([model], tiny.test, cells, store=store, progress=False, batch_size=25)
        return result.correct, result.computed

    cells = [Stored("fog", severity, cifar) for severity in (1, 4)]
    expected, _ = run([Rounded("fog", severity) for severity in (1, 4)])
    found, computed = run(cells)
    assert computed == 2
    np.testing.assert_array_equal(found, expected)
    assert run(cells)[1] == 0
    moved = cifar.rename(cifar.with_name("moved"))
    cells = [Stored("fog", severity, str(moved)) for severity in (1, 4)]
    assert run(cells)[1] == 0, "found again wherever the folder lies"
    pixels = np.load(moved / "fog.npy")
    pixels[:60] = pixels[0]
    np.save(moved / "fog.npy", pixels)
    changed, computed = run(cells)
    assert computed == 2, "computed again since the file changed"
    alike = model.model(torch.from_numpy(pixels[:1].transpose(0, 3, 1, 2) / np.float32(255)))
    np.testing.assert_array_equal(changed[1], tiny.test.labels == alike.argmax())


def test_images_have_the_layout_of_imagenet_c(photos, tmp_path) -> None:
    out = tmp_path / "c"
    assert export_imagenet_c(photos, out, NAMES, severities=(2, 5), progress=False) == 24
    assert {p.name for p in out.iterdir()} == {"fog", "contrast", "robustlib.json"}
    assert stored_names(out) == ("contrast", "fog")
    source, written = ImageFolder(str(photos)), ImageFolder(str(out / "fog" / "5"))
    assert written.classes == source.classes == ["a", "b"]
    assert written.targets == source.targets
    for i in range(6):
        expected = rounded(one_image(np.array(source[i][0]), i), "fog", 5)[0].permute(1, 2, 0)
        np.testing.assert_array_equal(np.asarray(written[i][0]), expected)


def test_images_of_any_size_kind_and_depth(tmp_path, monkeypatch) -> None:
    source = tmp_path / "flat"
    (source / "deep").mkdir(parents=True)
    for i, (mode, size) in enumerate([("L", (20, 30)), ("RGBA", (20, 30)), ("P", (9, 5))]):
        Image.effect_noise(size, 50).convert(mode).save(source / f"{i}.png")
    Image.effect_noise((20, 30), 50).convert("RGB").save(source / "deep" / "x.JPEG")
    monkeypatch.setattr(writing, "_BATCH_VALUES", 2 * 3 * 600)
    export_imagenet_c(source, tmp_path / "c", ["fog"], severities=[1], progress=False)
    folder = tmp_path / "c" / "fog" / "1"
    shapes = {str(p.relative_to(folder)): opened(p).shape for p in folder.rglob("*.png")}
    tall = (30, 20, 3)
    assert shapes == {"0.png": tall, "1.png": tall, "2.png": (5, 9, 3), "deep/x.png": tall}
    last = one_image(opened(source / "deep" / "x.JPEG"), 3)
    expected = rounded(last, "fog", 1)[0].permute(1, 2, 0)
    np.testing.assert_array_equal(opened(folder / "deep" / "x.png"), expected)
    export_imagenet_c(
        source,
        tmp_path / "j",
        ["fog"],
        severities=[1],
        image_size=16,
        image_format="jpeg",
        progress=False,
    )
    written = sorted((tmp_path / "j" / "fog" / "1").rglob("*.jpg"))
    assert [opened(path).shape for path in written] == [(16, 16, 3)] * 4
    assert all(path.read_bytes().startswith(b"\xff\xd8") for path in written)


def test_stored_images_fit_the_folder_data_set(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("ROBUSTLIB_DATA", str(tmp_path / "data"))
    make_images(tmp_path / "set" / "test", count=5, side=0)
    make_images(tmp_path / "set" / "train", count=1)
    dataset = load_data("folder", root=tmp_path / "set", image_size=24)
    out = tmp_path / "c"
    export_imagenet_c(
        tmp_path / "set" / "test", out, ["fog"], severities=[3], image_size=24, progress=False
    )
    seen = apply(Stored("fog", 3, out), dataset.test)
    assert torch.equal(seen, rounded(dataset.test, "fog", 3).float() / 255)
    half = Split(dataset.test.images[..., ::2, ::2], dataset.test.labels, dataset.test.ids)
    assert apply(Stored("fog", 3, out), half).shape == (10, 3, 12, 12)
    with pytest.raises(DataError, match="severity 4 is missing"):
        Stored("fog", 4, out)
    wide = Split(dataset.test.images[..., :12], dataset.test.labels, dataset.test.ids)
    with pytest.raises(ValueError, match="squares"):
        apply(Stored("fog", 3, out), wide)
    swapped = Split(dataset.test.images, 1 - dataset.test.labels, dataset.test.ids)
    with pytest.raises(ValueError, match="10 of 10 differ"):
        apply(Stored("fog", 3, out), swapped)
    before = Stored("fog", 3, out).digest()
    image = next((out / "fog" / "3").rglob("*.png"))
    os.utime(image, ns=(0, 0))
    assert Stored("fog", 3, out).digest() != before
    with pytest.raises(ValueError, match="none of id 10"):
        apply(Stored("fog", 3, out), Split(half.images[:1], half.labels[:1], [10]))
    image.unlink()
    with pytest.raises(DataError, match=image.name):
        Stored("fog", 3, out).digest()


def test_an_unregistered_name_has_the_family_stored(cifar) -> None:
    (cifar / "fog.npy").rename(cifar / "sand.npy")
    assert "sand" not in corruptions.names()
    assert Stored("sand", 1, cifar).family == "stored"


def test_bad_sources(photos, tmp_path) -> None:
    out = tmp_path / "c"
    with pytest.raises(DataError, match="there is no folder"):
        export_imagenet_c(tmp_path / "missing", out, NAMES)
    with pytest.raises(ValueError, match="image format 'gif'"):
        export_imagenet_c(photos, out, NAMES, image_format="gif")
    with pytest.raises(ValueError, match="got 0"):
        export_imagenet_c(photos, out, NAMES, image_size=0)
    with pytest.raises(ValueError, match="got 6"):
        export_imagenet_c(photos, out, NAMES, severities=[6])
    with pytest.raises(ValueError, match="lies in"):
        export_imagenet_c(photos, photos / "c", NAMES)
    shutil.copy(photos / "a" / "0.png", photos / "a" / "0.jpg")
    with pytest.raises(ValueError, match=r"a/0\.jpg and a/0\.png would both become a/0\.png"):
        export_imagenet_c(photos, out, NAMES)
    assert not out.exists()
    out.touch()
    with pytest.raises(ValueError, match="c is a file, but a folder is wanted"):
        export_imagenet_c(photos, out, NAMES)
    (tmp_path / "none").mkdir()
    out.unlink()
    with pytest.raises(DataError, match="holds no images"):
        export_imagenet_c(tmp_path / "none", out, NAMES)


def test_an_unreadable_image_is_named_before_anything_is_written(photos, tmp_path) -> None:
    broken = photos / "b" / "1.png"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:-300])
    for folder, size in (("own", None), ("cropped", 16)):
        with pytest.raises(DataError, match=r"can't read the image .*b/1\.png"):
            export_imagenet_c(photos, tmp_path / folder, ["fog"], image_size=size, progress=False)
        assert not (tmp_path / folder).exists()
    broken.write_bytes(whole)
    assert export_imagenet_c(photos, tmp_path / "own", ["fog"], progress=False) == 30
    broken.write_bytes(whole + b"changed")
    with pytest.raises(ValueError, match="made otherwise: files"):
        export_imagenet_c(photos, tmp_path / "own", ["fog"], progress=False)


EXPORT_ARRAYS = """
import torch
from robustlib.data import Split
from robustlib.exchange import export_cifar_c
g = torch.Generator().manual_seed(0)
images = torch.randint(0, 256, (900, 3, 32, 32), generator=g, dtype=torch.uint8)
split = Split(images, torch.arange(900) % 10, torch.arange(900))
export_cifar_c(r"{out}", split, ["contrast", "fog", "snow"], progress=False)
"""
EXPORT_IMAGES = """
from robustlib.exchange import export_imagenet_c
export_imagenet_c(r"{photos}", r"{out}", ["contrast", "fog", "snow"], progress=False)
"""


def run_and_kill(code: str, out: Path, ready: Callable[[], bool]) -> None:
    process = subprocess.Popen([sys.executable, "-c", code])
    try:
        deadline = time.monotonic() + 60
        while not ready():
            assert process.poll() is None, "finished before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    assert list(out.glob(".unfinished*")), "killed in the middle"


def test_a_killed_export_of_arrays_goes_on(tmp_path) -> None:
    out, calm = tmp_path / "killed", tmp_path / "calm"

    def ready() -> bool:
        return (out / "contrast.npy").exists() and bool(list(out.glob(".unfinished*/fog.npy")))

    run_and_kill(EXPORT_ARRAYS.format(out=out), out, ready)
    before = times(out)
    for path in out.glob("*.npy"):
        np.load(path)
    assert not (out / "snow.npy").exists()
    exec(EXPORT_ARRAYS.format(out=out))
    exec(EXPORT_ARRAYS.format(out=calm))
    assert contents(out) == contents(calm)
    assert times(out)["contrast.npy"] == before["contrast.npy"]
    assert not list(out.glob(".unfinished*"))


def test_a_killed_export_of_images_goes_on(tmp_path) -> None:
    photos = make_images(tmp_path / "photos", count=30, side=48)
    out, calm = tmp_path / "killed", tmp_path / "calm"
    run_and_kill(
        EXPORT_IMAGES.format(photos=photos, out=out),
        out,
        lambda: (out / "contrast" / "2").exists(),
    )
    finished = {path: path.stat().st_mtime_ns for path in (out / "contrast").rglob("*.png")}
    for path in finished:
        assert opened(path).shape == (48, 48, 3)
    assert 0 < len(finished) < 900
    exec(EXPORT_IMAGES.format(photos=photos, out=out))
    exec(EXPORT_IMAGES.format(photos=photos, out=calm))
    assert contents(out) == contents(calm)
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert not list(out.glob(".unfinished*"))


def test_unfinished_files_of_a_living_process_stay(tiny, cifar) -> None:
    host = platform.node()
    parts = [cifar / f".unfinished-{pid}-{host}-x" for pid in (os.getppid(), 2**30)]
    parts.append(cifar / f".unfinished-{2**30}-another-{host}-x")
    for part in parts:
        part.mkdir()
    export_cifar_c(cifar, tiny.test, ["snow"], progress=False)
    assert [part.exists() for part in parts] == [True, False, True]


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "robustlib.exchange", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_command_writes_images(photos, tmp_path) -> None:
    out = tmp_path / "c"
    result = command(photos, out, "--corruptions", "fog", "imagenet_c_extra", "--severities", 1)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1].startswith(f"30 images written; {out} is complete")
    assert stored_names(out) == ("fog", *sorted(corruptions.names("imagenet_c_extra")))


def test_a_misspelt_corruption_is_one_line(photos, tmp_path) -> None:
    result = command(photos, tmp_path / "c", "--corruptions", "fogg")
    assert result.returncode == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith(
        "python -m robustlib.exchange: unknown corruption or suite 'fogg'. Did you mean 'fog'?"
    )


def test_the_command_writes_arrays(photos, tmp_path, capsys) -> None:
    out = tmp_path / "c"
    arrays = [str(photos), str(out), "--layout", "cifar-c", "--corruptions", "fog"]
    assert main(arrays) == 2
    assert main([*arrays, "--image-size", "16", "--severities", "1"]) == 2
    assert main([*arrays, "--image-size", "0"]) == 2
    assert main([str(photos / "a"), *arrays[1:], "--image-size", "16"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in errors] == ["python -m robustlib.exchange"] * 4
    assert not out.exists()
    assert main([*arrays, "--image-size", "16"]) == 0
    assert "30 images written" in capsys.readouterr().out
    assert np.load(out / "fog.npy").shape == (30, 16, 16, 3)
    assert np.load(out / "labels.npy").tolist() == [0, 0, 0, 1, 1, 1] * 5


def test_an_interruption_is_said_in_a_line(photos, tmp_path, capsys, monkeypatch) -> None:
    out = tmp_path / "c"
    arguments = [str(photos), str(out), "--corruptions", "fog"]

    def interrupt(place, image_format, path, pixels):
        if path.parts[-3] == "3":
            raise failure
        write(place, image_format, path, pixels)

    write = writing._write_image
    monkeypatch.setattr(writing, "_write_image", interrupt)
    failure: BaseException = KeyboardInterrupt()
    assert main(arguments) == 130
    assert "interrupted; the same command goes on" in capsys.readouterr().err
    failure = OSError(28, "No space left on device")
    assert main(arguments) == 1
    expected = "No space left on device; put that right, and the same command goes on."
    assert expected in capsys.readouterr().err
    monkeypatch.undo()
    assert len(list(out.rglob("*.png"))) == 12
    assert main(arguments) == 0
    assert "18 images written" in capsys.readouterr().out


# --- Which image is which -----------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set of two classes whose files sort otherwise once they end in .png."""
    monkeypatch.setenv("ROBUSTLIB_DATA", str(tmp_path / "data"))
    generator = np.random.default_rng(5)
    for part in ("train", "test"):
        for label in ("ant", "bee"):
            (tmp_path / "set" / part / label).mkdir(parents=True)
            for name in ("img.bmp", "img.large.bmp", "img-2.bmp", "img2.bmp"):
                pixels = generator.integers(0, 256, (24, 24, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "set" / part / label / name)
    return tmp_path / "set"


def loaded(folders: Path, **arguments) -> Split:
    return load_data("folder", root=folders, image_size=24, **arguments).test


def exported(folders: Path, **arguments) -> Path:
    out = folders.parent / "c"
    export_imagenet_c(folders / "test", out, ["fog"], severities=[2], progress=False, **arguments)
    return out


def officially(out: Path) -> Path:
    """As others publish it: images only."""
    for record in out.rglob("*.json"):
        record.unlink()
    return out


def test_stored_images_are_paired_whatever_the_order_of_their_names(folders) -> None:
    out, split = exported(folders), loaded(folders)
    there = [path.stem for path in sorted((out / "fog" / "2" / "ant").iterdir())]
    assert there != [path.stem for path in sorted((folders / "test" / "ant").iterdir())]
    expected = rounded(split, "fog", 2).float() / 255
    assert torch.equal(apply(Stored("fog", 2, out), split), expected), "by the list of the export"
    assert torch.equal(apply(Stored("fog", 2, out).for_split(split), split), expected)
    streamed = loaded(folders, in_memory=False)
    assert torch.equal(apply(Stored("fog", 2, out).for_split(streamed), streamed), expected)
    with pytest.raises(ValueError, match="got StreamedSplit; load it with in_memory=True"):
        export_cifar_c(folders / "no", streamed, ["fog"])  # type: ignore[arg-type]
    few = loaded(folders, n_test=2)
    seen = apply(Stored("fog", 2, out).for_split(few), few)
    assert torch.equal(seen, rounded(few, "fog", 2).float() / 255)


def test_images_of_others_are_paired_by_name(folders) -> None:
    out, split = officially(exported(folders)), loaded(folders)
    expected = rounded(split, "fog", 2).float() / 255
    with pytest.raises(DataError, match="can only be told by name"):
        apply(Stored("fog", 2, out), split)
    with pytest.raises(DataError, match="can only be told by name"):
        Stored("fog", 2, out).key()
    nameless = Split(split.images, split.labels, split.ids)
    with pytest.raises(DataError, match="can only be told by name"):
        apply(Stored("fog", 2, out).for_split(nameless), nameless)
    bound = Stored("fog", 2, out).for_split(split)
    assert torch.equal(apply(bound, split), expected)
    extra = out / "fog" / "2" / "ant" / "a.png"
    shutil.copy(out / "fog" / "2" / "ant" / "img.png", extra)
    (out / "fog" / "2" / "aardvark").mkdir()
    shutil.copy(extra, out / "fog" / "2" / "aardvark" / "b.png")
    again = Stored("fog", 2, out).for_split(split)
    assert torch.equal(apply(again, split), expected), "more images shift nothing"
    assert again.key() == bound.key()
    with pytest.raises(ValueError, match="id 999 is not in the split"):
        apply(again, Split(split.images[:1], split.labels[:1], [999]))
    gone = out / "fog" / "2" / "bee" / "img-2.png"
    gone.unlink()
    with pytest.raises(DataError, match=r"has no images for bee/img-2\.bmp"):
        Stored("fog", 2, out).for_split(split)
    whole = Split(
        split.images[split.labels == 0],
        split.labels[split.labels == 0],
        split.ids[split.labels == 0],
        [name for name in split.files if name.startswith("ant")],
    )
    seen = apply(Stored("fog", 2, out).for_split(whole), whole)
    assert torch.equal(seen, expected[split.labels == 0]), "the missing one isn't wanted"


def test_pairings_that_are_not_one_to_one_are_refused(folders) -> None:
    out, split = officially(exported(folders)), loaded(folders)
    place = out / "fog" / "2" / "ant"
    shutil.copy(place / "img.png", place / "img.webp")
    with pytest.raises(DataError, match=r"has 2 images for ant/img\.bmp"):
        Stored("fog", 2, out).for_split(split)
    (place / "img.png").rename(place / "img.bmp")
    Stored("fog", 2, out).for_split(split)  # of the same name to the letter
    same = Split(split.images[:2], [0, 0], [0, 0], [*split.files[:2]])
    with pytest.raises(ValueError, match="images of the same id"):
        Stored("fog", 2, out).for_split(same)
    two = Split(split.images[:2], [0, 0], [0, 1], [Path("ant/img2.bmp"), Path("ant/img2.jpg")])
    with pytest.raises(DataError, match=r"would stand for both ant/img2\.jpg and ant/img2\.bmp"):
        Stored("fog", 2, out).for_split(two)


def test_a_pairing_is_part_of_the_key(folders) -> None:
    out, split = exported(folders), loaded(folders)
    stored = Stored("fog", 2, out)
    swapped = [*split.files]
    swapped[0], swapped[2] = swapped[2], swapped[0]
    other = Split(split.images, split.labels, split.ids, swapped)
    assert other.digest() == split.digest(), "the pixels are the same"
    assert stored.for_split(other).key() != stored.for_split(split).key()
    before = stored.for_split(split).key()
    moved = out.rename(out.with_name("moved"))
    assert Stored("fog", 2, moved).for_split(split).key() == before
    (moved / "fog" / "2" / "ant" / "img.png").write_bytes(b"changed")
    assert Stored("fog", 2, moved).for_split(split).key() != before


def test_evaluate_pairs_by_name(folders, store) -> None:
    out, split = officially(exported(folders)), loaded(folders)
    network = models.build("small_resnet", classes=2, image_size=24, seed=0).eval()
    tested = [models.wrap(network, name="mine")]
    cell = Stored("fog", 2, out, label="published fog")
    result = evaluate(tested, split, [cell], store=store, progress=False)
    expected = evaluate(tested, split, [Rounded("fog", 2)], store=store, progress=False)
    np.testing.assert_array_equal(result.correct, expected.correct)
    assert result.table["perturbation"].tolist() == ["clean", "published fog"]


def test_arrays_of_a_folder_remember_its_names(folders) -> None:
    split, out = loaded(folders), folders.parent / "arrays"
    export_cifar_c(out, split, ["fog"], progress=False)
    stored = Stored("fog", 2, out)
    few = loaded(folders, n_test=4)
    assert torch.equal(apply(stored.for_split(few), few), rounded(few, "fog", 2).float() / 255)
    nameless = Split(split.images, split.labels, split.ids)
    assert torch.equal(apply(stored.for_split(nameless), split), apply(stored, split))
    first = folders / "test" / "ant" / "a first one.bmp"
    shutil.copy(folders / "test" / "ant" / "img.bmp", first)
    with pytest.raises(ValueError, match=r"was made with ant/.*in its place.*Export them again"):
        stored.for_split(loaded(folders, n_test=4))


def test_arrays_made_from_other_images_are_refused(tiny, cifar) -> None:
    fog, split = Stored("fog", 3, cifar), tiny.test
    alike = Split(tiny.train.images[:60], split.labels, split.ids)
    with pytest.raises(ValueError, match=r"image 0 of the split is not the one .* \(60 of 60 diff"):
        apply(fog, alike)
    pixels = split.images.clone()
    pixels[7, 0, 0, 0] ^= 1
    with pytest.raises(ValueError, match=r"image 7 of the split is not .* \(1 of 60 differ\)"):
        apply(fog, Split(pixels, split.labels, split.ids))
    officially(cifar)
    assert apply(fog, alike).shape == (60, 3, 16, 16), "of others' files nothing is known"


def test_stored_ids_must_be_in_order(tiny, tmp_path) -> None:
    export_cifar_c(tmp_path, part_of(tiny.test, torch.tensor([50, 8])), ["fog"], progress=False)
    for ids in (np.array([50, 8]), np.array([8, 8]), np.array([8]), np.array([8.0, 50.0])):
        np.save(tmp_path / "ids.npy", ids)
        with pytest.raises(DataError, match="2 ascending integers"):
            apply(Stored("fog", 2, tmp_path), part_of(tiny.test, torch.tensor([8])))


def test_names_that_are_not_utf_8(folders, capsys) -> None:
    odd = os.fsdecode(b"\xff-class")
    try:
        for part in ("train", "test"):
            (folders / part / "bee").rename(folders / part / odd)
            (folders / part / odd / "img.bmp").rename(folders / part / odd / f"{odd}.bmp")
    except OSError:
        pytest.skip("this disk takes UTF-8 names only")
    split = loaded(folders)
    out = exported(folders, image_size=24)
    expected = rounded(split, "fog", 2).float() / 255
    for cell in (Stored("fog", 2, out), Stored("fog", 2, out).for_split(split)):
        assert torch.equal(apply(cell, split), expected)
        cell.key()
    streamed = loaded(folders, in_memory=False)
    assert torch.equal(streamed.float_images(), split.float_images())
    arguments = [str(folders / "test" / odd), str(out.with_name(odd)), "--corruptions", "fog"]
    assert main(arguments) == 0
    capsys.readouterr().out.encode()


# --- Several processes, and records -------------------------------------------------------------


def racing(place: Path, path: Path, seed: int, together, results) -> None:
    own = place / str(seed)
    own.mkdir()
    for i in range(40):
        together.wait()
        try:
            claim(path.with_name(f"{i}.json"), {"seed": seed % 3}, own, "it")
            results.put((i, seed % 3))
        except ValueError as error:
            if "made otherwise" not in str(error):
                raise


def test_of_several_processes_one_claims(tmp_path) -> None:
    context = multiprocessing.get_context("fork")
    together, results = context.Barrier(6), context.SimpleQueue()
    arguments = [(tmp_path, tmp_path / "x", seed, together, results) for seed in range(6)]
    processes = [context.Process(target=racing, args=each) for each in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    won: dict[int, list[int]] = {}
    while not results.empty():
        i, seed = results.get()
        won.setdefault(i, []).append(seed)
    assert len(won) == 40
    for i, seeds in won.items():
        assert len(seeds) == 2, "the winner, and the other one that wants the same"
        assert {json.loads((tmp_path / f"{i}.json").read_text())["seed"]} == set(seeds)


def test_a_disk_without_hard_links(tmp_path, monkeypatch) -> None:
    def refused(*_arguments):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    claim(tmp_path / "a.json", {"seed": 1}, tmp_path, "it")
    claim(tmp_path / "a.json", {"seed": 1}, tmp_path, "it")
    with pytest.raises(ValueError, match="it was made otherwise: seed 1 there, 2 now"):
        claim(tmp_path / "a.json", {"seed": 2}, tmp_path, "it")
    assert json.loads((tmp_path / "a.json").read_text()) == {"seed": 1}


def test_two_exports_at_once_do_not_mix(tmp_path) -> None:
    photos, out = make_images(tmp_path / "photos", count=10), tmp_path / "c"
    code = (
        "import sys; from robustlib.exchange.command import main; "
        "sys.exit(main(sys.argv[1:] + ['--corruptions', 'fog', '--severities', '1']))"
    )
    command = [sys.executable, "-c", code, str(photos), str(out), "--seed"]
    processes = [
        subprocess.Popen([*command, seed], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
        for seed in ("0", "1")
    ]
    errors = [process.communicate(timeout=120)[1].decode() for process in processes]
    seed = json.loads((out / MANIFEST).read_text())["seed"]
    for process, error, wanted in zip(processes, errors, (0, 1), strict=True):
        assert process.returncode == (0 if wanted == seed else 2), error
        assert ("was made otherwise: seed" in error) == (wanted != seed)
    export_imagenet_c(photos, tmp_path / "calm", ["fog"], severities=[1], seed=seed, progress=False)
    assert contents(out) == contents(tmp_path / "calm")
    assert not list(out.glob(".unfinished*"))


@pytest.mark.parametrize("layout", ["cifar-c", "imagenet-c"])
def test_only_the_code_of_the_same_corruption_counts(
    layout, tiny, photos, tmp_path, monkeypatch
) -> None:
    out = tmp_path / "c"

    def export(names: list[str], **options) -> int:
        if layout == "cifar-c":
            return export_cifar_c(out, tiny.test, names, progress=False, **options)
        return export_imagenet_c(photos, out, names, progress=False, **options)

    export(["fog"])
    record = out / ("fog.json" if layout == "cifar-c" else f"fog/{MANIFEST}")
    assert json.loads(record.read_text())["code"] == corruptions.code_of(["fog"])
    code_of = corruptions.code_of
    changed = {"fog": "another"}
    monkeypatch.setattr(corruptions, "code_of", lambda names: changed.get(*names) or code_of(names))
    assert export(["contrast"]) > 0
    before = contents(out)
    with pytest.raises(ValueError, match=r"fog in .* made otherwise: code '.*' there, 'another'"):
        export(["fog", "snow"])
    assert {name: found for name, found in contents(out).items() if "snow" not in name} == before
    monkeypatch.undo()
    assert export(["fog"]) == 0
    record.unlink()
    with pytest.raises(ValueError, match="of unknown origin"):
        export(["fog"])


@pytest.mark.parametrize("layout", ["cifar-c", "imagenet-c"])
def test_options_of_corruptions(layout, photos, tmp_path) -> None:
    out = tmp_path / "c"
    arguments = [str(photos), str(out), "--corruptions", "glass_blur", "fog"]
    if layout == "cifar-c":
        arguments += ["--layout", layout, "--image-size", "24"]
        record = out / "glass_blur.json"
    else:
        record = out / "glass_blur" / MANIFEST
    assert main([*arguments, "--options", "glass_blur.swap=true"]) == 0
    assert json.loads(record.read_text())["options"] == {"swap": True}
    image = one_image(opened(photos / "a" / "0.png"), 0)
    swapped = corrupt(image.float_images(), "glass_blur", 5, 0, image.ids, swap=True)
    expected = swapped.mul(255).round().to(torch.uint8)[0].permute(1, 2, 0).numpy()
    if layout == "cifar-c":
        found = np.load(out / "glass_blur.npy")[4 * 6]
    else:
        found = opened(out / "glass_blur" / "5" / "a" / "0.png")
    np.testing.assert_array_equal(found, expected)
    assert not np.array_equal(rounded(image, "glass_blur", 5)[0].permute(1, 2, 0), expected)
    assert main(arguments) == 2, "other options are refused"
    assert main([*arguments, "--options", "glass_blur.swap=true"]) == 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("swap=true", "form name.option=value"),
        ("glass_blur.swap", "form name.option=value"),
        ("glass_blurr.swap=true", "Did you mean 'glass_blur'"),
        ("glass_blur.swop=true", "Did you mean 'swap'"),
        ("glass_blur.swap=perhaps", "glass_blur.swap must be true or false"),
        ("fog.swap=true", "'fog' takes no options"),
        ("frost.photographs=nowhere", "no file or folder 'nowhere'"),
        ("frost.photographs=.", "named are"),
        ("cw.steps=3", "named are"),
    ],
)
def test_bad_options_are_one_line(photos, tmp_path, capsys, given, message) -> None:
    arguments = [str(photos), str(tmp_path / "c"), "--corruptions", "glass_blur", "fog"]
    assert main([*arguments, "--options", given]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("mask", [0o022, 0o002])
def test_others_may_read_what_the_umask_lets_them(tiny, photos, tmp_path, mask) -> None:
    before = os.umask(mask)
    try:
        export_cifar_c(tmp_path / "arrays", tiny.test, ["fog"], progress=False)
        export_imagenet_c(photos, tmp_path / "images", ["fog"], progress=False)
    finally:
        os.umask(before)
    for place in ("arrays", "images"):
        paths = [tmp_path / place, *(tmp_path / place).rglob("*")]
        assert len(paths) > 4
        for path in paths:
            wanted = (0o777 if path.is_dir() else 0o666) & ~mask
            assert path.stat().st_mode & 0o777 == wanted, path


def test_other_default_types_change_nothing(tiny, photos, tmp_path) -> None:
    for dtype in (torch.float32, torch.float64):
        torch.set_default_dtype(dtype)
        try:
            place = tmp_path / str(dtype)
            export_cifar_c(place / "arrays", tiny.test, ["fog", "gaussian_noise"], progress=False)
            export_imagenet_c(photos, place / "images", ["fog"], progress=False)
            seen = apply(Stored("fog", 3, place / "arrays"), tiny.test)
        finally:
            torch.set_default_dtype(torch.float32)
        assert seen.dtype == torch.float32
        assert torch.equal(seen, rounded(tiny.test, "fog", 3).float() / 255)
    assert contents(tmp_path / "torch.float32") == contents(tmp_path / "torch.float64")


def test_numbers_of_any_kind_are_taken(photos, tmp_path, tiny) -> None:
    written = export_imagenet_c(
        photos,
        tmp_path / "images",
        ["fog"],
        severities=[np.int64(1), torch.tensor(2)],
        image_size=16.0,
        seed=np.int64(3),
        progress=False,
    )
    assert written == 12
    assert json.loads((tmp_path / "images" / MANIFEST).read_text())["seed"] == 3
    export_cifar_c(tmp_path / "arrays", tiny.test, ["fog"], seed=torch.tensor(3), progress=False)
    stored = Stored("fog", np.int64(2), tmp_path / "arrays")
    ids = tiny.test.ids.tolist()
    seen = stored.apply(tiny.test.float_images(), tiny.test.labels.tolist(), ids, None, 0)
    assert torch.equal(seen, rounded(tiny.test, "fog", 2, seed=3).float() / 255)


def test_files_that_are_no_images_are_named_once(photos, tmp_path) -> None:
    (photos / "b" / "c.heic").touch()
    (photos / "notes.txt").touch()
    with pytest.warns(UserWarning, match=r"2 file\(s\) passed over.*c\.heic") as caught:
        export_imagenet_c(photos, tmp_path / "c", ["fog"], severities=[1], progress=False)
    (warning,) = caught
    assert warning.filename == __file__


@pytest.mark.filterwarnings("default")
def test_the_command_names_other_files_in_a_line(photos, tmp_path, capsys) -> None:
    (photos / "b" / "c.heic").touch()
    assert main([str(photos), str(tmp_path / "c"), "--corruptions", "fog"]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("python -m robustlib.exchange: 1 file(s) passed over")


def test_turned_images_are_exported_upright(tmp_path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    (tmp_path / "photos").mkdir()
    turned = Image.effect_noise((40, 24), 80).convert("RGB")
    turned.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "photos" / "a.png", exif=exif)
    Image.effect_noise((24, 40), 80).convert("RGB").save(tmp_path / "photos" / "b.png")
    out = tmp_path / "c"
    export_imagenet_c(tmp_path / "photos", out, ["fog"], severities=[1], progress=False)
    expected = rounded(one_image(np.array(turned), 0), "fog", 1)[0].permute(1, 2, 0)
    np.testing.assert_array_equal(opened(out / "fog" / "1" / "a.png"), expected)
