"""The overlap of many corruptions, from per-image results to tables."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from robustlib.analysis.hypotheses import Outcome, superiority, superiority_of_largest
from robustlib.analysis.overlap import (
    OverlapIntervals,
    clipped_interval,
    directed,
    from_clear_overlaps,
    is_clear,
    overlap_intervals,
    signed_overlaps,
    symmetric,
)
from robustlib.analysis.selection import effective_number
from robustlib.core.checks import check_nonempty
from robustlib.evaluation import Evaluation

STANDARD = "standard"
_TEST = "superiority of the largest"


@dataclass(frozen=True)
class Atlas:
    """Corruptions that models were trained with and tested on, and what they got right.

    Attributes:
        names: the corruptions (or other perturbations), K of them.
        correct: (seeds, 1 + K, 1 + K, n): models, the standard one first, by perturbations, clean
            first, by images, averaged over severities.
        normalise: "ratio" or "raw", see `overlap.overlapping_scores`.
        scores: with intervals.
    """

    names: list[str]
    correct: np.ndarray
    normalise: str
    scores: OverlapIntervals

    @property
    def scored(self) -> list[str]:
        """The corruptions with a clear own gain (`overlap.is_clear`)."""
        clear = is_clear(self.scores.own_gains)
        return [name for name, kept in zip(self.names, clear, strict=True) if kept]

    def overlap(self) -> pd.DataFrame:
        """The overlapping scores of the `scored`, symmetric, 1 on the diagonal."""
        frame = pd.DataFrame(self.scores.overlap.estimate, index=self.names, columns=self.names)
        return frame.loc[self.scored, self.scored]

    def among(self, corruptions: Sequence[str]) -> pd.DataFrame:
        """`overlap` of some corruptions; 0 with any other for those without a score.

        To count such a one as overlapping with nothing is this project's choice.
        """
        names = list(corruptions)
        frame = self.overlap().reindex(index=names, columns=names).fillna(0.0)
        return frame.mask(np.eye(len(names), dtype=bool), 1.0)

    def own_gains(self) -> pd.DataFrame:
        """One row a corruption: corruption, own_gain, low, high."""
        gains = self.scores.own_gains
        return pd.DataFrame(
            {
                "corruption": self.names,
                "own_gain": gains.estimate,
                "low": gains.low,
                "high": gains.high,
            }
        )

    def pairs(self) -> pd.DataFrame:
        """One row a pair, the largest overlap first, NaN last.

        Columns: first, second, pair (both in words), overlap, low, high, first_to_second and
        second_to_first (the directed halves).
        """
        score, halves = self.scores.overlap, self.scores.directed.estimate
        rows = [
            {
                "first": self.names[i],
                "second": self.names[j],
                "pair": f"{self.names[i]} - {self.names[j]}",
                "overlap": score.estimate[i, j],
                "low": score.low[i, j],
                "high": score.high[i, j],
                "first_to_second": halves[i, j],
                "second_to_first": halves[j, i],
            }
            for i, j in itertools.combinations(range(len(self.names)), 2)
        ]
        return pd.DataFrame(rows).sort_values("overlap", ascending=False, ignore_index=True)

    def effective_number(self, corruptions: Sequence[str], order: float = 1) -> dict[str, float]:
        """`selection.effective_number` of those of some corruptions that are `scored`.

        Returns effective_number, low and high, which cover seeds and images, and corruptions, how
        many of those given have a score.

        Raises:
            ValueError: none of them has.
        """
        chosen = [name for name in self.scored if name in corruptions]
        check_nonempty(chosen, "the list of corruptions with a score")

        found = clipped_interval(
            lambda overlaps: np.asarray(effective_number(overlaps, order)),
            self._part(chosen),
            self.normalise,
        )
        return {
            "effective_number": float(found.estimate),
            "low": max(1.0, float(found.low)),
            "high": min(float(len(chosen)), float(found.high)),
            "corruptions": len(chosen),
        }

    def redundancy(self, corruptions: Sequence[str]) -> Outcome:
        """Are some corruptions worth fewer than half as many without overlap?

        Measured is 1 - effective number (order 1) / number, of those that are `scored`, from the
        clear overlaps only (`overlap.from_clear_overlaps`), so that noise doesn't speak for it. A
        single number, it needs no allowance for many pairs, as `largest` does.

        Returns the outcome of superiority over one half (this project's threshold); NaN, and so
        undecided, if no two of them have a score.
        """
        chosen = [name for name in self.scored if name in corruptions]
        if len(chosen) < 2:
            return self._unknown("superiority", 0.5)

        def redundant(overlaps: np.ndarray) -> np.ndarray:
            return 1 - np.asarray(effective_number(overlaps)) / len(chosen)

        found = from_clear_overlaps(redundant, self._part(chosen), self.normalise)
        return superiority(found, threshold=0.5)

    def largest(self, corruptions: Sequence[str], *, threshold: float) -> Outcome:
        """Does the largest true overlap of two of some corruptions exceed a threshold?

        Tested by `hypotheses.superiority_of_largest`, which allows for having picked it.

        Args:
            corruptions: those without a score don't count.
            threshold: an overlap.

        Returns what was found, NaN (and so undecided) if no two of them have a score.
        """
        chosen = [name for name in self.scored if name in corruptions]
        if len(chosen) < 2:
            return self._unknown(_TEST, threshold)
        pairs = np.triu_indices(len(chosen), 1)
        signed = signed_overlaps(self._part(chosen), self.normalise)[pairs]
        return superiority_of_largest(signed, threshold=threshold)

    def draws(self, *, resamples: int, seed: int) -> np.ndarray:
        """The overlaps of the `scored`, had other seeds and images of the kind been drawn.

        Both are drawn anew with replacement (Owen 2007). For what has no interval of its own, such
        as groups; with few seeds the spread is too narrow.

        Returns float (resamples, scored, scored), clipped to [0, 1], and 0 where a draw leaves a
        corruption without own gain.
        """
        rng = np.random.default_rng(seed)
        correct = self._part(self.scored)
        seeds, images = len(correct), correct.shape[-1]
        found = []
        for _ in range(resamples):
            counts = rng.multinomial(images, np.full(images, 1 / images)) / images
            of_seeds = rng.multinomial(seeds, np.full(seeds, 1 / seeds)) / seeds
            accuracy = np.tensordot(of_seeds, correct @ counts, axes=1)
            found.append(_clipped(accuracy, self.normalise))
        return np.array(found)

    def _unknown(self, test: str, threshold: float) -> Outcome:
        """The outcome of a test for which nothing has a score."""
        none, seeds, images = np.array(np.nan), len(self.correct), self.correct.shape[-1]
        return Outcome(test, none, none, none, threshold, np.inf, none, seeds, images)

    def _part(self, names: Sequence[str]) -> np.ndarray:
        """`correct` for some of the corruptions."""
        chosen = [0, *(1 + self.names.index(name) for name in names)]
        return self.correct[:, chosen][:, :, chosen]


def _clipped(accuracy: np.ndarray, normalise: str) -> np.ndarray:
    """Overlaps in [0, 1] of (..., 1 + K, 1 + K) accuracies; 0 where there is no own gain."""
    scores = np.nan_to_num(symmetric(directed(accuracy, normalise, 0.0))).clip(0, 1)
    scores[..., np.eye(scores.shape[-1], dtype=bool)] = 1
    return scores


def atlas(evaluation: Evaluation, normalise: str = "ratio", *, family: int = 1) -> Atlas:
    """The atlas of all perturbations of an evaluation that a recipe of the same name trains with.

    Args:
        evaluation: of the recipe "standard" and one for each corruption, of that name.
        normalise: as in `overlap.overlapping_scores`.
        family: as in `overlap.overlap_intervals`.

    Raises:
        ValueError: no "standard", no recipe with the name of a perturbation, a pair that wasn't
            evaluated, or recipes with different seeds.
    """
    recipes = set(evaluation.table["recipe"])
    names = [str(p) for p in evaluation.table["perturbation"].unique() if p in recipes]
    if STANDARD not in recipes or not names:
        raise ValueError(
            'an atlas needs a recipe "standard" and one for each corruption, of its name; found '
            f"the recipes {', '.join(sorted(recipes))}."
        )
    correct = evaluation.per_seed([STANDARD, *names], ["clean", *names])
    return Atlas(names, correct, normalise, overlap_intervals(correct, normalise, family=family))


def rank_correlation(first: pd.DataFrame, second: pd.DataFrame) -> dict[str, float]:
    """Spearman's correlation of two similarities over the pairs of their common names.

    Args:
        first: symmetric, names by names, such as the overlaps of one training seed.
        second: likewise, of other or more names.

    Returns spearman; low and high, a 95 % interval for other corruptions of the kind (jackknife
    over names, since pairs that share one are no independent sample); and names, how many are in
    common. NaN with fewer than four.
    """
    from scipy import stats  # late: it takes the better part of a second

    names = [str(name) for name in first.index if name in second.index]
    if len(names) < 4:
        return {"spearman": np.nan, "low": np.nan, "high": np.nan, "names": len(names)}
    one, other = (frame.loc[names, names].to_numpy(dtype=float) for frame in (first, second))

    def correlation(kept: np.ndarray) -> float:
        pairs = np.triu_indices(len(kept), 1)
        x, y = (matrix[np.ix_(kept, kept)][pairs] for matrix in (one, other))
        return float(stats.spearmanr(x, y).statistic)

    every = np.arange(len(names))
    estimate = correlation(every)
    left_out = np.array([correlation(np.delete(every, place)) for place in every])
    error = np.sqrt((1 - 1 / len(names)) * ((left_out - estimate) ** 2).sum())
    half = float(stats.t.ppf(0.975, len(names) - 1) * error)
    return {
        "spearman": estimate,
        "low": max(-1.0, estimate - half),
        "high": min(1.0, estimate + half),
        "names": len(names),
    }
