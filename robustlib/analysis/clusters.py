"""Groups of corruptions that overlap: hierarchical clustering, and how stable it is."""

from __future__ import annotations

import numpy as np
import pandas as pd

from robustlib.core.checks import check_whole


def hierarchy(overlap: pd.DataFrame) -> np.ndarray:
    """Average linkage of the distances 1 - overlap, overlap clipped to [0, 1].

    Average linkage, as a pair's overlap is uncertain and a group's mean less so, is this project's
    choice. Leaves are ordered so that neighbours overlap most (Bar-Joseph et al. 2001).

    Args:
        overlap: symmetric, corruptions by corruptions, two or more, without NaN.

    Returns the linkage matrix of SciPy, float64 (K - 1, 4), for its `dendrogram`.

    Raises:
        ValueError: another shape, names that differ, or corruptions without a score.
    """
    from scipy.cluster import hierarchy as scipy_hierarchy  # late, with the next, for its seconds
    from scipy.spatial.distance import squareform

    _check(overlap)
    distance = 1 - np.clip(overlap.to_numpy(dtype=float), 0, 1)
    np.fill_diagonal(distance, 0)
    condensed = squareform((distance + distance.T) / 2)
    return scipy_hierarchy.linkage(condensed, method="average", optimal_ordering=True)


def leaves(overlap: pd.DataFrame) -> list[str]:
    """The names in the order of the dendrogram of `hierarchy`."""
    from scipy.cluster.hierarchy import leaves_list

    return [str(overlap.index[i]) for i in leaves_list(hierarchy(overlap))]


def groups(overlap: pd.DataFrame, *, least: float = 0.5) -> pd.Series:
    """The groups within which corruptions overlap by `least` or more on average.

    Args:
        overlap: as in `hierarchy`.
        least: mean overlap at which two groups are joined, 0 to 1 (this project's choice).

    Returns the number of each corruption's group, int, by name; groups are numbered from 1 in
    the order of `leaves`.
    """
    from scipy.cluster.hierarchy import fcluster, leaves_list

    tree = hierarchy(overlap)
    found = fcluster(tree, t=1 - least, criterion="distance")
    numbers: dict[int, int] = {}
    for leaf in leaves_list(tree):
        numbers.setdefault(int(found[leaf]), len(numbers) + 1)
    return pd.Series([numbers[int(g)] for g in found], index=overlap.index, name="group")


def stability(found: pd.Series, draws: np.ndarray, *, least: float = 0.5) -> pd.Series:
    """How well each group comes back when the overlap is drawn anew (Hennig 2007).

    Args:
        found: groups by name, from `groups`.
        draws: float (D, K, K), overlaps of the same corruptions as other seeds and images would
            give them, without NaN.
        least: as in `groups`.

    Returns for each group the mean over the draws of the largest Jaccard index, 0 to 1, between it
    and a group of the draw: 1 if it always comes back whole; above .75 counts as stable there. A
    group of one is among them, and comes back if nothing joins it.

    Raises:
        ValueError: draws of another number of corruptions, or none.
    """
    k = len(found)
    if draws.ndim != 3 or draws.shape[1:] != (k, k) or not len(draws):
        raise ValueError(f"draws must be (draws, {k}, {k}) with one or more, got {draws.shape}.")
    members = {number: (found == number).to_numpy() for number in sorted(found.unique())}
    total = dict.fromkeys(members, 0.0)
    for draw in draws:
        other = groups(pd.DataFrame(draw, index=found.index, columns=found.index), least=least)
        theirs = [(other == number).to_numpy() for number in other.unique()]
        for number, mine in members.items():
            total[number] += max((mine & each).sum() / (mine | each).sum() for each in theirs)
    means = {number: value / len(draws) for number, value in total.items()}
    return pd.Series(means, name="stability").rename_axis("group")


def _check(overlap: pd.DataFrame) -> None:
    names = list(overlap.index)
    check_whole(len(names), "the number of corruptions", low=2)
    if names != list(overlap.columns):
        raise ValueError("overlap must have the same names, in one order, in rows and columns.")
    lacking = overlap.isna().to_numpy()
    if lacking.any():
        without = ", ".join(map(str, overlap.index[lacking.diagonal()])) or "off the diagonal"
        raise ValueError(
            f"overlap has pairs without a score ({without}); "
            "leave out the corruptions whose own gain isn't clear."
        )
    if not np.allclose(overlap, overlap.T):
        raise ValueError("overlap must be symmetric: take the score, not its directed halves.")
