"""Corrupted data as published, through a card and through the code that people read it with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.datasets import ImageFolder
from torchvision.transforms import ToTensor

from robustlib.card import load_images
from robustlib.card.answers import ask
from robustlib.card.protocol import Protocol
from robustlib.core.store import Store
from robustlib.models import wrap

COUNT, SIZE, CLASSES = 30, 32, 3
NAMES = ("fog", "gaussian_noise")


class Few(nn.Module):
    """Untrained: what it says depends on every pixel."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        size = CLASSES, 3, SIZE, SIZE
        self.weight = nn.Parameter(torch.randn(size, generator=generator))

    def forward(self, images: Tensor) -> Tensor:
        return torch.einsum("nchw,kchw->nk", images - 0.5, self.weight)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return Few().eval()


def pixels(seed: int, count: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)


def folder_of(root: Path, images: np.ndarray, labels: np.ndarray, ending: str) -> None:
    """<class>/<image>, as ImageNet, ImageNet-C and Tiny ImageNet-C have it."""
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        place = root / f"n0000000{label}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"ILSVRC2012_val_{i:08d}.{ending}", quality=95)


def said(model: nn.Module, batch: Tensor) -> Tensor:
    with torch.no_grad():
        return model(batch).argmax(1)


def test_cifar_c_is_read_as_others_read_it(tmp_path: Path, model: nn.Module) -> None:
    """An array a corruption, the images of severity 1 first; labels once for each severity."""
    labels = np.sort(np.arange(COUNT) % CLASSES)
    folder_of(tmp_path / "clean", pixels(0, COUNT), labels, "png")
    published = tmp_path / "CIFAR-10-C"
    published.mkdir()
    for seed, name in enumerate(NAMES, start=1):
        np.save(published / f"{name}.npy", pixels(seed, 5 * COUNT))
    np.save(published / "labels.npy", np.tile(labels, 5).astype(np.uint8))

    images = load_images(tmp_path / "clean", image_size=SIZE, outputs=CLASSES)
    protocol = Protocol(SIZE, stored=published, attacked=0, checked=0)
    assert protocol.corruptions == NAMES
    split, cells = images.split, protocol.cells
    found = ask(wrap(model, name="few"), split, cells, store=Store(tmp_path / "store"))
    order = split.ids.numpy()
    for place, cell in enumerate(cells):
        rows = np.load(published / f"{cell.name}.npy")
        rows = rows[(cell.severity - 1) * COUNT : cell.severity * COUNT]  # as RobustBench does
        batch = torch.tensor(np.transpose(rows, (0, 3, 1, 2)).astype(np.float32) / 255)
        assert found.predicted[place].tolist() == said(model, batch)[order].tolist()
    assert found.labels.tolist() == labels[order].tolist()


@pytest.mark.parametrize(("ending", "categories"), [("JPEG", False), ("png", True)])
def test_imagenet_c_is_read_as_others_read_it(
    tmp_path: Path, model: nn.Module, ending: str, categories: bool
) -> None:
    """A folder a corruption and severity, with the classes and names of the clean images.

    By category, as its archives are, or not.
    """
    labels = np.arange(COUNT) % CLASSES
    folder_of(tmp_path / "val", pixels(0, COUNT), labels, ending)
    published = tmp_path / "ImageNet-C"
    within = {"fog": "weather", "gaussian_noise": "noise"} if categories else {}
    for seed, name in enumerate(NAMES):
        for severity in (1, 2, 3, 4, 5):
            place = published / within.get(name, "") / name / str(severity)
            folder_of(place, pixels(10 * seed + severity, COUNT), labels, ending)

    images = load_images(tmp_path / "val", image_size=SIZE, outputs=CLASSES)
    protocol = Protocol(SIZE, stored=published, attacked=0, checked=0)
    cells = protocol.cells
    found = ask(wrap(model, name="few"), images.split, cells, store=Store(tmp_path / "store"))
    for place, cell in enumerate(cells):
        place_of = published / within.get(cell.name, "") / cell.name / str(cell.severity)
        theirs = ImageFolder(str(place_of), ToTensor())
        answers = said(model, torch.stack([image for image, _ in theirs]))
        by_file = {
            str(Path(file).relative_to(theirs.root)): (int(answer), label)
            for (file, label), answer in zip(theirs.samples, answers, strict=True)
        }
        expected = [by_file[file] for file in images.split.files]
        assert found.predicted[place].tolist() == [answer for answer, _ in expected]
        assert found.labels.tolist() == [label for _, label in expected]


def test_a_name_in_two_categories_is_refused(tmp_path: Path) -> None:
    for category in ("extra", "weather"):
        (tmp_path / category / "fog" / "1").mkdir(parents=True)
    with pytest.raises(ValueError, match="fog is both in"):
        Protocol(SIZE, stored=tmp_path)
