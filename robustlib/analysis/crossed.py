"""Estimates and intervals from crossed data: every training seed meets every test image.

A mean over seeds and images varies with both. Let V_seeds, V_images and V_both be the variances of
the mean as the seeds' means, the images' means and the residuals give them. On average V_seeds
holds what seeds do alone and with images, V_images - V_both what images do alone. The interval's
half width h joins the half widths of these two (Zou and Donner 2008: variance recovered from
intervals):

    h^2 = t_seeds^2 V_seeds + t_images^2 (V_images - V_both), at least t_images^2 V_images

with Student quantiles of seeds - 1 and images - 1 degrees of freedom (blocks - 1 where images are
taken in blocks); the floor is this project's choice. The chance that a normal mean lies within h
is concave in h^2, so whatever the shares of the two parts, it is no less than where one is all:
what is claimed. Satterthwaite's degrees of freedom promise no such thing, and cover less with
three seeds. Other statistics than means enter by the jackknife, as pseudo-values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from robustlib.core.checks import check_number, check_whole

BLOCKS = 50
Statistic = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Interval:
    """An estimate with its interval, or arrays of them.

    Attributes:
        estimate: float (...).
        low: lower end, the same shape; -inf where nothing bounds it, NaN where undefined.
        high: upper end; inf or NaN likewise.
        seeds: training seeds. With one, the interval covers the choice of test images only, and
            speaks of these models, not of their method.
        images: test images.
    """

    estimate: np.ndarray
    low: np.ndarray
    high: np.ndarray
    seeds: int
    images: int

    @property
    def covers(self) -> str:
        """What varies, in words: "seeds and images", or "images only"."""
        return "seeds and images" if self.seeds > 1 else "images only"


class Uncertain(Protocol):
    """What intervals and tests need of an estimate: `Estimate` and `Ratio` have it."""

    @property
    def value(self) -> np.ndarray:
        """The estimate, float (...)."""

    @property
    def seeds(self) -> int:
        """Training seeds."""

    @property
    def images(self) -> int:
        """Test images."""

    def interval(self, *, confidence: float = 0.95, family: int = 1) -> Interval:
        """The interval that covers the truth."""

    def p_above(self, threshold: float) -> np.ndarray:
        """One-sided p value of "at most the threshold"."""

    def p_below(self, threshold: float) -> np.ndarray:
        """One-sided p value of "at least the threshold"."""


@dataclass(frozen=True)
class Estimate:
    """An estimate, or an array of them, with what each seed and block of images contributes.

    Attributes:
        value: float (...).
        cells: float (..., seeds, blocks), a block being one image or several. Their mean is the
            value (for a statistic that isn't linear: nearly).
        images: test images.
    """

    value: np.ndarray
    cells: np.ndarray
    images: int

    @property
    def seeds(self) -> int:
        """Training seeds."""
        return self.cells.shape[-2]

    def __getitem__(self, index: Any) -> Estimate:
        """Some of the estimates, by the index of `value`."""
        return Estimate(self.value[index], self.cells[index], self.images)

    def interval(self, *, confidence: float = 0.95, family: int = 1) -> Interval:
        """The interval that covers the truth, whatever seeds and images were drawn.

        Args:
            confidence: above 0, below 1.
            family: number of intervals that shall all cover at once (Bonferroni).
        """
        half = np.sqrt(_largest(self._parts(), _tail(confidence, family), *self._freedom()))
        return Interval(self.value, self.value - half, self.value + half, self.seeds, self.images)

    def p_above(self, threshold: float) -> np.ndarray:
        """One-sided p value of the hypothesis that the truth is at most `threshold`."""
        return self._p(self.value - threshold)

    def p_below(self, threshold: float) -> np.ndarray:
        """One-sided p value of the hypothesis that the truth is at least `threshold`."""
        return self._p(threshold - self.value)

    def _p(self, distance: np.ndarray) -> np.ndarray:
        """The level at which the one-sided bound meets the hypothesis, by bisection."""
        from scipy import special  # late, as it takes a while

        parts, freedom = self._parts(), self._freedom()
        low, high = np.zeros_like(distance), np.full_like(distance, 20.0)  # normal quantiles
        for _ in range(50):
            middle = (low + high) / 2
            beyond = _largest(parts, special.ndtr(-middle), *freedom) < distance**2
            low, high = np.where(beyond, middle, low), np.where(beyond, high, middle)
        p = special.ndtr(-low)
        p = np.where(distance < 0, 1 - p, p)
        return np.where(np.isfinite(distance) & np.isfinite(parts).all(axis=0), p, np.nan)

    def _parts(self) -> np.ndarray:
        return _covariances(self.cells, self.cells)

    def _freedom(self) -> tuple[int, int]:
        return self.seeds - 1, self.cells.shape[-1] - 1


@dataclass(frozen=True)
class Ratio:
    """A ratio of two estimates from the same seeds and images, with Fieller's interval (1954).

    A value r is in the interval if numerator - r * denominator doesn't differ clearly from zero.
    So nothing is assumed of the ratio's own distribution, which is skewed where the denominator
    is small. Where the denominator itself doesn't differ clearly from zero, no value can be
    excluded, and the ends are infinite.
    """

    numerator: Estimate
    denominator: Estimate

    @property
    def value(self) -> np.ndarray:
        """The ratio, float (...); NaN where the denominator is zero."""
        below = self.denominator.value
        return self.numerator.value / np.where(below != 0, below, np.nan)

    @property
    def seeds(self) -> int:
        """Training seeds."""
        return self.numerator.seeds

    @property
    def images(self) -> int:
        """Test images."""
        return self.numerator.images

    def interval(self, *, confidence: float = 0.95, family: int = 1) -> Interval:
        """As `Estimate.interval`."""
        above, below = self.numerator, self.denominator
        pairs = ((above, above), (above, below), (below, below))
        parts = [_covariances(x.cells, y.cells) for x, y in pairs]
        tail, freedom = _tail(confidence, family), above._freedom()
        choices = zip(*(_squares(part, tail, *freedom) for part in parts), strict=True)
        value = self.value
        low, high = value, value
        for upper, mixed, lower in choices:
            # the set of r with (numerator - r denominator)^2 at most its squared half width
            a = below.value**2 - lower
            b = above.value * below.value - mixed
            c = above.value**2 - upper
            holds = (above.value - value * below.value) ** 2 <= upper + value * (
                value * lower - 2 * mixed
            )
            root = np.sqrt(np.maximum(b**2 - a * c, 0))
            bounded = np.where(a > 0, a, np.nan)
            low = np.where(holds, np.fmin(low, (b - root) / bounded), low)
            high = np.where(holds, np.fmax(high, (b + root) / bounded), high)
            low = np.where(holds & (a <= 0), -np.inf, low)
            high = np.where(holds & (a <= 0), np.inf, high)
        undefined = np.isnan(value)
        low, high = (np.where(undefined, np.nan, end) for end in (low, high))
        return Interval(value, low, high, self.seeds, self.images)

    def p_above(self, threshold: float) -> np.ndarray:
        """As `Estimate.p_above`, for a denominator whose truth is positive."""
        return self._excess(threshold).p_above(0)

    def p_below(self, threshold: float) -> np.ndarray:
        """As `Estimate.p_below`, for a denominator whose truth is positive."""
        return self._excess(threshold).p_below(0)

    def _excess(self, threshold: float) -> Estimate:
        above, below = self.numerator, self.denominator
        value = above.value - threshold * below.value
        return Estimate(value, above.cells - threshold * below.cells, above.images)


def crossed_estimate(values: np.ndarray) -> Estimate:
    """The mean over training seeds and test images.

    Args:
        values: (..., seeds, images), numbers without NaN, such as correctness or, for paired
            gains, differences of correctness. Each image in the same place for every seed.

    Raises:
        ValueError: no seed, fewer than two images, or values that aren't finite.
    """
    values = np.asarray(values, dtype=float)
    if values.ndim < 2 or values.shape[-2] < 1 or values.shape[-1] < 2:
        raise ValueError(
            "values must be (..., seeds, images) with at least one seed and two images, got "
            f"{values.shape}."
        )
    if not np.isfinite(values).all():
        raise ValueError("values must be finite, found NaN or infinity.")
    return Estimate(values.mean(axis=(-2, -1)), values, values.shape[-1])


def crossed_interval(values: np.ndarray, *, confidence: float = 0.95) -> Interval:
    """Mean over training seeds and test images, with an interval that covers the choice of both.

    Args and errors as for `crossed_estimate`. With one seed it covers that of the images only.
    """
    return crossed_estimate(values).interval(confidence=confidence)


def jackknife(statistic: Statistic, correct: np.ndarray) -> Estimate:
    """A smooth function of accuracies, with pseudo-values over training seeds and test images.

    Each seed, each block of images and each pair of them is left out in turn (Tukey 1958; in two
    ways at once as this project's choice). Seeds and images are left out for all models and
    perturbations together, so that what these share, such as the standard model, stays shared.

    Args:
        statistic: maps accuracies float (..., models, perturbations), or what stands between
            seeds and images in `correct`, to float (..., any shape); smooth, and applied to each
            element of the leading dimensions for itself (`numpy.vectorize` with a `signature`
            makes a function of one matrix such a one).
        correct: (seeds, models, perturbations, n), bool or numbers in [0, 1], as from
            `Evaluation.per_seed`.

    Returns the statistic of the accuracies averaged over seeds, with cells (seeds, blocks): about
    50 blocks (`BLOCKS`), of neighbours 50 images apart; of single images where there are fewer.

    Raises:
        ValueError: no seed, fewer than two images, or values outside [0, 1].
    """
    sums, sizes = _block_sums(correct)
    seeds, images = len(sums), int(sizes.sum())
    total, of_seed, of_block = sums.sum((0, 1)), sums.sum(1, keepdims=True), sums.sum(0)
    size = sizes.reshape(-1, *[1] * (sums.ndim - 2)).astype(float)
    rest = images - size
    whole = np.asarray(statistic(total / (seeds * images)), dtype=float)
    no_block = np.asarray(statistic((total - of_block) / (seeds * rest)), dtype=float)
    weight = (images / sizes).reshape(-1, *[1] * whole.ndim)
    if seeds == 1:
        cells = (weight * whole - (weight - 1) * no_block)[None]
    else:
        others = seeds - 1
        no_seed = np.asarray(statistic((total - of_seed) / (others * images)), dtype=float)
        neither = np.asarray(
            statistic((total - of_seed - of_block + sums) / (others * rest)), dtype=float
        )
        cells = weight * (seeds * whole - others * no_seed) - (weight - 1) * (
            seeds * no_block - others * neither
        )
    return Estimate(whole, np.moveaxis(cells, (0, 1), (-2, -1)), images)


def accuracy_gains(correct: np.ndarray) -> Estimate:
    """Accuracy gained over the first model on the same images, by models of the same seeds.

    correct: (seeds, 1 + models, perturbations, n), as for `jackknife`, the reference first.

    Returns (models, perturbations), in accuracy (0.01 is a point). Errors as for `jackknife`.
    """
    return jackknife(lambda accuracy: accuracy[..., 1:, :] - accuracy[..., :1, :], correct)


def crossed_intervals(
    statistic: Statistic, correct: np.ndarray, *, confidence: float = 0.95, family: int = 1
) -> Interval:
    """A smooth function of accuracies with intervals that cover seeds and images.

    Args and errors as for `jackknife` and `Estimate.interval`.
    """
    return jackknife(statistic, correct).interval(confidence=confidence, family=family)


def largest(interval: Interval) -> Interval:
    """The largest of several truths, from intervals that all cover at once.

    interval: with `family` at least the number of its elements when it was made; NaN are left
    out. The largest estimate is too large on average, so its own interval does not cover: the
    largest truth lies between the largest lower and the largest upper end.

    Raises:
        ValueError: nothing but NaN.
    """
    if np.isnan(interval.estimate).all():
        raise ValueError("there is no largest: every estimate is undefined.")
    estimate, low, high = map(np.nanmax, (interval.estimate, interval.low, interval.high))
    return Interval(estimate, low, high, interval.seeds, interval.images)


def _block_sums(correct: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Right answers (seeds, blocks, ...) of (seeds, ..., n), and images in each block."""
    correct = np.asarray(correct)
    if correct.ndim < 2 or len(correct) < 1 or correct.shape[-1] < 2:
        raise ValueError(
            "correct must be (seeds, models, perturbations, n) with at least one seed and two "
            f"images, got {correct.shape}."
        )
    images = correct.shape[-1]
    per_block = -(-images // BLOCKS)
    blocks = images // per_block
    kept = images // blocks * blocks
    sums = np.empty((len(correct), blocks, *correct.shape[1:-1]))
    kind = np.int64 if correct.dtype == bool else np.float64
    for seed, values in enumerate(correct):
        if not (values.min() >= 0 and values.max() <= 1):  # true for NaN, too
            raise ValueError("correct must lie in [0, 1], without NaN.")
        parts = values[..., :kept].reshape(*values.shape[:-1], -1, blocks)
        found = parts.sum(axis=-2, dtype=kind)
        found[..., : images - kept] += values[..., kept:]
        sums[seed] = np.moveaxis(found, -1, 0)
    return sums, np.bincount(np.arange(images) % blocks)


def _covariances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(3, ...): covariance of the means of two (..., seeds, blocks), as seeds, blocks, residuals.

    With one seed only the second differs from zero.
    """
    seeds, blocks = x.shape[-2:]

    def split(cells: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        centred = cells - cells.mean((-2, -1), keepdims=True)
        by_seed, by_block = centred.mean(-1), centred.mean(-2)
        return by_seed, by_block, centred - by_seed[..., None] - by_block[..., None, :]

    products = [
        (a * b).reshape(*x.shape[:-2], -1).sum(-1) for a, b in zip(split(x), split(y), strict=True)
    ]
    others = max(seeds - 1, 1)
    counts = (seeds * others, blocks * (blocks - 1), seeds * others * blocks * (blocks - 1))
    return np.stack([product / count for product, count in zip(products, counts, strict=True)])


def _squares(
    parts: np.ndarray, tail: np.ndarray | float, of_seeds: int, of_blocks: int
) -> tuple[np.ndarray, ...]:
    """Squared half widths (or products of them) of which the largest counts; see the module."""
    from scipy import special  # late, as above

    seeds, images, both = parts
    image_square = special.stdtrit(of_blocks, tail) ** 2
    if not of_seeds:
        return (image_square * images,)
    seed_part = special.stdtrit(of_seeds, tail) ** 2 * seeds
    return seed_part + image_square * (images - both), seed_part, image_square * images


def _largest(
    parts: np.ndarray, tail: np.ndarray | float, of_seeds: int, of_blocks: int
) -> np.ndarray:
    return np.maximum.reduce(_squares(parts, tail, of_seeds, of_blocks))


def _tail(confidence: float, family: int) -> float:
    confidence = check_number(confidence, "confidence", low=0, above=True, high=1)
    family = check_whole(family, "family", low=1)
    if confidence == 1:
        raise ValueError("confidence must be below 1, such as 0.95.")
    return (1 - confidence) / 2 / family
