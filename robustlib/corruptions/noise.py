"""Noise: every pixel changes by itself."""

from __future__ import annotations

import torch
from torch import Tensor

from robustlib.core.randomness import Stream
from robustlib.corruptions.registry import (
    IMAGENET_C,
    OVERLAP,
    AmountRange,
    published,
    register,
)

_SMALL_RATE = 10.0
_SMALL_RATE_LIMIT = 40
_SMALL_PIECE = 2**17  # what stays in the cache


@register(
    family="noise",
    source=IMAGENET_C,
    random=True,
    table=published(
        "sigma",
        {
            32: (0.04, 0.06, 0.08, 0.09, 0.1),
            64: (0.04, 0.08, 0.12, 0.15, 0.18),
            224: (0.08, 0.12, 0.18, 0.26, 0.38),
        },
    ),
)
def gaussian_noise(images: Tensor, stream: Stream, sigma: float) -> Tensor:
    """x + sigma z, z standard normal for each channel value."""
    return stream.normal(images.shape[1:], std=sigma).add_(images)


@register(
    family="noise",
    source=IMAGENET_C,
    random=True,
    table=published(
        "photons",
        {32: (500, 250, 100, 75, 50), 64: (250, 100, 50, 30, 15), 224: (60, 25, 12, 5, 3)},
    ),
)
def shot_noise(images: Tensor, stream: Stream, photons: float) -> Tensor:
    """Poisson(photons x) / photons for each channel value: the noise of counting photons."""
    return poisson(images * photons, stream).div_(photons)


@register(
    family="noise",
    source=IMAGENET_C,
    random=True,
    table=published(
        "amount",
        {
            32: (0.01, 0.02, 0.03, 0.05, 0.07),
            64: (0.01, 0.02, 0.05, 0.08, 0.14),
            224: (0.03, 0.06, 0.09, 0.17, 0.27),
        },
    ),
)
def impulse_noise(images: Tensor, stream: Stream, amount: float) -> Tensor:
    """Salt and pepper: each channel value becomes 0 or 1, with probability amount / 2 each."""
    return _salt_and_pepper(images, stream, amount)


@register(
    family="noise",
    source=IMAGENET_C,
    random=True,
    table=published(
        "sigma",
        {
            32: (0.06, 0.1, 0.12, 0.16, 0.2),
            64: (0.15, 0.2, 0.25, 0.3, 0.35),
            224: (0.15, 0.2, 0.35, 0.45, 0.6),
        },
    ),
)
def speckle_noise(images: Tensor, stream: Stream, sigma: float) -> Tensor:
    """x + x sigma z, z standard normal for each channel value."""
    return stream.normal(images.shape[1:], std=sigma).add_(1.0).mul_(images)


@register(family="noise", source=OVERLAP, random=True, table=AmountRange("sigma", 0.05, 0.18))
def gaussian(images: Tensor, stream: Stream, sigma: Tensor) -> Tensor:
    """x + |sigma z|, z standard normal for each channel value: the noise only brightens."""
    noise = stream.normal(images.shape[1:]).abs_()
    return noise.mul_(sigma.view(-1, 1, 1, 1)).add_(images)


@register(family="noise", source=OVERLAP, random=True, table=AmountRange("p", 0.003, 0.032))
def salt_pepper(images: Tensor, stream: Stream, p: Tensor) -> Tensor:
    """Each channel value becomes 0 or 1, with probability p / 2 each.

    That p counts both, is this project's choice.
    """
    return _salt_and_pepper(images, stream, p.view(-1, 1, 1, 1))


def _salt_and_pepper(images: Tensor, stream: Stream, p: float | Tensor) -> Tensor:
    u = stream.uniform(images.shape[1:])
    hit = torch.lt(u, p, out=torch.empty_like(u))
    # The caller clips: +2 where u < p / 2, and -2 where only u < p.
    return hit.mul_(-2).add_(u.lt_(p / 2), alpha=4).add_(images)


def poisson(rate: Tensor, stream: Stream) -> Tensor:
    """Return Poisson counts as float32, one for each entry of `rate` (N, ...), rate >= 0.

    One normal z an entry, pushed through the inverse of the distribution function. For a rate
    below 10: exactly, by summing the probabilities until they pass Phi(z). From 10 on by the
    expansion floor(r + sqrt(r) z + (2 + z^2) / 6 - (z^3 + 2 z) / (72 sqrt(r))) of Giles (2016,
    ACM Algorithm 955), whose probabilities are off by about a thousandth of themselves.
    """
    z = stream.normal(rate.shape[1:])
    root = rate.sqrt()
    square = z * z
    correction = (square + 2).mul_(z).div_(root.clamp_min(1.0).mul_(72))
    count = root.mul_(z).add_(rate).add_((square + 2).div_(6)).sub_(correction)
    count = count.floor_().clamp_min_(0)

    small = (rate < _SMALL_RATE).flatten().nonzero().squeeze(1)
    rates, quantiles = rate.flatten()[small], torch.special.ndtr(z.flatten()[small])
    parts = zip(rates.split(_SMALL_PIECE), quantiles.split(_SMALL_PIECE), strict=True)
    counts = torch.cat([_poisson_quantile(*part) for part in parts])
    return count.flatten().index_copy_(0, small, counts).view_as(rate)


def _poisson_quantile(rate: Tensor, u: Tensor) -> Tensor:
    """The smallest k with P(count <= k) >= u, for rates below 10: float32 like `rate`."""
    probability = torch.exp(-rate)
    cumulative = probability.clone()
    k = torch.zeros_like(rate)
    for i in range(1, _SMALL_RATE_LIMIT):
        above = u > cumulative
        if i % 4 == 0 and not above.any():
            break
        k.add_(above)
        cumulative.add_(probability.mul_(rate).div_(i))
    return k
