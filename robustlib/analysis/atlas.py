"""The overlap of many corruptions, from per-image results to tables."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import pandas as pd

from robustlib.analysis.overlap import OverlapIntervals, directed, overlap_intervals, symmetric
from robustlib.evaluation import Evaluation

STANDARD = "standard"


@dataclass(frozen=True)
class Atlas:
    """Corruptions that models were trained with and tested on, and what they got right.

    Attributes:
        names: the corruptions (or other perturbations), K of them.
        correct: (seeds, 1 + K, 1 + K, n): models, the standard one first, by perturbations, clean
            first, by images, averaged over severities.
        scores: with intervals.
    """

    names: list[str]
    correct: np.ndarray
    scores: OverlapIntervals

    @property
    def scored(self) -> list[str]:
        """The corruptions whose own gain is clearly positive."""
        return [n for n, low in zip(self.names, self.scores.own_gains.low, strict=True) if low > 0]

    def overlap(self) -> pd.DataFrame:
        """The overlapping scores of the `scored`, symmetric, 1 on the diagonal."""
        frame = pd.DataFrame(self.scores.overlap.estimate, index=self.names, columns=self.names)
        return frame.loc[self.scored, self.scored]

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

    def draws(self, *, resamples: int, seed: int, normalise: str = "ratio") -> np.ndarray:
        """The overlaps of the `scored`, had other seeds and images of the kind been drawn.

        Both are drawn anew with replacement (Owen 2007). For what has no interval of its own, such
        as groups; with few seeds the spread is too narrow.

        Returns float (resamples, scored, scored), without NaN: where a draw leaves a corruption
        without own gain, its overlaps are 0.
        """
        rng = np.random.default_rng(seed)
        chosen = [0, *(1 + self.names.index(name) for name in self.scored)]
        correct = self.correct[:, chosen][:, :, chosen]
        seeds, images = len(correct), correct.shape[-1]
        found = np.empty((resamples, len(chosen) - 1, len(chosen) - 1))
        for draw in range(resamples):
            counts = rng.multinomial(images, np.full(images, 1 / images)) / images
            of_seeds = rng.multinomial(seeds, np.full(seeds, 1 / seeds)) / seeds
            accuracy = np.tensordot(of_seeds, correct @ counts, axes=1)
            found[draw] = symmetric(directed(accuracy, normalise, 0.0))
        found = np.nan_to_num(found)
        found[:, np.eye(len(chosen) - 1, dtype=bool)] = 1
        return found


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
    return Atlas(names, correct, overlap_intervals(correct, normalise, family=family))
