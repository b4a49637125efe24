"""Crossed intervals and tests of hypotheses: worked by hand, beside scipy and statsmodels, and on
simulated data whose truth is known. Simulations draw thousands of data sets: the Monte Carlo error
of a coverage near 95 % is below half a point.
"""

from __future__ import annotations

import itertools
import math
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
from scipy import special, stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.weightstats import ttost_paired

from robustlib.analysis import crossed, hypotheses, overlap, selection
from robustlib.analysis.crossed import (
    Estimate,
    Interval,
    MeanOfRatios,
    Ratio,
    crossed_estimate,
    crossed_interval,
    jackknife,
    largest,
)
from robustlib.analysis.hypotheses import (
    ONE_SEED,
    Hypothesis,
    equivalence,
    hypotheses_table,
    noninferiority,
    superiority,
    superiority_of_largest,
)
from robustlib.analysis.metrics import mce_estimates
from robustlib.core.checks import UnknownNameError

DRAWS = 4000
SEEDS = (3, 5, 10)
# shares of the variance of the mean: seeds, images, and what is left of each pair
SHARES = [(1, 4, 0), (1, 1, 0), (4, 1, 0), (1, 4, 1), (1, 1, 1), (4, 1, 1), (0, 1, 1)]


def normal(
    seeds: int,
    shares: tuple[float, float, float],
    *,
    draws: int = DRAWS,
    images: int = 30,
    rng: np.random.Generator | None = None,
) -> np.ndarray:
    """(draws, seeds, images) around 0; the variance of the mean over seeds and images is 1."""
    rng = rng or np.random.default_rng(seeds)
    of_seeds, of_images, of_both = np.sqrt(np.array(shares) / sum(shares))
    return (
        of_seeds * math.sqrt(seeds) * rng.standard_normal((draws, seeds, 1))
        + of_images * math.sqrt(images) * rng.standard_normal((draws, 1, images))
        + of_both * math.sqrt(seeds * images) * rng.standard_normal((draws, seeds, images))
    )


def coverage(interval: Interval, truth: float) -> float:
    return float(np.mean((interval.low <= truth) & (truth <= interval.high)))


# --- Intervals: by hand, and beside other implementations -----------------------------------------


def test_crossed_interval_by_hand() -> None:
    """Seeds' means 1.5 and 4.5, images' 2 and 4, residuals +-1/2: V 2.25, 1 and 0.25."""
    found = crossed_interval(np.array([[1.0, 2.0], [3.0, 6.0]]))
    half = 12.706205 * math.sqrt(2.25 + 1 - 0.25)
    assert found.estimate == 3
    assert (found.low, found.high) == (pytest.approx(3 - half), pytest.approx(3 + half))
    assert (found.seeds, found.images, found.covers) == (2, 2, "seeds and images")


def test_one_seed_gives_the_interval_of_its_images_and_says_so() -> None:
    values = np.array([[0.0, 1.0, 1.0, 0.0, 1.0]])
    found = crossed_interval(values, confidence=0.9)
    expected = stats.ttest_1samp(values[0], 0).confidence_interval(0.9)
    assert (found.low, found.high) == (pytest.approx(expected.low), pytest.approx(expected.high))
    assert (found.seeds, found.covers) == (1, "images only")


def test_without_image_effects_it_is_the_t_interval_of_the_seeds() -> None:
    seeds = np.array([0.3, 0.5, 0.9])
    found = crossed_interval(np.repeat(seeds[:, None], 8, axis=1))
    expected = stats.ttest_1samp(seeds, 0).confidence_interval()
    assert (found.low, found.high) == (pytest.approx(expected.low), pytest.approx(expected.high))


def test_equal_seeds_add_nothing_but_never_narrow_the_interval_of_the_images() -> None:
    rng = np.random.default_rng(0)
    values = rng.random((1, 20))
    alone, thrice = crossed_interval(values), crossed_interval(np.repeat(values, 3, axis=0))
    assert thrice.low == pytest.approx(alone.low)
    for _ in range(20):
        values = rng.random((3, 20))
        images = crossed_interval(values.mean(0, keepdims=True))
        assert crossed_interval(values).high >= images.high - 1e-12


def blocks_order(images: int) -> np.ndarray:
    """In which order images are dealt out to blocks."""
    return np.random.default_rng(0).permutation(images) if images > 50 else np.arange(images)


