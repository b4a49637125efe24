"""Tests of hypotheses about methods, each called by its name, and verdicts with Holm's correction.

A verdict speaks of the method, so training seeds must have varied: two or more are needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from robustlib.analysis.crossed import Uncertain, largest
from robustlib.core.checks import check_nonempty, check_number

LEVEL = 0.05  # of each test, and of each family of them
ONE_SEED = "these models only"


@dataclass(frozen=True)
class Outcome:
    """What a test found.

    Attributes:
        test: "superiority", "superiority of the largest", "non-inferiority" or "equivalence".
        value: the estimate, or an array of them; low, high and p likewise.
        low: lower end of its 95 % interval.
        high: upper end.
        above: what the truth must exceed for the claim to hold: a threshold, or minus the margin.
        below: what it must stay below: the margin of equivalence, else infinite.
        p: p value, of the hypothesis that the truth lies on the other side than the estimate.
        seeds: training seeds.
        images: test images.
    """

    test: str
    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    above: float
    below: float
    p: np.ndarray
    seeds: int
    images: int

    @property
    def holds(self) -> np.ndarray:
        """Whether the estimate lies on the side of the claim."""
        return np.asarray((self.value > self.above) & (self.value < self.below))

    def verdict(self, p: np.ndarray | float | None = None) -> np.ndarray:
        """ "supported", "contradicted" or "undecided" at the 5 % level; `ONE_SEED` with one seed.

        p: adjusted for other tests of the family; default this test's own.
        """
        clear = (self.p if p is None else np.asarray(p)) < LEVEL
        found = np.where(clear, np.where(self.holds, "supported", "contradicted"), "undecided")
        return found if self.seeds > 1 else np.full_like(found, ONE_SEED, dtype=object)


def superiority(estimate: Uncertain, *, threshold: float = 0.0) -> Outcome:
    """Does the truth exceed the threshold? Two-sided, so that the contrary can be found as well.

    Supported if the 95 % interval lies above the threshold, contradicted if it lies below.

    Args:
        estimate: such as `accuracy_gains(correct)[0, 0]`.
        threshold: in the units of the estimate.
    """
    return _beyond("superiority", estimate, threshold)


def noninferiority(estimate: Uncertain, *, margin: float) -> Outcome:
    """Does the truth exceed -margin: is at most the margin lost? Two-sided, as `superiority`.

    Supported if the 95 % interval lies above -margin (a one-sided test at 2.5 %, as is usual),
    contradicted if it lies below.

    Args:
        estimate: a gain, negative for a loss.
        margin: the largest loss that doesn't matter, positive, chosen before the run.

    Raises:
        ValueError: a margin that isn't positive.
    """
    margin = check_number(margin, "margin", low=0, above=True)
    return _beyond("non-inferiority", estimate, -margin)


def equivalence(estimate: Uncertain, *, margin: float) -> Outcome:
    """Does the truth lie between -margin and margin? Two one-sided tests (Schuirmann 1987).

    Supported if the 90 % interval lies within the margins; contradicted if the 95 % interval lies
    beyond one of them. That zero can't be excluded is no evidence of equivalence.

    Args:
        estimate: a difference.
        margin: the largest difference that doesn't matter, positive, chosen before the run.

    Raises:
        ValueError: a margin that isn't positive.
    """
    margin = check_number(margin, "margin", low=0, above=True)
    within = np.maximum(estimate.p_above(-margin), estimate.p_below(margin))
    beyond = np.minimum(estimate.p_above(margin), estimate.p_below(-margin))
    p = np.where(np.abs(estimate.value) < margin, within, np.minimum(1, 2 * beyond))
    return _outcome("equivalence", estimate, -margin, margin, p)


def superiority_of_largest(estimates: Uncertain, *, threshold: float = 0.0) -> Outcome:
    """Does the largest of several truths exceed the threshold? Two-sided, as `superiority`.

    The largest of many estimates is too large on average. So the interval is that of the largest
    truth, from intervals that all hold at once (`crossed.largest`), and p is the level at which it
    meets the threshold.

    Args:
        estimates: one or more, such as `overlap.signed_overlaps(correct)[pairs]`; NaN are left out.
        threshold: in the units of the estimates.

    Raises:
        ValueError: every estimate is undefined.
    """
    threshold = check_number(threshold, "threshold")
    family = 2 * estimates.value.size
    found = largest(estimates.interval(family=estimates.value.size))
    if found.estimate > threshold:
        p = np.nanmin(estimates.p_above(threshold))
    else:
        p = np.nanmax(estimates.p_below(threshold))
    bounds = (found.estimate, found.low, found.high, threshold, np.inf)
    p = np.minimum(1, family * p)
    return Outcome("superiority of the largest", *bounds, p, found.seeds, found.images)


@dataclass(frozen=True)
class Hypothesis:
    """A published claim and the outcome of its test.

    Attributes:
        paper: short name of the paper.
        statement: the claim in words.
        measure: what was measured, in words.
        outcome: of the test, for a single estimate.
    """

    paper: str
    statement: str
    measure: str
    outcome: Outcome


def hypotheses_table(hypotheses: Sequence[Hypothesis]) -> pd.DataFrame:
    """One row for each hypothesis of a family, with Holm's correction over all of them.

    hypotheses: one or more, with outcomes of single estimates.

    Returns the columns paper, statement, measure, test, value, low, high (95 %, for itself),
    above, below (between which the claim holds), p, p_holm (Holm 1979; an undefined p counts as
    1), seeds, n (images) and verdict, by p_holm at the 5 % level.

    Raises:
        ValueError: no hypothesis, one named twice, or an outcome of several estimates.
    """
    check_nonempty([(h.paper, h.statement, h.measure) for h in hypotheses], "the family")
    for hypothesis in hypotheses:
        if np.ndim(hypothesis.outcome.value):
            raise ValueError(
                f"{hypothesis.statement!r} has outcomes of {np.size(hypothesis.outcome.value)} "
                "estimates; make one hypothesis of each."
            )
    # late: it takes a second
    from statsmodels.stats.multitest import multipletests  # type: ignore[import-untyped]

    outcomes = [hypothesis.outcome for hypothesis in hypotheses]
    p = np.array([float(outcome.p) for outcome in outcomes])
    adjusted = multipletests(np.where(np.isnan(p), 1, p), alpha=LEVEL, method="holm")[1]
    return pd.DataFrame(
        [
            {
                "paper": hypothesis.paper,
                "statement": hypothesis.statement,
                "measure": hypothesis.measure,
                "test": outcome.test,
                "value": float(outcome.value),
                "low": float(outcome.low),
                "high": float(outcome.high),
                "above": outcome.above,
                "below": outcome.below,
                "p": float(outcome.p),
                "p_holm": p_holm,
                "seeds": outcome.seeds,
                "n": outcome.images,
                "verdict": str(outcome.verdict(p_holm)),
            }
            for hypothesis, outcome, p_holm in zip(hypotheses, outcomes, adjusted, strict=True)
        ]
    )


def in_words(test: str, above: float) -> str:
    """A test with what was claimed, as in a table: "equivalence, margin 0.1"."""
    if test.startswith("superiority"):
        return f"{test}, above {above:g}" if above else test
    return f"{test}, margin {-above:g}"


def _beyond(test: str, estimate: Uncertain, threshold: float) -> Outcome:
    threshold = check_number(threshold, "threshold")
    smaller = np.minimum(estimate.p_above(threshold), estimate.p_below(threshold))
    p = np.minimum(1, 2 * smaller)
    return _outcome(test, estimate, threshold, np.inf, p)


def _outcome(test: str, estimate: Uncertain, above: float, below: float, p: np.ndarray) -> Outcome:
    interval = estimate.interval()
    ends = (interval.estimate, interval.low, interval.high)
    return Outcome(test, *ends, above, below, p, estimate.seeds, estimate.images)
