"""Properties that hold for every corruption, tried on drawn sizes, seeds and severities."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from robustlib.core import identity, randomness
from robustlib.corruptions import augment, code_of, corrupt, filters, info, names, textures, weather
from robustlib.corruptions.registry import REGISTRY
from robustlib.corruptions.transforms import RandomCorruption

ALL = names()
AMOUNTS = names("laugros")

# Where the published tables themselves don't raise the mean change at every step.
NOT_MONOTONE = {
    "glass_blur": (32, 224),
    "frost": (32, 224),
    "saturate": (32, 224),
    "elastic_transform": (32, 224),
    "spatter": (32,),
    "snow": (224,),
}


@cache
def natural(n: int, side: int) -> Tensor:
    """Pictures whose spectrum falls like that of photographs, 1 / frequency, with some colour."""
    generator = torch.Generator().manual_seed(side)
    frequency = torch.hypot(torch.fft.fftfreq(side)[:, None], torch.fft.rfftfreq(side))
    spectrum = torch.fft.rfft2(torch.randn(n, 4, side, side, generator=generator))
    fields = torch.fft.irfft2(spectrum / frequency.clamp_min(1 / side), s=(side, side))
    fields = fields / fields.std((2, 3), keepdim=True)
    return (0.5 + 0.2 * fields[:, :1] + 0.08 * fields[:, 1:]).clamp_(0, 1)


def anything(n: int, h: int, w: int, seed: int) -> Tensor:
    """Unrelated pixels of a few bright colours, among them the extremes."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 5, (n, 3, h, w), generator=generator) / 4


def every_corruption(test: Callable[..., None]) -> Callable[..., None]:
    return pytest.mark.parametrize("name", ALL)(test)


severities = st.one_of(st.integers(1, 5), st.just("random"))
seeds = st.integers(-(2**70), 2**70)


@every_corruption
@given(
    n=st.integers(1, 3),
    h=st.integers(16, 96),
    w=st.integers(16, 96),
    severity=severities,
    seed=seeds,
)
@example(n=1, h=512, w=301, severity=5, seed=0)
@example(n=1, h=17, w=512, severity=1, seed=0)
@settings(max_examples=8, deadline=None, derandomize=True, database=None)
def test_range_shape_and_determinism(
    name: str, n: int, h: int, w: int, severity: int, seed: int
) -> None:
    images = anything(n, h, w, seed=h * w)
    before = images.clone()
    ids = torch.arange(n) + 2**33
    out = corrupt(images, name, severity, seed, ids)
    assert out.shape == images.shape
    assert out.dtype == torch.float32
    assert out.min() >= 0
    assert out.max() <= 1
    assert torch.equal(images, before)
    for i in range(n):
        alone = corrupt(images[i : i + 1], name, severity, seed, ids[i : i + 1])
        assert torch.equal(alone[0], out[i])


@every_corruption
@given(level=st.sampled_from([0.0, 1.0]), side=st.integers(16, 64), severity=severities)
@settings(max_examples=6, deadline=None, derandomize=True, database=None)
def test_black_and_white_images(name: str, level: float, side: int, severity: int) -> None:
    out = corrupt(torch.full((1, 3, side, side + 5), level), name, severity)
    assert out.min() >= 0
    assert out.max() <= 1
    if info(name).family == "blur":  # a mean of equal pixels
        torch.testing.assert_close(out, torch.full_like(out, level), rtol=0, atol=0.014)


@pytest.mark.parametrize(
    ("name", "side"),
    [(name, side) for name in ALL for side in (32, 224) if side not in NOT_MONOTONE.get(name, ())],
)
def test_severity_raises_the_change(name: str, side: int) -> None:
    images = natural(96, 32) if side == 32 else natural(8, 224)
    # One fog map is not like another, nor is one pattern.
    seeds = range(12 if name == "fog" else 4 if info(name).family == "pattern" else 1)
    changes = [
        torch.stack([corrupt(images, name, s, seed) - images for seed in seeds]).abs().mean()
        for s in range(1, 6)
    ]
    assert all(weaker < stronger for weaker, stronger in pairwise(changes))


@pytest.mark.parametrize("name", AMOUNTS)
def test_random_amounts_lie_between_the_ends(name: str) -> None:
    images = natural(96, 32)
    weakest, drawn, strongest = (
        (corrupt(images, name, severity) - images).abs().mean() for severity in (1, "random", 5)
    )
    assert weakest < drawn < strongest