@pytest.mark.parametrize("images", [7, 50, 83, 1000])
@pytest.mark.parametrize("seeds", [1, 3])
def test_the_jackknife_of_a_mean_is_that_of_its_blocks(seeds: int, images: int) -> None:
    correct = np.random.default_rng(1).random((seeds, 2, 3, images)) < 0.6
    found = jackknife(lambda accuracy: accuracy, correct)
    np.testing.assert_allclose(found.value, correct.mean((0, 3)))
    blocks = found.cells.shape[-1]
    assert blocks == {7: 7, 50: 50, 83: 41, 1000: 50}[images]
    order = blocks_order(images)
    for block in (0, blocks - 1):
        own = correct[..., order[block::blocks]]
        if block == 0 and images % blocks:  # what is left over lies in the first blocks
            assert own.shape[-1] == images // blocks + 1
        np.testing.assert_allclose(
            found.cells[..., block], np.moveaxis(own.mean(-1), 0, -1), atol=1e-12
        )
    if images <= 50:
        exact = crossed_interval(np.moveaxis(correct, 0, -2))
        np.testing.assert_allclose(found.interval().low, exact.low)


def test_the_jackknife_equals_a_plain_loop() -> None:
    correct = np.random.default_rng(2).random((3, 2, 1, 100)) < [[[[0.5]], [[0.8]]]]

    def ratio(accuracy: np.ndarray) -> np.ndarray:
        return accuracy[..., 0, 0] / accuracy[..., 1, 0]

    def of(seeds: list[int], images: list[int]) -> float:
        return float(ratio(correct[seeds][..., images].mean((0, 3))))

    found = jackknife(ratio, correct)
    seeds, images = range(3), blocks_order(100).tolist()
    for s, b in itertools.product(range(3), (0, 17, 49)):
        left = [x for x in seeds if x != s]
        rest = [x for place, x in enumerate(images) if place % 50 != b]
        expected = (
            150 * of([*seeds], [*images])
            - 100 * of(left, [*images])
            - 147 * of([*seeds], rest)
            + 98 * of(left, rest)
        )
        assert found.cells[s, b] == pytest.approx(expected)
    assert found.value == of([*seeds], [*images])


def test_gains_are_paired_over_seeds_and_images() -> None:
    rng = np.random.default_rng(4)
    correct = rng.random((3, 3, 2, 40)) < 0.7
    found = crossed.accuracy_gains(correct)
    first = crossed_interval(correct[:, 2, 1].astype(float) - correct[:, 0, 1])
    one = found[1, 1].interval()
    assert found.value.shape == (2, 2)
    assert (one.estimate, one.low) == (pytest.approx(first.estimate), pytest.approx(first.low))
    same = crossed.accuracy_gains(correct[:, [0, 0]]).interval()
    assert (same.low == 0).all()
    assert (same.high == 0).all()


def test_family_is_bonferroni() -> None:
    estimate = crossed_estimate(normal(3, (1, 1, 1), draws=1)[0])
    ten, alone = estimate.interval(family=10), estimate.interval(confidence=0.995)
    assert ten.low == pytest.approx(alone.low)


def test_fieller_keeps_exactly_what_differs_from_nothing() -> None:
    rng = np.random.default_rng(5)
    above, below = (1 + 0.5 * rng.standard_normal((4, 30)) for _ in range(2))
    found = Ratio(crossed_estimate(above), crossed_estimate(below)).interval()
    for ratio, inside in [
        (found.low - 1e-6, False),
        (found.low + 1e-6, True),
        (found.estimate, True),
        (found.high - 1e-6, True),
        (found.high + 1e-6, False),
    ]:
        part = crossed_interval(above - ratio * below)
        assert (part.low <= 0 <= part.high) == inside


def test_fieller_is_unbounded_where_the_denominator_may_be_zero() -> None:
    rng = np.random.default_rng(6)
    values = rng.standard_normal((200, 2, 3, 20)) + np.array([1.0, 0.3])[:, None, None]
    above, below = (crossed_estimate(values[:, k]) for k in range(2))
    found, own = Ratio(above, below).interval(), below.interval()
    clear = (own.low > 0) | (own.high < 0)
    assert 0.1 < clear.mean() < 0.9
    np.testing.assert_array_equal(np.isfinite(found.low) & np.isfinite(found.high), clear)
    assert (np.isinf(found.low) & np.isinf(found.high))[~clear].all()


