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


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_an_array_comes_back_as_an_array(dtype: type) -> None:
    images = picture(1, 24)
    if dtype == np.uint8:
        images = images.mul(255).round().div(255)
    array = images[0].permute(1, 2, 0).numpy()
    array = (array * 255).round().astype(np.uint8) if dtype == np.uint8 else array.copy()
    before = array.copy()
    expected = corruptions.corrupt(images, "contrast", 5)[0].permute(1, 2, 0).numpy()
    transform = RandomCorruption(["contrast"], severity=5)
    frozen = array.copy()
    frozen.flags.writeable = False
    for same in (array, frozen, np.asfortranarray(array), array[::-1].copy()[::-1]):
        out = transform(same)
        assert isinstance(out, np.ndarray)
        assert out.dtype == dtype
        assert out.shape == (24, 24, 3)
        assert out.flags.c_contiguous
        scale = 255 if dtype == np.uint8 else 1
        np.testing.assert_allclose(out / scale, expected, rtol=0, atol=0.5 / scale + 1e-6)
    assert np.array_equal(array, before)
    out = transform({"image": array, "label": np.int64(3), "scores": np.zeros(10)})
    assert not np.array_equal(out["image"], array)
    assert out["label"] == 3
    assert out["scores"].shape == (10,)


def test_every_image_of_a_sample_is_corrupted() -> None:
    tensor = picture()[0]
    array = tensor.permute(1, 2, 0).contiguous().numpy()
    pil = Image.fromarray((array * 255).astype(np.uint8))
    sample = (tensor, [array, pil], {"boxed": tv_tensors.Image(tensor)}, torch.tensor(4))
    out = RandomCorruption(["contrast"], severity=5)(sample)
    assert not torch.equal(out[0], tensor)
    assert not np.array_equal(out[1][0], array)
    assert not np.array_equal(np.asarray(out[1][1]), np.asarray(pil))
    assert not torch.equal(out[2]["boxed"], tensor)
    assert out[3] is sample[3]
    label_first = RandomCorruption(["contrast"], severity=5)(torch.tensor([1, 2]), tensor)
    assert torch.equal(label_first[1], out[0])


def test_pil_modes() -> None:
    transform = RandomCorruption(["contrast"], severity=5)
    colour = Image.fromarray(picture()[0].mul(255).byte().permute(1, 2, 0).numpy())
    for mode in ("L", "P", "1"):
        image = colour.convert(mode)
        out = transform(image)
        assert out.mode == "RGB"
        assert np.array_equal(np.asarray(out), np.asarray(transform(image.convert("RGB"))))
    palette = colour.convert("P")
    palette.info["transparency"] = 3
    for image in (colour.convert("RGBA"), colour.convert("LA"), palette):
        with pytest.raises(ValueError, match="has transparency"):
            transform(image)
    for mode in ("CMYK", "YCbCr", "I", "F", "I;16"):
        with pytest.raises(ValueError, match=f"got {mode}; see whether"):
            transform(Image.new(mode, (8, 8)))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((8, 8), np.uint8), r"np.stack\(\[x\] \* 3, 2\)"),
        (np.zeros((3, 8, 8), np.uint8), "transpose"),
        (np.zeros((8, 8, 4), np.uint8), r"got uint8 of \(8, 8, 4\)"),
        (np.zeros((2, 8, 8, 3), np.uint8), "Batches go in as tensors"),
        (np.zeros((8, 8, 3), np.uint16), "65535"),
        (np.zeros((8, 8, 3)), "float64: x.astype"),
        (np.full((8, 8, 3), 255, np.float32), "must lie in"),
        (torch.zeros(8, 8), r"expand\(3"),
        (torch.zeros(1, 8, 8), r"expand\(3"),
        (torch.zeros(8, 8, 3), "permute"),
        (torch.zeros(4, 8, 8), r"got torch.float32 of \(4, 8, 8\)"),
        (torch.zeros(3, 8, 8, dtype=torch.int16), "65535"),
        (torch.zeros(3, 8, 8, dtype=torch.int32), "int32"),
        (torch.zeros(3, 8, 8, dtype=torch.float64), r"x.float\(\)"),
        (torch.zeros(3, 8, 8, dtype=torch.float16), "float16"),
        (torch.zeros(3, 8, 8, dtype=torch.bool), "bool"),
        (torch.full((3, 8, 8), -1.0), "must lie in"),
        (torch.full((3, 8, 8), float("nan")), "must lie in"),
        (tv_tensors.Image(torch.zeros(1, 8, 8)), r"expand\(3"),
        (tv_tensors.Video(torch.zeros(2, 3, 8, 8)), "video is no image"),
    ],
)
def test_what_is_no_image_of_a_known_form_is_refused(image: object, message: str) -> None:
    transform = RandomCorruption(["contrast"], p=0.0)  # whether or not it would be drawn
    for sample in (image, {"image": image, "label": 3}, (picture()[0], image)):
        with pytest.raises(ValueError, match=message):
            transform(sample)


@pytest.mark.parametrize(
    "sample",
    [7, "cat.png", {"label": 3}, (torch.tensor([1, 2]), 5), np.zeros(4), b"", [], None],
)
def test_a_sample_without_an_image_is_refused(sample: object) -> None:
    with pytest.raises(ValueError, match="the sample has no image"):
        RandomCorruption(["contrast"])(sample)


def test_empty_batches_pass() -> None:
    transform = RandomCorruption("all")
    for shape in ((0, 3, 8, 8), (2, 3, 0, 0), (2, 0, 3, 8, 8)):
        for dtype in (torch.float32, torch.uint8):
            images = torch.zeros(shape, dtype=dtype)
            assert torch.equal(transform(images), images)


def test_labels_masks_and_boxes_pass_through() -> None:
    sample = {
        "image": tv_tensors.Image(picture()[0]),
        "label": 7,
        "text": "seven",
        "nothing": None,
        "one_hot": torch.zeros(10),
        "mask": tv_tensors.Mask(torch.ones(32, 32)),
        "boxes": tv_tensors.BoundingBoxes([[1, 2, 3, 4]], format="XYXY", canvas_size=(32, 32)),
    }
    out = RandomCorruption("imagenet_c")(sample)
    assert not torch.equal(out["image"], sample["image"])
    for name in ("label", "text", "nothing", "one_hot"):
        assert out[name] is sample[name]
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
    assert "options={'glass_blur': {'swap': True}}" in repr(
        RandomCorruption(["glass_blur"], options={"glass_blur": {"swap": True}})
    )


def test_numbers_of_other_types() -> None:
    for p in ("1/2", np.float32(0.5), torch.tensor(0.5), 0.5):
        assert RandomCorruption(["fog"], p=p).p == 0.5  # type: ignore[arg-type]
    assert RandomCorruption(["fog"], p=np.int64(1)).p == 1
    assert RandomCorruption(["fog"], severity=np.int64(3)).severity == 3  # type: ignore[arg-type]
    for p in (True, "half", -0.1, float("nan"), None):
        with pytest.raises(ValueError, match="probability"):
            RandomCorruption(["fog"], p=p)  # type: ignore[arg-type]


def test_options_reach_the_corruption() -> None:
    images = picture(4)
    for swap in (False, True):
        torch.manual_seed(1)
        transform = RandomCorruption(
            ["glass_blur"], severity=3, options={"glass_blur": {"swap": swap}}
        )
        out = transform(images)
        torch.manual_seed(1)
        seed = int(torch.randint(2**62, ()))
        assert torch.equal(out, corruptions.corrupt(images, "glass_blur", 3, seed, swap=swap))
