"""Groups of corruptions, by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from robustlib.analysis import clusters

NAMES = ["a", "x", "b", "y", "c"]


def overlap() -> pd.DataFrame:
    """a, b, c overlap by .9, .8 and .6, x and y by .7; all else by .1."""
    scores = pd.DataFrame(0.1, index=NAMES, columns=NAMES)
    for first, second, score in (
        ("a", "b", 0.9),
        ("a", "c", 0.8),
        ("b", "c", 0.6),
        ("x", "y", 0.7),
    ):
        scores.loc[first, second] = scores.loc[second, first] = score
    for name in NAMES:
        scores.loc[name, name] = 1.0
    return scores


def test_heights_of_the_tree_by_hand() -> None:
    """a-b join at .1, x-y at .3, c joins at the mean of .2 and .4, all at .9."""
    np.testing.assert_allclose(clusters.hierarchy(overlap())[:, 2], [0.1, 0.3, 0.3, 0.9])


def test_neighbours_belong_together() -> None:
    order = clusters.leaves(overlap())
    assert sorted(order) == sorted(NAMES)
    assert "".join(order) in {
        "xycab",
        "yxcab",
        "xybac",
        "yxbac",
        "cabxy",
        "cabyx",
        "bacxy",
        "bacyx",
    }


@pytest.mark.parametrize(
    ("least", "expected"),
    [(0.75, "ab|c|x|y"), (0.69, "abc|xy"), (0.05, "abcxy"), (0.95, "a|b|c|x|y")],
)
def test_groups_at_a_mean_overlap(least: float, expected: str) -> None:
    found = clusters.groups(overlap(), least=least)
    as_text = "|".join(sorted("".join(sorted(part.index)) for _, part in found.groupby(found)))
    assert as_text == expected
    assert sorted(found.unique()) == list(range(1, len(expected.split("|")) + 1))
    assert found[clusters.leaves(overlap())[0]] == 1


def test_scores_above_one_and_order_do_not_matter() -> None:
    scores = overlap()
    scores.loc["a", "b"] = scores.loc["b", "a"] = 3.0
    turned = scores.loc[NAMES[::-1], NAMES[::-1]]
    first, second = clusters.groups(scores), clusters.groups(turned)
    assert {frozenset(p.index) for _, p in first.groupby(first)} == {
        frozenset(p.index) for _, p in second.groupby(second)
    }


def test_stability_by_hand() -> None:
    """One draw as it was, one in which c has left its group: Jaccard 1 and 2/3 for the three."""
    found = clusters.groups(overlap(), least=0.69)
    other = overlap()
    other.loc["c", ["a", "b"]] = other.loc[["a", "b"], "c"] = 0.1
    stable = clusters.stability(found, np.stack([overlap(), other]), least=0.69)
    assert stable[found["a"]] == pytest.approx((1 + 2 / 3) / 2)
    assert stable[found["x"]] == 1


def test_bad_input_is_refused() -> None:
    scores = overlap()
    with pytest.raises(ValueError, match="same names"):
        clusters.hierarchy(scores[NAMES[::-1]])
    with pytest.raises(ValueError, match="number of corruptions"):
        clusters.hierarchy(scores.iloc[:1, :1])
    lacking = scores.copy()
    lacking.loc["c", :] = lacking.loc[:, "c"] = np.nan
    with pytest.raises(ValueError, match=r"without a score \(c\)"):
        clusters.groups(lacking)
    uneven = scores.copy()
    uneven.loc["a", "b"] = 0.5
    with pytest.raises(ValueError, match="symmetric"):
        clusters.groups(uneven)
    with pytest.raises(ValueError, match="draws must be"):
        clusters.stability(clusters.groups(scores), np.ones((0, 5, 5)))
