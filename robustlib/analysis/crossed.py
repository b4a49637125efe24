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

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from robustlib.core.checks import check_number, check_whole, settle

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


class Uncertain(ABC):
    """What has an interval and can be tested: an estimate, or an array of them.

    Attributes:
        value: float (...).
        seeds: training seeds.
        images: test images.
    """

    value: np.ndarray
    seeds: int
    images: int

    @abstractmethod
    def ends(self, tail: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
        """Bounds below and above, each wrong with probability `tail` (0 to 0.5)."""

    def interval(self, *, confidence: float = 0.95, family: int = 1) -> Interval:
        """The interval that covers the truth, whatever seeds and images were drawn.

        Args:
            confidence: above 0, below 1.
            family: number of intervals that shall all cover at once (Bonferroni).

        Raises:
            ValueError: an argument out of range.
        """
        confidence = check_number(confidence, "confidence", low=0, above=True, high=1)
        family = check_whole(family, "family", low=1)
        if confidence == 1:
            raise ValueError("confidence must be below 1, such as 0.95.")
        low, high = self.ends((1 - confidence) / 2 / family)
        return Interval(self.value, low, high, self.seeds, self.images)

    def p_above(self, threshold: float) -> np.ndarray:
        """One-sided p value of the hypothesis that the truth is at most `threshold`.

        It is the level at which the lower end meets the threshold; NaN where there is no interval.
        """
        return self._p(threshold, above=True)

    def p_below(self, threshold: float) -> np.ndarray:
        """One-sided p value of the hypothesis that the truth is at least `threshold`."""
        return self._p(threshold, above=False)

    def _p(self, threshold: float, *, above: bool) -> np.ndarray:
        from scipy import special  # late, as it takes a while

        least, most = np.zeros(self.value.shape), np.full(self.value.shape, 20.0)
        for _ in range(40):  # bisection of the normal quantile that belongs to the level
            middle = (least + most) / 2
            low, high = self.ends(special.ndtr(-middle))
            clear = (low > threshold) | (high < threshold)
            least, most = np.where(clear, middle, least), np.where(clear, most, middle)
        p = special.ndtr(-least)
        p = np.where((self.value > threshold) == above, p, 1 - p)
        return np.where(np.isnan(low + self.value), np.nan, p)


@dataclass(frozen=True)
class Estimate(Uncertain):
    """An estimate, or an array of them, with what each seed and block of images contributes.

    Attributes:
        value: float (...).
        cells: float (..., seeds, blocks), a block being one image or several. Their mean is the
            value (for a statistic that isn't linear: nearly).
        images: test images.
        seeds: training seeds.
    """

    value: np.ndarray
    cells: np.ndarray
    images: int
    seeds: int = field(init=False)

    def __post_init__(self) -> None:
        settle(self, value=np.asarray(self.value), seeds=self.cells.shape[-2])

    def __getitem__(self, index: Any) -> Estimate:
        """Some of the estimates, by the index of `value`."""
        return Estimate(self.value[index], self.cells[index], self.images)

    def ends(self, tail: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
        """As `Uncertain.ends`."""
        half = self.half_width(tail)
        return self.value - half, self.value + half

    def half_width(self, tail: np.ndarray | float) -> np.ndarray:
        """Distance of the ends from the value; see the module."""
        squares = _squares(self._parts, tail, self.seeds, self.cells.shape[-1])
        return np.sqrt(np.maximum.reduce(squares))

    @cached_property
    def _parts(self) -> np.ndarray:
        return _covariances(self.cells, self.cells)


@dataclass(frozen=True)
class Ratio(Uncertain):
    """A ratio of two estimates from the same seeds and images, with Fieller's interval (1954).

    A value r is in the interval if numerator - r * denominator doesn't differ clearly from zero.
    So nothing is assumed of the ratio's own distribution, which is skewed where the denominator
    is small. Where the denominator itself doesn't differ clearly from zero, no value can be
    excluded, and the ends are infinite.

    Attributes:
        numerator: (...).
        denominator: the same shape.
        value: the ratio; NaN where the denominator is zero.
        seeds: training seeds.
        images: test images.
    """

    numerator: Estimate
    denominator: Estimate
    value: np.ndarray = field(init=False)
    seeds: int = field(init=False)
    images: int = field(init=False)

    def __post_init__(self) -> None:
        above, below = self.numerator, self.denominator.value
        value = np.asarray(above.value / np.where(below != 0, below, np.nan))
        settle(self, value=value, seeds=above.seeds, images=above.images)

    def __getitem__(self, index: Any) -> Ratio:
        """Some of the ratios, by the index of `value`."""
        return Ratio(self.numerator[index], self.denominator[index])

    def ends(self, tail: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
        """As `Uncertain.ends`."""
        above, below, value = self.numerator.value, self.denominator.value, self.value
        sizes = self.seeds, self.numerator.cells.shape[-1]
        low, high = value, value
        for upper, mixed, lower in zip(
            *(_squares(part, tail, *sizes) for part in self._parts), strict=True
        ):
            # the r with (numerator - r denominator)^2 at most upper - 2 r mixed + r^2 lower
            a, b, c = below**2 - lower, above * below - mixed, above**2 - upper
            holds = upper - 2 * value * mixed + value**2 * lower >= 0
            root = np.sqrt(np.maximum(b**2 - a * c, 0))
            divisor = np.where(a > 0, a, np.nan)
            low = np.where(holds, np.fmin(low, (b - root) / divisor), low)
            high = np.where(holds, np.fmax(high, (b + root) / divisor), high)
            low = np.where(holds & (a <= 0), -np.inf, low)
            high = np.where(holds & (a <= 0), np.inf, high)
        undefined = np.isnan(value)
        return np.where(undefined, np.nan, low), np.where(undefined, np.nan, high)

    def linear(self) -> Estimate:
        """The ratio as if it were linear near its value: for variances and correlations."""
        above, below, value = self.numerator, self.denominator, self.value[..., None, None]
        slope = 1 / np.where(below.value != 0, below.value, np.nan)[..., None, None]
        return Estimate(
            self.value, value + slope * (above.cells - value * below.cells), self.images
        )

    @cached_property
    def _parts(self) -> list[np.ndarray]:
        x, y = self.numerator.cells, self.denominator.cells
        return [_covariances(*pair) for pair in ((x, x), (x, y), (y, y))]


@dataclass(frozen=True)
class MeanOfRatios(Uncertain):
    """The mean of two ratios, with an interval that joins theirs (Zou and Donner 2008).

    The distance of an end is that of two correlated parts, sqrt(d1^2 + d2^2 + 2 r d1 d2) / 2, with
    the ratios' own distances d and their correlation r, of the ratios as if linear. It is infinite
    where one of theirs is.

    Attributes:
        first: (...).
        second: the same shape.
        value: the mean of both.
        seeds: training seeds.
        images: test images.
    """

    first: Ratio
    second: Ratio
    value: np.ndarray = field(init=False)
    seeds: int = field(init=False)
    images: int = field(init=False)

    def __post_init__(self) -> None:
        value = np.asarray((self.first.value + self.second.value) / 2)
        settle(self, value=value, seeds=self.first.seeds, images=self.first.images)

    def __getitem__(self, index: Any) -> MeanOfRatios:
        """Some of the means, by the index of `value`."""
        return MeanOfRatios(self.first[index], self.second[index])

    def ends(self, tail: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
        """As `Uncertain.ends`."""
        one, two, both = (part.half_width(tail) for part in self._linear)
        product = 2 * one * two
        r = np.clip((both**2 - (one**2 + two**2)) / np.where(product > 0, product, np.nan), -1, 1)
        r = np.nan_to_num(r)  # where one has no width, it doesn't matter

        def distance(first: np.ndarray, second: np.ndarray) -> np.ndarray:
            finite = np.isfinite(first) & np.isfinite(second)
            x, y = np.where(finite, first, 0), np.where(finite, second, 0)
            joined = np.sqrt(np.maximum(x**2 + y**2 + 2 * r * (x * y), 0)) / 2
            return np.where(finite, joined, first + second)

        (low, high), (other_low, other_high) = self.first.ends(tail), self.second.ends(tail)
        first, second = self.first.value, self.second.value
        return (
            self.value - distance(first - low, second - other_low),
            self.value + distance(high - first, other_high - second),
        )

    @cached_property
    def _linear(self) -> tuple[Estimate, Estimate, Estimate]:
        one, two = self.first.linear(), self.second.linear()
        return one, two, Estimate(one.value + two.value, one.cells + two.cells, self.images)


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
    50 blocks (`BLOCKS`) of images that a fixed random order puts together; of single images where
    there are fewer. Neighbours, or every 50th image, would not do: in a data set whose classes
    take turns, these are of one class, and differ more than blocks drawn at random do.

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

    Args and errors as for `jackknife` and `Uncertain.interval`.
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
    order = np.random.default_rng(0).permutation(images) if per_block > 1 else np.arange(images)
    sums = np.empty((len(correct), blocks, *correct.shape[1:-1]))
    kind = np.int64 if correct.dtype == bool else np.float64
    for seed, values in enumerate(correct):
        if not (values.min() >= 0 and values.max() <= 1):  # true for NaN, too
            raise ValueError("correct must lie in [0, 1], without NaN.")
        values = values[..., order]
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
        (a * b).sum(tuple(range(x.ndim - 2, a.ndim)))
        for a, b in zip(split(x), split(y), strict=True)
    ]
    others = max(seeds - 1, 1)
    counts = (seeds * others, blocks * (blocks - 1), seeds * others * blocks * (blocks - 1))
    return np.stack([product / count for product, count in zip(products, counts, strict=True)])


def _squares(
    parts: np.ndarray, tail: np.ndarray | float, seeds: int, blocks: int
) -> tuple[np.ndarray, ...]:
    """Squared half widths (or products of two) of which the largest counts; see the module."""
    from scipy import special  # late, as above

    of_seeds, of_images, of_both = parts
    image_square = special.stdtrit(blocks - 1, tail) ** 2
    if seeds == 1:
        return (image_square * of_images,)
    seed_part = special.stdtrit(seeds - 1, tail) ** 2 * of_seeds
    return (
        seed_part + image_square * (of_images - of_both),
        seed_part,
        image_square * of_images,
    )