# Whatever the caller has set


@pytest.fixture
def nothing_cached() -> Iterator[Callable[[], None]]:
    """Forgets the tensors kept from earlier calls, which would hide how new ones are made."""
    modules = [__import__(info(name).function.__module__, fromlist=["_"]) for name in ALL]
    modules += [filters, textures]

    def forget() -> None:
        for module in modules:
            for value in vars(module).values():
                if hasattr(value, "cache_clear"):
                    value.cache_clear()

    forget()
    yield forget
    forget()


@pytest.fixture
def float64_default() -> Iterator[Callable[[], None]]:
    yield lambda: torch.set_default_dtype(torch.float64)
    torch.set_default_dtype(torch.float32)


SETTING_SIZES = [(32, 32), (5, 40), (70, 65)]


def every_output(size: tuple[int, int]) -> dict[tuple[str, object], Tensor]:
    images = anything(3, *size, seed=1).to(torch.float32)
    return {
        (name, severity): corrupt(images, name, severity)
        for name in ALL
        for severity in (1, 2, 3, 4, 5, "random")
    }


def assert_same(
    found: dict[tuple[str, object], Tensor], expected: dict[tuple[str, object], Tensor]
) -> None:
    assert {out.dtype for out in found.values()} == {torch.float32}
    assert [key for key in expected if not torch.equal(found[key], expected[key])] == []


@pytest.mark.parametrize("size", SETTING_SIZES)
def test_the_default_dtype_changes_no_pixel(
    size: tuple[int, int], nothing_cached: Callable[[], None], float64_default: Callable[[], None]
) -> None:
    expected = every_output(size)
    nothing_cached()
    float64_default()
    assert_same(every_output(size), expected)
    assert info("border").parameters(32) == info("border").parameters(np.int64(32))


def test_the_default_dtype_changes_no_draw(float64_default: Callable[[], None]) -> None:
    images = anything(12, 24, 24, seed=1)
    ids = torch.arange(12)

    def drawn() -> list[Tensor]:
        torch.manual_seed(5)
        return [
            augment(images, ALL, seed=1, ids=ids),
            augment(images, ALL, seed=1, ids=ids, groups=None),
            RandomCorruption("all", p=0.5)(images),
            RandomCorruption("all")((images * 255).to(torch.uint8)),
        ]

    expected = drawn()
    float64_default()
    assert all(map(torch.equal, drawn(), expected))


def test_the_default_device_changes_nothing(nothing_cached: Callable[[], None]) -> None:
    """On the meta device, no tensor has values, so one that ends up there can't be used."""
    images = anything(2, 33, 40, seed=1)
    expected = {name: corrupt(images, name) for name in ALL}
    nothing_cached()
    torch.set_default_device("meta")
    try:
        found = {name: corrupt(images, name) for name in ALL}
        RandomCorruption("noc")(images)
    finally:
        torch.set_default_device(None)
    assert [name for name in ALL if not torch.equal(found[name], expected[name])] == []


@pytest.mark.parametrize("size", SETTING_SIZES)
def test_inference_mode_changes_no_pixel(
    size: tuple[int, int], nothing_cached: Callable[[], None]
) -> None:
    expected = every_output(size)
    nothing_cached()
    with torch.inference_mode():
        found = every_output(size)
    assert_same(found, expected)
    assert_same(every_output(size), expected)  # with what was kept from inference mode


@pytest.mark.parametrize("size", SETTING_SIZES)
def test_autocast_changes_no_pixel(
    size: tuple[int, int], nothing_cached: Callable[[], None]
) -> None:
    expected = every_output(size)
    nothing_cached()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_same(every_output(size), expected)


