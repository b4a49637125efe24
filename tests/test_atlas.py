"""The overlap of many corruptions, from an evaluation to tables."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest

from robustlib.analysis import overlapping_scores
from robustlib.analysis.atlas import atlas, rank_correlation
from robustlib.analysis.crossed import Interval
from robustlib.analysis.hypotheses import ONE_SEED
from robustlib.analysis.overlap import is_clear
from robustlib.evaluation import COLUMNS, Evaluation
from robustlib.study import results

# Right of ten images; rows are models, columns clean and the perturbations tested on.
RIGHT = {
    "standard": {"clean": 10, "a": 5, "b": 4, "none": 6},
    "a": {"clean": 10, "a": 9, "b": 6, "none": 6},
    "b": {"clean": 10, "a": 6, "b": 8, "none": 6},
    "none": {"clean": 10, "a": 5, "b": 4, "none": 6},
}


def evaluation(copies: int = 40, seeds: int = 3) -> Evaluation:
    rows, correct = [], []
    for recipe, seed in itertools.product([*RIGHT, "mtlat"], range(seeds)):
        for perturbation, right in RIGHT.get(recipe, RIGHT["standard"]).items():
            rows.append(
                {
                    **dict.fromkeys(COLUMNS, ""),
                    "model": f"{recipe}-{seed}",
                    "recipe": recipe,
                    "training_seed": seed,
                    "perturbation": perturbation,
                    "severity": 0 if perturbation == "clean" else 3,
                    "eps": 0.0,
                    "n": 10 * copies,
                }
            )
            images = np.random.default_rng(7).permutation(10 * copies)  # the same for all
            correct.append(images < right * copies)
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    table["accuracy"] = np.mean(correct, axis=1)
    return Evaluation(table, np.array(correct), computed=0)


def test_redundancy_by_hand() -> None:
    """Of two corruptions that overlap by .375, 1 / .6875 = 1.4545 are left: .2727 are redundant."""
    found = atlas(evaluation())
    outcome = found.redundancy(["a", "b", "none"])
    assert float(outcome.value) == pytest.approx(1 - 1 / 0.6875 / 2, abs=1e-6)
    assert float(outcome.low) < float(outcome.value) < float(outcome.high)
    assert str(outcome.verdict()) == "contradicted"
    nothing = found.redundancy(["a", "none"])
    assert np.isnan(nothing.value)
    assert str(nothing.verdict()) == "undecided"


def test_a_gain_that_is_sure_but_tiny_is_no_divisor() -> None:
    own = Interval(np.array([0.005, 0.02, 0.02]), np.array([0.004, 0.01, -0.01]), np.ones(3), 3, 9)
    assert is_clear(own).tolist() == [False, True, False]


def test_tables_by_hand() -> None:
    """Own gains .4 and .4; the halves are 2/4 for a on b and 1/4 for b on a: overlap .375."""
    found = atlas(evaluation())
    assert found.names == ["a", "b", "none"]
    assert found.scored == ["a", "b"]
    np.testing.assert_allclose(found.own_gains()["own_gain"], [0.4, 0.4, 0.0], atol=1e-6)
    first = found.pairs().iloc[0]
    assert first["pair"] == "a - b"
    assert first["overlap"] == pytest.approx(0.375, abs=1e-6)
    assert first["first_to_second"] == pytest.approx(0.5, abs=1e-6)
    assert first["second_to_first"] == pytest.approx(0.25, abs=1e-6)
    assert first["low"] < 0.375 < first["high"]
    assert found.pairs()["overlap"].isna().tolist() == [False, True, True]


def test_it_agrees_with_the_score_of_mean_accuracies() -> None:
    found = atlas(evaluation(), "raw")
    accuracy = pd.DataFrame(RIGHT).T / 10
    expected = overlapping_scores(accuracy, "raw").loc[["a", "b"], ["a", "b"]]
    np.testing.assert_allclose(found.overlap(), expected, atol=1e-6)


def test_what_has_no_score_overlaps_with_nothing() -> None:
    found = atlas(evaluation()).among(["none", "b", "a"])
    np.testing.assert_allclose(found, [[1, 0, 0], [0, 1, 0.375], [0, 0.375, 1]], atol=1e-6)
    assert list(found) == list(found.index) == ["none", "b", "a"]


def test_draws_spread_around_the_score() -> None:
    found = atlas(evaluation(copies=100))
    draws = found.draws(resamples=200, seed=0)
    assert draws.shape == (200, 2, 2)
    assert (draws[:, 0, 0] == 1).all()
    np.testing.assert_array_equal(draws, np.swapaxes(draws, 1, 2))
    assert draws[:, 0, 1].mean() == pytest.approx(0.375, abs=0.01)
    assert 0.005 < draws[:, 0, 1].std() < 0.1
    np.testing.assert_array_equal(draws, found.draws(resamples=200, seed=0))


def test_effective_number_by_hand() -> None:
    """(Zp) is (1 + .375) / 2 for both: 1 / .6875 at every order."""
    found = atlas(evaluation())
    for order in (0, 1, 2):
        number = found.effective_number(["a", "b", "none", "other"], order)
        assert number["effective_number"] == pytest.approx(1 / 0.6875, abs=1e-5)
        assert number["corruptions"] == 2
        assert 1 < number["low"] < 1 / 0.6875 < number["high"] < 2
    assert found.effective_number(["a"])["effective_number"] == pytest.approx(1)
    with pytest.raises(ValueError, match="with a score is empty"):
        found.effective_number(["none"])


def test_the_largest_overlap_allows_for_having_been_picked() -> None:
    found = atlas(evaluation(copies=100))
    above, below = (found.largest(["a", "b"], threshold=t) for t in (0.2, 0.6))
    assert above.value == below.value == pytest.approx(0.375, abs=1e-6)
    pair = found.pairs().iloc[0]
    assert above.low == pytest.approx(pair["low"])  # one pair, so the same interval
    assert above.high == pytest.approx(pair["high"])
    assert above.verdict() == "supported"
    assert below.verdict() == "contradicted"
    assert found.largest(["a", "b"], threshold=0.37).verdict() == "undecided"
    at_its_end = found.largest(["a", "b"], threshold=float(above.low))
    assert at_its_end.p == pytest.approx(0.05, rel=0.01)
    assert atlas(evaluation(seeds=1)).largest(["a", "b"], threshold=0).verdict() == ONE_SEED
    nothing = found.largest(["a", "none"], threshold=0.5)
    assert np.isnan([nothing.value, nothing.low, nothing.high, nothing.p]).all()
    assert nothing.verdict() == "undecided"


def similarity(values: list[float], names: str) -> pd.DataFrame:
    frame = pd.DataFrame(1.0, index=list(names), columns=list(names))
    for (first, second), value in zip(itertools.combinations(names, 2), values, strict=True):
        frame.loc[first, second] = frame.loc[second, first] = value
    return frame


def test_rank_correlation_over_pairs() -> None:
    first = similarity([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], "abcd")
    assert rank_correlation(first, first)["spearman"] == pytest.approx(1)
    assert rank_correlation(first, -first)["spearman"] == pytest.approx(-1)
    swapped = similarity([0.2, 0.1, 0.3, 0.4, 0.5, 0.6], "abcd")  # 1 - 6 * 2 / (6 * 35)
    found = rank_correlation(first, swapped.loc[list("dcba"), list("dcba")])
    assert found["spearman"] == pytest.approx(1 - 12 / 210)
    assert found["low"] < found["spearman"] <= found["high"] <= 1
    assert found["names"] == 4
    assert np.isnan(rank_correlation(first, similarity([0.1, 0.2, 0.3], "abx"))["spearman"])


def test_it_needs_a_standard_model_and_partners() -> None:
    whole = evaluation()
    for dropped, message in (("standard", "standard"), ("a", "not evaluated")):
        kept = (whole.table["recipe"] != dropped).to_numpy()
        if dropped == "a":
            kept = ~(
                (whole.table["recipe"] == "a") & (whole.table["perturbation"] == "b")
            ).to_numpy()
        part = Evaluation(whole.table[kept], whole.correct[kept], computed=0)
        with pytest.raises(ValueError, match=message):
            atlas(part)


def test_the_record_follows_from_its_bits() -> None:
    """The committed tables, from the committed per-image results, by other code than theirs."""
    record = results.evaluation("cifar10", "overlap")
    table = record.table.assign(accuracy=record.correct.mean(axis=1))
    accuracy = table.pivot_table(index="recipe", columns="perturbation", values="accuracy")
    ratio = accuracy.div(accuracy["clean"], axis=0)
    gain = ratio - ratio.loc["standard"]
    pairs = results.committed("cifar10", "overlap").dropna(subset="overlap")
    pairs = pairs.sample(50, random_state=0)
    for pair in pairs.itertuples():
        halves = [
            gain.loc[trained, tested] / gain.loc[tested, tested]
            for trained, tested in ((pair.first, pair.second), (pair.second, pair.first))
        ]
        assert [pair.first_to_second, pair.second_to_first] == pytest.approx(
            halves, rel=2e-3, abs=1e-4
        )
        assert pair.overlap == pytest.approx(max(0, sum(halves) / 2), rel=2e-3, abs=1e-4)
        assert pair.low <= pair.overlap <= pair.high
