from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from robustlib import corruptions
from robustlib.core.checks import UnknownNameError
from robustlib.corruptions.transforms import RandomCorruption


def picture(n: int = 1, side: int = 32) -> Tensor:
    coarse = torch.rand(n, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(coarse, size=(side, side), mode="bilinear")


def test_every_kind_of_image_comes_back_as_its_kind() -> None:
    floats = picture(2)
    levels = floats.mul(255).round().to(torch.uint8)
    transform = RandomCorruption(["contrast"], severity=5)
    expected = corruptions.corrupt(levels / 255, "contrast", 5).mul(255).round().to(torch.uint8)
    assert torch.equal(transform(floats), corruptions.corrupt(floats, "contrast", 5))
    assert torch.equal(transform(levels), expected)
    assert torch.equal(transform(levels[1]), expected[1])
    assert torch.equal(transform(levels.view(2, 1, 3, 32, 32))[:, 0], expected)

    image = transform(tv_tensors.Image(levels[1]))
    assert isinstance(image, tv_tensors.Image)
    assert torch.equal(image.as_subclass(Tensor), expected[1])

    pil = transform(Image.fromarray(levels[1].permute(1, 2, 0).numpy()))
    assert isinstance(pil, Image.Image)
    assert np.array_equal(np.asarray(pil), expected[1].permute(1, 2, 0).numpy())
    grey = transform(Image.new("L", (32, 32), 100))
    assert grey.mode == "RGB"


def test_labels_masks_and_boxes_pass_through() -> None:
    sample = {
        "image": tv_tensors.Image(picture()[0]),
        "label": 7,
        "mask": tv_tensors.Mask(torch.ones(32, 32)),
        "boxes": tv_tensors.BoundingBoxes([[1, 2, 3, 4]], format="XYXY", canvas_size=(32, 32)),
    }
    out = RandomCorruption("imagenet_c")(sample)
    assert not torch.equal(out["image"], sample["image"])
    assert out["label"] == 7
    assert out["mask"] is sample["mask"]
    assert out["boxes"] is sample["boxes"]


def test_the_global_seed_repeats_it() -> None:
    transform = RandomCorruption("imagenet_c")
    image = picture()[0]
    torch.manual_seed(3)
    first = [transform(image) for _ in range(6)]
    torch.manual_seed(3)
    again = [transform(image) for _ in range(6)]
    assert all(map(torch.equal, first, again))
    assert len({out.sum().item() for out in first}) > 3


def test_images_of_a_batch_are_drawn_by_themselves() -> None:
    torch.manual_seed(0)
    image = picture()
    out = RandomCorruption(["contrast", "pixelate"], p=0.5)(image.expand(300, -1, -1, -1))
    options = [image, *(corruptions.corrupt(image, "contrast", s) for s in range(1, 6))]
    options += [corruptions.corrupt(image, "pixelate", s) for s in range(1, 6)]
    counts = [sum(torch.equal(option[0], o) for o in out) for option in options]
    assert sum(counts) == 300
    assert 110 < counts[0] < 190
    assert min(counts) >= 5
    assert torch.equal(RandomCorruption("noc", p=0.0)(image), image)


def test_in_a_compose_and_a_data_loader() -> None:
    transform = v2.Compose(
        [
            RandomCorruption("laugros"),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.5] * 3, [0.2] * 3),
        ]
    )
    images = picture(8).mul(255).to(torch.uint8)

    def collate(samples: list[tuple[Tensor, ...]]) -> Tensor:
        return torch.stack([transform(image) for (image,) in samples])

    torch.manual_seed(0)
    batches = list(DataLoader(TensorDataset(images), batch_size=4, collate_fn=collate))
    assert [batch.shape for batch in batches] == [(4, 3, 32, 32)] * 2
    assert batches[0].dtype == torch.float32
    assert batches[0].isfinite().all()


def test_errors() -> None:
    with pytest.raises(UnknownNameError, match="imagenet_c"):
        RandomCorruption("imagenetc")
    with pytest.raises(UnknownNameError, match="fog"):
        RandomCorruption(["fogg"])
    with pytest.raises(ValueError, match="empty"):
        RandomCorruption([])
    with pytest.raises(ValueError, match="probability"):
        RandomCorruption("noc", p=1.5)
    with pytest.raises(ValueError, match="severity"):
        RandomCorruption("noc", severity=6)
    with pytest.raises(ValueError, match="random"):
        RandomCorruption("noc", severity="randm")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must lie in"):
        RandomCorruption("imagenet_c")(picture() * 3)


def test_print() -> None:
    assert "p=0.25" in repr(RandomCorruption(["fog"], p=0.25))