def test_the_mean_of_ratios_by_hand() -> None:
    """With itself a ratio keeps its interval; with its mirror image about 1 nothing is left."""
    rng = np.random.default_rng(15)
    above = crossed_estimate(10 + normal(4, (1, 1, 1), draws=1, rng=rng)[0])
    one = crossed_estimate(np.ones((4, 30)))
    mirrored = Ratio(crossed_estimate(2 - above.cells), one)
    ratio = Ratio(above, one)
    found, expected = MeanOfRatios(ratio, ratio).interval(), ratio.interval()
    assert (found.low, found.high) == (pytest.approx(expected.low), pytest.approx(expected.high))
    assert ratio.linear().interval().low == pytest.approx(expected.low)
    nothing = MeanOfRatios(ratio, mirrored).interval()
    assert [nothing.low, nothing.high] == pytest.approx([1, 1], abs=1e-6)
    below = crossed_estimate(normal(4, (1, 1, 1), draws=1, rng=rng)[0])
    unbounded = MeanOfRatios(ratio, Ratio(above, below)).interval()
    assert (unbounded.low, unbounded.high) == (-np.inf, np.inf)


def test_a_ratio_to_nothing_is_undefined() -> None:
    zero = crossed_estimate(np.zeros((2, 5)))
    found = Ratio(crossed_estimate(np.ones((2, 5))), zero).interval()
    assert np.isnan([found.estimate, found.low, found.high]).all()


def test_mce_by_hand_and_with_intervals() -> None:
    rng = np.random.default_rng(7)
    right = np.array([[0.5, 0.6], [0.75, 0.7]])
    correct = rng.random((3, 2, 2, 2000)) < right[..., None]
    found = mce_estimates(correct)
    error = 1 - correct.mean((0, 3))
    assert found.value[1] == pytest.approx(50 * (error[1] / error[0]).sum())
    interval = found.interval()
    assert (interval.low[0], interval.high[0]) == (pytest.approx(100), pytest.approx(100))
    assert 55 < interval.low[1] < 62.5 < interval.high[1] < 70
    clean = rng.random((3, 2, 2000)) < 0.9
    relative = mce_estimates(correct, clean=clean).value[1]
    lost = error - (1 - clean.mean((0, 2)))[:, None]
    assert relative == pytest.approx(50 * (lost[1] / lost[0]).sum())
    assert mce_estimates(correct, reference=1).value[1] == pytest.approx(100)
    with pytest.raises(ValueError, match="clean"):
        mce_estimates(correct, clean=clean[:, :1])
    with pytest.raises(ValueError, match="reference"):
        mce_estimates(correct, reference=2)


def test_overlap_intervals_by_hand() -> None:
    """Equal images and seeds: no width. Halves of noise and blur: 0.04 / 0.16 and 0.16 / 0.24."""
    accuracy = np.array([[0.8, 0.4, 0.48], [0.8, 0.64, 0.52], [0.8, 0.56, 0.64]])
    found = overlap.overlap_intervals(np.repeat(accuracy[None, ..., None], 3, 0) * np.ones(20))
    for ends in (found.overlap.estimate, found.overlap.low, found.overlap.high):
        assert ends[0, 1] == pytest.approx(0.5 * (0.25 + 2 / 3))
    assert found.directed.estimate[0, 1] == pytest.approx(0.25)
    assert found.own_gains.estimate.tolist() == pytest.approx([0.3, 0.2])


def overlap_data(seeds: int, images: int) -> np.ndarray:
    """Standard and four models; the third corruption gains nothing by its own training."""
    right = np.full((5, 5), 0.5)
    right[:, 0] = 0.8
    right[[1, 2, 3, 4], [1, 2, 3, 4]] = [0.75, 0.7, 0.5, 0.8]
    right[1, 2], right[2, 1], right[4, 1], right[1, 4] = 0.65, 0.6, 0.3, 0.4
    draws = np.random.default_rng(8).random((seeds, 5, 5, images))
    return draws < right[..., None]


