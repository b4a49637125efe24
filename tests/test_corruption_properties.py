"""Properties that hold for every corruption, tried on drawn sizes, seeds and severities."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import pairwise

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from robustlib.corruptions import corrupt, info, names

ALL = names()
AMOUNTS = tuple(name for name in ALL if name not in names("imagenet_c"))

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
    seeds = range(12 if name == "fog" else 1)  # one fog map is not like another
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