def test_corruptions_run_outside_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    def product(images: Tensor, factor: float) -> Tensor:
        return images @ torch.eye(images.shape[-1]) * factor  # bfloat16 under autocast

    changed = dataclasses.replace(info("contrast"), function=product)
    monkeypatch.setitem(REGISTRY, "contrast", changed)
    images = torch.rand(6, 3, 16, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for out in (
            corrupt(images, "contrast", 1),
            augment(images, ["contrast"], seed=0, ids=range(6), severity=1),
            RandomCorruption(["contrast"], severity=1)(images),
        ):
            assert torch.equal(out, images * 0.75)


@every_corruption
def test_no_gradient_passes(name: str) -> None:
    images = anything(4, 20, 20, seed=1).requires_grad_()
    kwargs = {"seed": 0, "ids": torch.arange(4)}
    for out in (
        corrupt(images, name),
        corrupt(images[:0], name),
        augment(images, [name], **kwargs),
        augment(images, [name], groups=None, **kwargs),
        augment(images[:0], [name], seed=0, ids=[]),
        RandomCorruption([name], p=0.5)(images),
    ):
        assert not out.requires_grad
        assert out.grad_fn is None
    assert images.grad is None


@every_corruption
def test_every_layout_gives_the_same_pixels(name: str) -> None:
    images = anything(3, 12, 18, seed=2)
    expected = corrupt(images, name, 4)
    wide = torch.zeros(3, 3, 12, 36)
    wide[..., ::2] = images
    for same in (
        images.contiguous(memory_format=torch.channels_last),
        images.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
        wide[..., ::2],
        images.flip(3).clone().flip(3),
    ):
        assert torch.equal(corrupt(same, name, 4), expected)
    one = images[:1].expand(3, -1, -1, -1)
    assert torch.equal(corrupt(one, name, 4), corrupt(one.contiguous(), name, 4))
    assert torch.equal(one[2], images[0])


@every_corruption
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (2, 2), (3, 200), (200, 3)])
def test_extreme_sizes(name: str, size: tuple[int, int]) -> None:
    images = anything(2, *size, seed=3)
    for severity in (1, 3, 5, "random"):
        for severities_for in (None, 224):
            options = {"severities_for": severities_for}
            out = corrupt(images, name, severity, **options)
            assert out.shape == images.shape
            assert out.isfinite().all()
            alone = corrupt(images[1:], name, severity, ids=[1], **options)
            assert torch.equal(alone, out[1:])


# Arguments of other types


@pytest.mark.parametrize("name", ["fog", "rain", "glass_blur", "contrast", "border"])
def test_numbers_of_other_types(name: str) -> None:
    images = anything(3, 20, 20, seed=4)
    expected = corrupt(images, name, 3, 7, torch.tensor([5, 6, 9]), severities_for=64)
    for severity, seed, side in (
        (np.int64(3), np.int32(7), np.int64(64)),
        (3.0, 7.0, 64.0),
        (torch.tensor(3), torch.tensor(7), torch.tensor(64)),
        (np.array(3), np.uint8(7), np.float32(64)),
    ):
        for ids in ([5, 6, 9], np.array([5, 6, 9]), (5, 6, 9), torch.tensor([5, 6, 9]).int()):
            out = corrupt(images, name, severity, seed, ids, severities_for=side)
            assert torch.equal(out, expected)
        assert info(name).parameters(side) == info(name).parameters(64)
        assert info(name).table_side(side) == info(name).table_side(64)
    expected = augment(images, [name, "hue"], seed=2, ids=torch.arange(3), severity=4, groups=2)
    out = augment(
        images,
        (name, "hue"),
        seed=np.int64(2),
        ids=range(3),
        severity=torch.tensor(4.0),
        groups=2.0,  # type: ignore[arg-type]
    )
    assert torch.equal(out, expected)


def test_options_by_name() -> None:
    images, ids = anything(6, 24, 24, seed=5), torch.arange(6)
    swap = {"glass_blur": {"swap": True}}
    swapped = corrupt(images, "glass_blur", 3, 4, ids, swap=True)
    plain = corrupt(images, "glass_blur", 3, 4, ids)
    assert not torch.equal(swapped, plain)
    for groups in (3, None):
        kwargs = {"seed": 4, "ids": ids, "severity": 3, "groups": groups}
        assert torch.equal(augment(images, ["glass_blur"], options=swap, **kwargs), swapped)
        assert torch.equal(augment(images, ["glass_blur"], **kwargs), plain)
        out = augment(images, ["glass_blur", "contrast"], options=swap, **kwargs)
        contrast = corrupt(images, "contrast", 3)
        kinds = [
            [torch.equal(image, other[i]) for other in (swapped, contrast)]
            for i, image in enumerate(out)
        ]
        assert all(map(any, kinds))
    for options, message in (
        ({"fog": {}}, "named are 'fog'"),
        ({"glass_blur": {"swop": True}}, "swap"),
        ({"glass_blur": {"swap": "yes"}}, "swap must be True or False"),
    ):
        with pytest.raises(ValueError, match=message):
            augment(images, ["glass_blur"], seed=0, ids=ids, options=options)
        with pytest.raises(ValueError, match=message):
            RandomCorruption(["glass_blur"], options=options)