@pytest.mark.parametrize("normalise", overlap.NORMALISATIONS)
@pytest.mark.parametrize("seeds", [1, 3])
def test_overlap_intervals_agree_with_the_score(seeds: int, normalise: str) -> None:
    correct = overlap_data(seeds, 3000)
    found = overlap.overlap_intervals(correct, normalise)
    accuracy = correct.mean((0, 3))
    halves = overlap.directed(accuracy, normalise, 0.0)
    clear = [0, 1, 3]
    kept = np.ix_(clear, clear)
    np.testing.assert_allclose(found.directed.estimate[kept], halves[kept])
    np.testing.assert_allclose(found.overlap.estimate[kept], overlap.symmetric(halves)[kept])
    for ends in (found.overlap.low, found.overlap.high):
        np.testing.assert_allclose(ends, ends.T, rtol=1e-12)
        np.testing.assert_allclose(np.diag(ends)[clear], 1)
        assert np.isnan(ends[2]).all()
        assert (ends[kept] >= 0).all()
    assert found.own_gains.low[2] < 0 < found.own_gains.high[2]
    assert np.isnan(found.directed.low[:, 2]).all()
    assert np.isfinite(found.directed.low[2, clear]).all()
    assert found.directed.high[3, 0] < 0
    assert found.overlap.low[0, 1] > 0.4
    signed = overlap.signed_overlaps(correct, normalise)[kept]
    np.testing.assert_allclose(np.maximum(0, signed.interval().high), found.overlap.high[kept])
    assert (superiority(signed).p[0, 1], signed.value[0, 2] < 0) == (
        pytest.approx(0, abs=0.01),
        True,
    )
    wide = overlap.overlap_intervals(correct, normalise, family=6)
    assert wide.overlap.high[0, 1] > found.overlap.high[0, 1]
    narrow = overlap.overlap_intervals(correct, normalise, confidence=0.1)
    assert narrow.own_gains.low[0] > found.own_gains.low[0]
    for other in (wide, narrow):
        np.testing.assert_array_equal(np.isnan(other.overlap.high), np.isnan(found.overlap.high))


# --- Intervals: coverage --------------------------------------------------------------------------


@pytest.mark.parametrize("shares", SHARES)
@pytest.mark.parametrize("seeds", SEEDS)
def test_coverage_of_normal_data(seeds: int, shares: tuple[float, float, float]) -> None:
    assert 0.93 < coverage(crossed_interval(normal(seeds, shares)), 0) < 0.99


@pytest.mark.parametrize("ratio", [1 / 4, 1, 4])
@pytest.mark.parametrize("seeds", SEEDS)
def test_coverage_of_correctness_and_of_paired_gains(seeds: int, ratio: float) -> None:
    """Two recipes on images of different difficulty; ratio: variance from seeds to images."""
    images, base, better = 100, 1.0, 1.6
    rng = np.random.default_rng(seeds)
    slope, of_image, of_pair = 0.14, 1.5, 0.7
    of_seed = math.sqrt(ratio * seeds * 0.07 / images) / slope
    difficulty = of_image * rng.standard_normal((DRAWS, 1, images))
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    spread = math.sqrt(of_image**2 + of_pair**2 + of_seed**2)

    def answers(level: float) -> tuple[np.ndarray, float]:
        logits = level + difficulty + of_seed * rng.standard_normal((DRAWS, seeds, 1))
        logits += of_pair * rng.standard_normal((DRAWS, seeds, images))
        right = rng.random(logits.shape) < special.expit(logits)
        truth = weights @ special.expit(level + spread * nodes) / weights.sum()
        return right.astype(float), float(truth)

    (first, lower), (second, higher) = answers(base), answers(better)
    assert 0.93 < coverage(crossed_interval(first), lower) < 0.99
    assert 0.93 < coverage(crossed_interval(second - first), higher - lower) < 0.99


@pytest.mark.parametrize("own", [3, 4, 6])
@pytest.mark.parametrize("shares", [(1, 4, 1), (4, 1, 1)])
@pytest.mark.parametrize("seeds", SEEDS)
def test_coverage_of_ratios_with_small_denominators(
    seeds: int, shares: tuple[float, float, float], own: float
) -> None:
    """The denominator is `own` standard errors; counted are ratios whose own gain is clear."""
    rng = np.random.default_rng(seeds)
    one, two = (normal(seeds, shares, images=20, rng=rng) for _ in range(2))
    below = crossed_estimate(own + one)
    for truth in (0.0, 1.0):
        above = crossed_estimate(truth * own + 0.5 * one + math.sqrt(0.75) * two)
        found = Ratio(above, below).interval()
        clear = below.interval().low > 0
        covered = (found.low <= truth) & (truth <= found.high)
        assert 0.93 < covered[clear].mean() < 0.99
        assert np.isfinite(found.high[clear]).all()


def simulated_overlaps(
    seeds: int, own: float, truth: float, shares: tuple[float, float, float], draws: int
) -> tuple[np.ndarray, np.ndarray]:
    """Which of many pairs' scores are given, and which of the given hold the truth.

    Own gains are `own` standard errors of a gain; the standard model doesn't vary.
    """
    rng = np.random.default_rng(seeds)
    pairs, images, unit = 4, 20, 0.002
    size = 2 * pairs
    gain = np.kron(np.eye(pairs), np.array([[1, truth], [truth, 1]])) * own
    first, second = np.arange(0, size, 2), np.arange(1, size, 2)
    given, held = [], []
    for _ in range(draws // pairs):
        noise = normal(seeds, shares, draws=size * size, images=images, rng=rng)
        correct = np.full((seeds, 1 + size, 1 + size, images), 0.5)
        shown = gain[..., None, None] + noise.reshape(size, size, seeds, images)
        correct[:, 1:, 1:] += unit * np.moveaxis(shown, 2, 0)
        found = overlap.overlap_intervals(np.clip(correct, 0, 1), "raw").overlap
        low, high = found.low[first, second], found.high[first, second]
        given.append(np.isfinite(low))
        held.append((low <= truth) & (truth <= high))
    return np.concatenate(given), np.concatenate(held)


@pytest.mark.parametrize("truth", [0.5, 1.0])
@pytest.mark.parametrize("seeds", [3, 5])
def test_coverage_of_overlaps_with_small_own_gains(seeds: int, truth: float) -> None:
    given, held = simulated_overlaps(seeds, 5, truth, (1, 1, 1), 2500)
    assert 0.93 < held[given].mean() < 0.995


def test_coverage_of_effective_numbers_where_most_pairs_do_not_overlap() -> None:
    """Three groups of four with overlaps 0.8 within and 0 between, where noise is clipped."""
    rng = np.random.default_rng(16)
    seeds, size, images, draws = 5, 12, 20, 150
    true = np.kron(np.eye(3), np.full((4, 4), 0.8)) + 0.2 * np.eye(size)
    truth = selection.effective_number(true)
    covered = naive = 0
    for _ in range(draws):
        noise = normal(seeds, (1, 1, 1), draws=size * size, images=images, rng=rng)
        shown = 8 * true[..., None, None] + noise.reshape(size, size, seeds, images)
        correct = np.full((seeds, 1 + size, 1 + size, images), 0.5)
        correct[:, 1:, 1:] += 0.002 * np.moveaxis(shown, 2, 0)
        found = overlap.clipped_interval(selection.effective_number, correct, "raw")
        assert found.low < found.estimate < found.high
        covered += found.low <= truth <= found.high
        naive += 2 * found.estimate - found.low >= truth
    assert covered / draws > 0.93
    assert naive / draws < 0.8


def test_coverage_of_mce() -> None:
    rng = np.random.default_rng(9)
    seeds, images, held = 3, 200, 0
    base = np.array([[0.0, 0.5], [0.6, 1.0]])
    spread = math.sqrt(1.2**2 + 0.2**2)
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    error = 1 - (special.expit(base[..., None] + spread * nodes) @ weights) / weights.sum()
    truth = 100 * (error[1] / error[0]).mean()
    for _ in range(2500):
        logits = base[..., None] + 1.2 * rng.standard_normal(images)
        logits = logits + 0.2 * rng.standard_normal((seeds, 2, 2, 1))
        found = mce_estimates(rng.random(logits.shape) < special.expit(logits))[1].interval()
        held += found.low <= truth <= found.high
    assert 0.93 < held / 2500 < 0.99


def test_coverage_where_classes_take_turns() -> None:
    """Neighbours ten images apart are of one class, and classes differ much."""
    rng = np.random.default_rng(11)
    seeds, images, classes, draws, held = 3, 500, 10, 1000, 0
    base = rng.normal(0, 1.5, (2, 2, classes))
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    accuracy = (special.expit(base[..., None] + 0.2 * nodes) @ weights).mean(-1) / weights.sum()
    truth = accuracy[1, 1] / accuracy[0, 0]

    def ratio(found: np.ndarray) -> np.ndarray:
        return found[..., 1, 1] / found[..., 0, 0]

    chances = np.tile(base, images // classes)
    for _ in range(draws):
        logits = chances + 0.2 * rng.standard_normal((seeds, 2, 2, 1))
        found = jackknife(ratio, rng.random(logits.shape) < special.expit(logits)).interval()
        held += found.low <= truth <= found.high
    assert 0.93 < held / draws < 0.99


def test_the_jackknife_takes_little_memory() -> None:
    correct = np.ones((3, 20, 20, 10_000), dtype=bool)  # 12 MB; as float64 96
    tracemalloc.start()
    jackknife(lambda accuracy: accuracy, correct)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20e6


def test_the_largest_of_fifteen_equal_truths_is_covered() -> None:
    """Overlaps of 0.48 with a standard error of 0.023: an interval of the largest alone fails."""
    rng = np.random.default_rng(10)
    values = normal(5, (1, 2, 1), draws=1500 * 15, images=20, rng=rng)
    estimate = crossed_estimate((0.48 + 0.023 * values).reshape(1500, 15, 5, 20))
    at_once, alone = estimate.interval(family=15), estimate.interval()
    covered, naive = 0, 0
    for row in range(1500):
        part = Interval(
            at_once.estimate[row], at_once.low[row], at_once.high[row], 5, at_once.images
        )
        found = largest(part)
        covered += found.low <= 0.48 <= found.high
        best = part.estimate.argmax()
        naive += alone.low[row, best] <= 0.48
    assert covered / 1500 > 0.95
    assert naive / 1500 < 0.8


def test_superiority_of_the_largest_agrees_with_its_interval_and_keeps_its_size() -> None:
    rng = np.random.default_rng(17)
    false = 0
    for _ in range(300):
        noise = normal(5, (1, 2, 1), draws=6, images=20, rng=rng)
        estimates = crossed_estimate(noise)
        found = superiority_of_largest(estimates)
        interval = largest(estimates.interval(family=6))
        assert (found.low, found.high) == (interval.low, interval.high)
        assert (found.p < 0.05) == (interval.low > 0 or interval.high < 0)
        false += found.p < 0.05
        assert superiority_of_largest(estimates, threshold=-99).verdict() == "supported"
        assert superiority_of_largest(estimates, threshold=99).verdict() == "contradicted"
    assert false / 300 < 0.05
    cells = np.stack([np.full((5, 20), np.nan), 3 + noise[0]])
    undefined = Estimate(cells.mean((-2, -1)), cells, 20)
    alone = superiority(undefined[1])
    assert alone.holds
    assert superiority_of_largest(undefined).p == pytest.approx(min(1, 2 * alone.p))


def test_the_largest_leaves_out_what_is_undefined() -> None:
    ends = np.array([0.2, np.nan, 0.1])
    found = largest(Interval(ends, ends - 0.1, np.array([0.3, np.nan, 0.6]), 3, 100))
    assert (found.estimate, found.low, found.high) == (0.2, 0.1, 0.6)
    with pytest.raises(ValueError, match="no largest"):
        largest(Interval(*[np.array([np.nan])] * 3, 3, 100))


# --- Tests of hypotheses --------------------------------------------------------------------------


def test_p_values_are_those_of_scipy_and_statsmodels_where_these_apply() -> None:
    """Seeds that agree leave the paired t test of the images."""
    rng = np.random.default_rng(11)
    first, second = rng.random((2, 40))
    second[:20] = first[:20]
    estimate = crossed_estimate(np.repeat((first - second)[None], 3, axis=0))
    assert superiority(estimate).p == pytest.approx(stats.ttest_rel(first, second).pvalue, rel=1e-6)
    one_sided = stats.ttest_1samp(first - second, -0.1, alternative="greater").pvalue
    assert noninferiority(estimate, margin=0.1).p == pytest.approx(2 * one_sided, rel=1e-6)
    expected = ttost_paired(first, second, -0.2, 0.2)[0]
    assert equivalence(estimate, margin=0.2).p == pytest.approx(expected, rel=1e-6)
    seeds = crossed_estimate(np.repeat(np.array([[0.01], [0.02], [0.06]]), 9, axis=1))
    expected = stats.ttest_1samp([0.01, 0.02, 0.06], 0).pvalue
    assert superiority(seeds).p == pytest.approx(expected, rel=1e-6)


def test_one_seed_agrees_with_mcnemar_about_these_models() -> None:
    rng = np.random.default_rng(12)
    first, second = rng.random((2, 3000)) < np.array([[0.72], [0.7]])
    table = [[(a & b).sum() for b in (second, ~second)] for a in (first, ~first)]
    found = superiority(crossed_estimate(first[None].astype(float) - second))
    assert found.p == pytest.approx(mcnemar(table, exact=False, correction=False).pvalue, rel=0.02)
    assert found.verdict() == ONE_SEED


@pytest.mark.parametrize("shares", [(1, 4, 1), (4, 1, 0)])
def test_p_values_and_intervals_say_the_same(shares: tuple[float, float, float]) -> None:
    estimate = crossed_estimate(1.5 + normal(3, shares, draws=300))
    interval = estimate.interval()
    outcome = superiority(estimate)
    supported, contradicted = (outcome.verdict() == word for word in ("supported", "contradicted"))
    np.testing.assert_array_equal(supported, interval.low > 0)
    np.testing.assert_array_equal(contradicted, interval.high < 0)
    narrow = estimate.interval(confidence=0.9)
    alike = equivalence(estimate, margin=6).verdict() == "supported"
    np.testing.assert_array_equal(alike, (narrow.low > -6) & (narrow.high < 6))
    np.testing.assert_allclose(estimate.p_above(0.3) + estimate.p_below(0.3), 1)


def test_p_values_of_ratios_agree_with_their_intervals() -> None:
    rng = np.random.default_rng(13)
    parts = [crossed_estimate(5 + normal(5, (1, 1, 1), draws=200, rng=rng)) for _ in range(4)]
    first, second = Ratio(*parts[:2]), Ratio(*parts[2:])
    for found in (first, MeanOfRatios(first, second)):
        interval = found.interval()
        for threshold in (0.5, 1.5):
            verdict = superiority(found, threshold=threshold).verdict()
            np.testing.assert_array_equal(verdict == "supported", interval.low > threshold)
            np.testing.assert_array_equal(verdict == "contradicted", interval.high < threshold)
        assert 0 < np.isinf(interval.high).sum() < 100
        assert (superiority(found).p[np.isinf(interval.high)] > 0.05).all()


CASES: list[tuple[Callable, float, float, float]] = [
    # test of the margin, its size at most, and the margin where its power is looked at
    (lambda estimate, margin: superiority(estimate), 0.05, 0.0, 0.0),
    (lambda estimate, margin: noninferiority(estimate, margin=margin), 0.025, 3.0, 6.0),
    (lambda estimate, margin: equivalence(estimate, margin=margin), 0.05, 3.0, 6.0),
]


@pytest.mark.parametrize("case", CASES, ids=["superiority", "non-inferiority", "equivalence"])
@pytest.mark.parametrize("seeds", [3, 5])
def test_size_and_power(seeds: int, case: tuple[Callable, float, float, float]) -> None:
    """In standard errors: truth on the margin (size), then 6 of them on the claim's side."""
    test, size, margin, wide = case
    noise = normal(seeds, (1, 2, 1), draws=2500, images=20)
    verdict = test(crossed_estimate(noise - margin), margin or None).verdict()
    false = verdict != "undecided" if margin == 0 else verdict == "supported"
    assert 0.002 < false.mean() < size + 0.005
    truth = 0.0 if wide else 6.0
    verdict = test(crossed_estimate(noise + truth), wide or None).verdict()
    assert (verdict == "supported").mean() > {3: 0.6, 5: 0.9}[seeds]
    assert (verdict == "contradicted").mean() < 0.001


def test_noise_is_no_evidence_of_equivalence() -> None:
    """Most such differences don't differ clearly from 0; none is shown to be small."""
    estimate = crossed_estimate(normal(3, (1, 1, 1), draws=500))
    assert (superiority(estimate).verdict() == "undecided").mean() > 0.9
    assert (equivalence(estimate, margin=1).verdict() == "supported").mean() < 0.05
    far = crossed_estimate(20 + normal(10, (1, 1, 1), draws=100))
    assert (equivalence(far, margin=1).verdict() == "contradicted").mean() > 0.95


def test_the_gain_of_the_issue_is_undecided_once_seeds_count() -> None:
    """Differences -0.004, 0.006 and 0.012 of three seeds on 2,000 images, margin one point."""
    rng = np.random.default_rng(14)
    values = np.zeros((3, 2000))
    for row, difference in zip(values, (-0.004, 0.006, 0.012), strict=True):
        right = int(100 + 2000 * difference)
        row[rng.permutation(2000)[: right + 100]] = [1] * right + [-1] * 100
    np.testing.assert_allclose(values.mean(1), [-0.004, 0.006, 0.012])
    images_only = noninferiority(crossed_estimate(values.mean(0, keepdims=True)), margin=0.01)
    assert images_only.low > -0.01
    assert noninferiority(crossed_estimate(values), margin=0.01).verdict() == "undecided"


def hypothesis(name: str, value: float, p: float, seeds: int = 3) -> Hypothesis:
    number = np.float64(value)
    outcome = hypotheses.Outcome(
        "superiority", number, number, number, 0.0, np.inf, np.float64(p), seeds, 100
    )
    return Hypothesis("paper", name, "gain", outcome)


def test_holm_by_hand() -> None:
    """p 0.01, 0.03, 0.04 of three: 3 x 0.01, 2 x 0.03, then no less than the one before."""
    table = hypotheses_table(
        [hypothesis("a", 1, 0.04), hypothesis("b", -1, 0.01), hypothesis("c", 1, 0.03)]
    )
    assert table["p_holm"].tolist() == pytest.approx([0.06, 0.03, 0.06])
    assert table["verdict"].tolist() == ["undecided", "contradicted", "undecided"]
    assert table["p"].tolist() == [0.04, 0.01, 0.03]
    assert hypotheses_table([hypothesis("a", 1, 0.04)])["verdict"].tolist() == ["supported"]
    undefined = hypotheses_table([hypothesis("a", 1, 0.02), hypothesis("b", np.nan, np.nan)])
    assert undefined["p_holm"].tolist() == pytest.approx([0.04, 1])
    assert undefined["verdict"].tolist() == ["supported", "undecided"]


def test_where_each_claim_holds() -> None:
    estimate = crossed_estimate(normal(3, (3, 50, 1), draws=1)[0])
    outcomes = {
        "superiority": (superiority(estimate), 0.0, np.inf),
        "superiority, above 0.5": (superiority(estimate, threshold=0.5), 0.5, np.inf),
        "non-inferiority, margin 0.01": (noninferiority(estimate, margin=0.01), -0.01, np.inf),
        "equivalence, margin 0.1": (equivalence(estimate, margin=0.1), -0.1, 0.1),
    }
    for words, (outcome, above, below) in outcomes.items():
        assert (outcome.above, outcome.below) == (above, below)
        assert outcome.holds == (above < estimate.value < below)
        assert hypotheses.in_words(outcome.test, outcome.above) == words


def test_one_seed_gets_no_verdict() -> None:
    table = hypotheses_table([hypothesis("a", 1, 1e-9, seeds=1)])
    assert table["verdict"].tolist() == [ONE_SEED]
    assert table["seeds"].tolist() == [1]


# --- Refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros(5), r"\(\.\.\., seeds, images\)"),
        (np.zeros((0, 5)), "at least one seed"),
        (np.zeros((3, 1)), "two images"),
        (np.array([[0.0, np.nan]]), "finite"),
    ],
)
def test_values_that_are_not_crossed_are_refused(values: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        crossed_interval(values)


@pytest.mark.parametrize(
    ("correct", "message"),
    [
        (np.zeros((2, 3, 3, 1)), "two images"),
        (np.zeros((0, 3, 3, 9)), "at least one seed"),
        (np.full((2, 3, 3, 9), 100.0), r"lie in \[0, 1\]"),
        (np.full((2, 3, 3, 9), np.nan), "without NaN"),
    ],
)
def test_correctness_out_of_range_is_refused(correct: np.ndarray, message: str) -> None:
    for use in (crossed.accuracy_gains, overlap.overlap_intervals):
        with pytest.raises(ValueError, match=message):
            use(correct)


def test_bad_options_are_refused() -> None:
    estimate = crossed_estimate(normal(3, (1, 1, 1), draws=1)[0])
    for confidence in (0, 1, 95):
        with pytest.raises(ValueError, match="confidence"):
            estimate.interval(confidence=confidence)
    with pytest.raises(ValueError, match="family"):
        estimate.interval(family=0)
    for test in (noninferiority, equivalence):
        for margin in (0, -0.01):
            with pytest.raises(ValueError, match="margin"):
                test(estimate, margin=margin)
    with pytest.raises(ValueError, match="is empty"):
        hypotheses_table([])
    with pytest.raises(ValueError, match="repeats"):
        hypotheses_table([hypothesis("a", 1, 0.1)] * 2)
    several = superiority(Estimate(np.zeros(2), np.zeros((2, 3, 4)), 4))
    with pytest.raises(ValueError, match="2 estimates"):
        hypotheses_table([Hypothesis("paper", "a", "gain", several)])
    with pytest.raises(UnknownNameError, match="'ratio'"):
        overlap.overlap_intervals(np.zeros((2, 3, 3, 9)), "ratios")
    with pytest.raises(ValueError, match="a model for each perturbation"):
        overlap.overlap_intervals(np.zeros((3, 3, 9)))


def test_no_estimates_have_no_intervals() -> None:
    correct = np.random.default_rng(0).random((3, 3, 3, 100)) < 0.5
    for nothing in (
        crossed.accuracy_gains(correct)[[], []],
        overlap.signed_overlaps(correct)[0, []],
    ):
        found = nothing.interval()
        assert found.estimate.shape == found.low.shape == found.high.shape == (0,)
        assert nothing.p_above(0).shape == (0,)