# What a key covers


def with_code(function: Callable[..., object], **changes: object) -> types.FunctionType:
    """A copy of a function with other attributes of its code, such as constants."""
    code = function.__code__.replace(**changes)
    copy = types.FunctionType(code, function.__globals__, function.__name__)
    copy.__defaults__, copy.__kwdefaults__ = function.__defaults__, function.__kwdefaults__
    return copy


def with_other_number(function: Callable[..., object]) -> types.FunctionType:
    constants = function.__code__.co_consts
    place = next(i for i, value in enumerate(constants) if type(value) in (int, float) and value)
    changed = (*constants[:place], constants[place] + 1, *constants[place + 1 :])
    return with_code(function, co_consts=changed)


def test_other_corruptions_and_docstrings_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    before = code_of(["fog"])
    snow = info("snow")
    monkeypatch.setitem(
        REGISTRY, "snow", dataclasses.replace(snow, function=with_other_number(snow.function))
    )
    monkeypatch.setitem(REGISTRY, "mine", dataclasses.replace(snow, name="mine"))
    monkeypatch.setattr(weather, "_relief", with_other_number(weather._distance))
    monkeypatch.setattr(weather, "_MUD", (1.0, 2.0, 3.0))
    documented = "Other words."
    constants = (documented, *weather.fog.__code__.co_consts[1:])
    function = with_code(weather.fog, co_consts=constants, co_firstlineno=7)
    function.__doc__ = documented
    monkeypatch.setitem(REGISTRY, "fog", dataclasses.replace(info("fog"), function=function))
    assert code_of(["fog"]) == before
    assert code_of(["fog", "snow"]) != before


@pytest.mark.parametrize(
    "change", ["function", "table", "texture", "filter", "randomness", "caller", "torch"]
)
def test_what_makes_the_pixels_counts(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = code_of(["fog"]), code_of(["gaussian_blur"])
    fog = info("fog")
    if change == "function":
        other = dataclasses.replace(fog, function=with_other_number(weather.fog))
        monkeypatch.setitem(REGISTRY, "fog", other)
    elif change == "table":
        rows = {**fog.strengths.by_side, 32: fog.strengths.by_side[64]}
        strengths = dataclasses.replace(fog.strengths, by_side=rows)
        monkeypatch.setitem(REGISTRY, "fog", dataclasses.replace(fog, strengths=strengths))
    elif change == "texture":
        monkeypatch.setattr(weather, "plasma", with_other_number(textures.plasma))
    elif change == "filter":
        monkeypatch.setattr(filters, "gaussian_weights", with_other_number(filters.luma))
    elif change == "randomness":
        monkeypatch.setattr(randomness, "_MULTIPLIER_1", 3)
    elif change == "caller":
        monkeypatch.setitem(corrupt.__globals__, "_CPU_PIECE", 3)
    else:
        identity._version.cache_clear()
        monkeypatch.setattr(torch, "__version__", "0.0")
    after = code_of(["fog"]), code_of(["gaussian_blur"])
    identity._version.cache_clear()
    assert (after[0] != before[0]) == (change != "filter")
    assert (after[1] != before[1]) == (change in ("filter", "randomness", "caller", "torch"))


def test_the_version_of_the_jpeg_codec_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    before = code_of(["jpeg_compression"]), code_of(["fog"])
    identity._version.cache_clear()
    monkeypatch.setattr(torchvision, "__version__", "0.0")
    after = code_of(["jpeg_compression"]), code_of(["fog"])
    identity._version.cache_clear()
    assert after[0] != before[0]
    assert after[1] == before[1]


def test_a_codec_not_loaded_yet_counts_the_same() -> None:
    """Loading torchvision takes seconds, and a key must not depend on whether it was done."""
    code = (
        "import sys; from robustlib.corruptions import code_of; "
        "first = code_of(['jpeg_compression']); assert 'torchvision' not in sys.modules; "
        "import torchvision.io; print(first == code_of(['jpeg_compression']), first)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["True", code_of(["jpeg_compression"])]
