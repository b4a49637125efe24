from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from robustlib.analysis import published, selection
from robustlib.analysis.selection import (
    calibrated_severities,
    categories,
    choose,
    coverage,
    effective_number,
    every_choice,
    families,
    predicted_mean,
    prediction_errors,
    weights,
)
from robustlib.core.checks import UnknownNameError

ORDERS = [0, 0.5, 1, 2, 3.5, math.inf]


def frame(values, names="abcdefghijklmnopqrstuvwxyz") -> pd.DataFrame:
    labels = list(names[: len(values)])
    return pd.DataFrame(np.array(values, dtype=float), index=labels, columns=labels)


def drawn(size: int, seed: int, levels: int | None = None) -> pd.DataFrame:
    """levels: few different values, so that many choices tie."""
    generator = np.random.default_rng(seed)
    values = generator.random((size, size))
    if levels is not None:
        values = generator.integers(0, levels + 1, (size, size)) / levels
    values = np.triu(values, 1)
    return frame(values + values.T + np.eye(size))


TWO_PAIRS = frame([[1, 0.8, 0, 0.1], [0.8, 1, 0.2, 0], [0, 0.2, 1, 0.6], [0.1, 0, 0.6, 1]])


# --- Effective number ----------------------------------------------------------------------------


@pytest.mark.parametrize("order", ORDERS)
def test_the_effective_number_counts_what_is_different(order) -> None:
    assert effective_number(frame(np.eye(5)), order) == pytest.approx(5)
    assert effective_number(frame(np.ones((5, 5))), order) == pytest.approx(1)
    blocks = np.kron(np.eye(3), np.ones((2, 2)))
    assert effective_number(frame(blocks), order) == pytest.approx(3)


def test_two_clones_and_another_by_hand() -> None:
    overlap = frame([[1, 1, 0], [1, 1, 0], [0, 0, 1]])
    # Two kinds with the weights 2/3 and 1/3: Hill numbers of orders 0, 1, 2 and infinity.
    assert effective_number(overlap, 0) == pytest.approx(2)
    assert effective_number(overlap) == pytest.approx(3 / 4 ** (1 / 3))
    assert effective_number(overlap, 2) == pytest.approx(9 / 5)
    assert effective_number(overlap, math.inf) == pytest.approx(3 / 2)


def test_a_pair_by_hand() -> None:
    # Zp is (1 + z) / 2 for both.
    for order in ORDERS:
        assert effective_number(frame([[1, 0.5], [0.5, 1]]), order) == pytest.approx(4 / 3)


def test_the_effective_number_of_orders_near_one_is_continuous() -> None:
    overlap = drawn(6, 0)
    near = [effective_number(overlap, 1 + step) for step in (-1e-6, -1e-12, 1e-12, 1e-6)]
    assert near == pytest.approx([effective_number(overlap)] * 4, abs=1e-5)
    falling = [effective_number(overlap, order) for order in ORDERS]
    assert falling == sorted(falling, reverse=True)


def test_overlaps_beyond_one_count_as_one() -> None:
    overlap = frame([[1, 7.5], [7.5, 1]])
    assert effective_number(overlap) == pytest.approx(1)


def test_many_overlaps_at_once() -> None:
    draws = np.stack([drawn(4, seed) for seed in range(6)]).reshape(2, 3, 4, 4)
    for order in ORDERS:
        found = effective_number(draws, order)
        assert isinstance(found, np.ndarray)
        assert found.shape == (2, 3)
        assert found[1, 0] == pytest.approx(effective_number(draws[1, 0], order))


BAD_OVERLAPS = [
    (np.ones((2, 3)), "square"),
    (np.ones(3), "square"),
    (np.ones((0, 0)), "square"),
    (pd.DataFrame([[1, 0], [0, 1]], index=["a", "b"], columns=["b", "a"]), "same names"),
    (pd.DataFrame([[1, 0], [0, 1]], index=["a", "a"], columns=["a", "a"]), "repeats an entry"),
    (frame([[1, 0.2], [0.6, 1]]), "not the directed halves"),
    (frame([[0, 0.2], [0.2, 0]]), "the diagonal"),
    (frame([[1, np.nan, 0], [np.nan, np.nan, np.nan], [0, np.nan, 1]]), r"known of b \("),
    (frame([[1, np.nan, 0], [np.nan, 1, 0], [0, 0, 1]]), r"known of a, b \("),
    (frame([[1, np.inf], [np.inf, 1]]), "known of a, b"),
]


@pytest.mark.parametrize(("overlap", "message"), BAD_OVERLAPS)
def test_bad_overlaps_are_refused(overlap, message) -> None:
    with pytest.raises(ValueError, match=message):
        effective_number(overlap)
    if isinstance(overlap, pd.DataFrame):
        for use in (lambda: choose(overlap, 1, 1), lambda: weights(overlap, ["a"])):
            with pytest.raises(ValueError, match=message):
                use()


@pytest.mark.parametrize("order", [-1, math.nan, "many"])
def test_bad_orders_are_refused(order) -> None:
    with pytest.raises(ValueError, match="order must be a number of at least 0"):
        effective_number(np.eye(2), order)


# --- Choices -------------------------------------------------------------------------------------


def test_coverage_by_hand() -> None:
    assert coverage(TWO_PAIRS, ["a"]) == pytest.approx(1 + 0.8 + 0 + 0.1)
    assert coverage(TWO_PAIRS, ["b", "c"]) == pytest.approx(0.8 + 1 + 1 + 0.6)
    assert coverage(TWO_PAIRS, list("abcd")) == pytest.approx(4)


def test_a_choice_by_hand() -> None:
    assert choose(TWO_PAIRS, 1, 1) == ["b"]  # .8 + 1 + .2, but a has 1 + .8 + .1
    assert choose(TWO_PAIRS, 2, 0.05) == ["a", "c"]
    assert choose(TWO_PAIRS, 3, 0.7) == ["a", "c", "d"]  # as good as b, c, d, and before it


def best_by_brute_force(overlap: pd.DataFrame, k: int, limit: float) -> float | None:
    found = [
        sum(max(overlap.loc[i, j] for j in some) for i in overlap.index)
        for some in itertools.combinations(overlap.index, k)
        if all(overlap.loc[i, j] <= limit for i, j in itertools.combinations(some, 2))
    ]
    return max(found, default=None)


@pytest.mark.parametrize("solver", ["one by one", "milp"])
@settings(max_examples=60, deadline=None)
@given(st.data())
def test_choices_are_the_best_there_are(solver, data) -> None:
    size = data.draw(st.integers(1, 7))
    levels = data.draw(st.sampled_from([None, 2, 4]))
    overlap = drawn(size, data.draw(st.integers(0, 2**32 - 1)), levels)
    k = data.draw(st.integers(1, size))
    limit = data.draw(st.sampled_from([0, 0.25, 0.5, 0.7, 1]))
    best = best_by_brute_force(overlap, k, limit)
    with pytest.MonkeyPatch.context() as patch:
        if solver == "milp":
            patch.setattr(selection, "_COMPARED", -1)
        if best is None:
            with pytest.raises(ValueError, match="or raise the limit"):
                choose(overlap, k, limit)
            return
        chosen = choose(overlap, k, limit)
    assert len(set(chosen)) == k
    assert chosen == sorted(chosen)
    among = overlap.loc[chosen, chosen].to_numpy()[~np.eye(k, dtype=bool)]
    assert (among <= limit).all()
    assert coverage(overlap, chosen) == pytest.approx(best, abs=1e-6)


def test_the_solver_is_called_where_choices_are_many(monkeypatch) -> None:
    features = np.random.default_rng(0).random((43, 3))
    apart = ((features[:, None] - features) ** 2).sum(axis=-1)
    names = [f"c{i:02}" for i in range(43)]
    overlap = pd.DataFrame(np.exp(-4 * apart), names, names)
    calls = []
    solve = selection._solve
    monkeypatch.setattr(selection, "_solve", lambda *given: calls.append(given) or solve(*given))
    chosen = choose(overlap, 8, 0.6)
    assert len(calls) == 1
    cover = coverage(overlap, chosen)
    for gone, new in itertools.product(chosen, set(names) - set(chosen)):
        other = [new if name == gone else name for name in chosen]
        among = overlap.loc[other, other].to_numpy()[~np.eye(8, dtype=bool)]
        assert (among > 0.6).any() or coverage(overlap, other) <= cover + 1e-6
    choose(overlap, 3, 1)
    assert len(calls) == 1, "few choices are compared"


@pytest.mark.parametrize("compared", [100_000, -1])
def test_ties_do_not_depend_on_the_order_of_the_candidates(compared, monkeypatch) -> None:
    monkeypatch.setattr(selection, "_COMPARED", compared)
    overlap = frame(np.full((7, 7), 0.5) + np.eye(7) / 2)
    chosen = choose(overlap, 3, 1)
    for seed in range(4):
        order = np.random.default_rng(seed).permutation(overlap.index)
        found = choose(overlap.loc[order, order], 3, 1)
        assert sorted(found) == chosen
        assert found == [name for name in order if name in chosen]


def test_a_limit_that_no_choice_meets_says_how_many_do() -> None:
    with pytest.raises(ValueError, match=r"no 3 corruptions overlap by at most 0\.05.*at most 2"):
        choose(TWO_PAIRS, 3, 0.05)
    with pytest.raises(ValueError, match="at most 1 do"):
        choose(frame(np.ones((3, 3))), 2, 0.5)


@pytest.mark.parametrize("k", [0, 5, 1.5, "2"])
def test_bad_numbers_of_corruptions_are_refused(k) -> None:
    with pytest.raises(ValueError, match="k must be an integer from 1 to 4"):
        choose(TWO_PAIRS, k, 1)


def test_bad_limits_are_refused() -> None:
    for limit in (-0.1, math.nan):
        with pytest.raises(ValueError, match="limit must be a number of at least 0"):
            choose(TWO_PAIRS, 2, limit)


# --- Weights and predictions ---------------------------------------------------------------------


def test_weights_by_hand() -> None:
    assert weights(TWO_PAIRS, ["c", "a"]).to_dict() == {"c": 0.5, "a": 0.5}
    overlap = TWO_PAIRS.copy()
    overlap.loc["b", "c"] = overlap.loc["c", "b"] = 0.9
    assert weights(overlap, ["a", "c"]).to_dict() == {"a": 0.25, "c": 0.75}
    assert list(weights(overlap, list("abcd"))) == [0.25] * 4


def test_candidates_that_none_or_two_cover_alike_are_shared() -> None:
    overlap = frame([[1, 0, 0.5, 0], [0, 1, 0.5, 0], [0.5, 0.5, 1, 0.3], [0, 0, 0.3, 1]])
    assert weights(overlap, ["a", "b"]).to_dict() == {"a": 0.5, "b": 0.5}
    assert weights(overlap, ["a", "c"]).to_dict() == {"a": 0.25, "c": 0.75}


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 8), st.integers(0, 2**32 - 1), st.data())
def test_weights_sum_to_one_and_count_each_member_itself(size, seed, data) -> None:
    overlap = drawn(size, seed)
    chosen = data.draw(st.lists(st.sampled_from(list(overlap.index)), min_size=1, unique=True))
    found = weights(overlap, chosen)
    assert list(found.index) == chosen
    assert found.sum() == pytest.approx(1)
    assert (found >= 1 / size - 1e-12).all()


@pytest.mark.parametrize("use", [weights, coverage])
def test_bad_choices_are_refused(use) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'fog'"):
        use(frame(np.eye(2)).set_axis(["fog", "snow"]).set_axis(["fog", "snow"], axis=1), ["fogg"])
    with pytest.raises(ValueError, match="is empty"):
        use(TWO_PAIRS, [])
    with pytest.raises(ValueError, match="repeats an entry"):
        use(TWO_PAIRS, ["a", "a"])


ACCURACY = pd.DataFrame(
    {"a": [0.2, 0.6, 0.9], "b": [0.4, 0.6, 0.7], "c": [0.6, 0.3, 0.8]}, index=["x", "y", "z"]
)


def test_predictions_and_their_errors_by_hand() -> None:
    shares = {"a": 0.25, "c": 0.75}
    predicted = predicted_mean(ACCURACY, shares)
    assert predicted.to_dict() == pytest.approx({"x": 0.5, "y": 0.375, "z": 0.825})
    errors = prediction_errors(ACCURACY, pd.Series(shares))  # the means are .4, .5, .8
    assert errors["rmse"] == pytest.approx(math.sqrt((0.1**2 + 0.125**2 + 0.025**2) / 3))
    assert errors["worst"] == pytest.approx(0.125)
    assert errors["kendall"] == pytest.approx(1 / 3)


def test_clones_predict_exactly_what_they_stand_for() -> None:
    kinds = np.repeat(np.arange(3), [4, 2, 1])
    overlap = frame(kinds[:, None] == kinds)
    levels = np.random.default_rng(0).random((9, 3))
    accuracy = pd.DataFrame(levels[:, kinds], columns=overlap.columns)
    chosen = choose(overlap, 3, 0.5)
    assert chosen == ["a", "e", "g"]
    errors = prediction_errors(accuracy, weights(overlap, chosen))
    assert errors["rmse"] == pytest.approx(0, abs=1e-12)
    assert errors["kendall"] == pytest.approx(1)
    plain = every_choice(accuracy, 3)
    assert plain["rmse"].min() > 0.01, "without weights it takes luck"


def test_every_choice_agrees_with_one_at_a_time_and_scipy() -> None:
    accuracy = pd.DataFrame(np.random.default_rng(1).random((9, 5)), columns=list("abcde"))
    accuracy.loc[3] = accuracy.loc[4]  # a tie in the ranking
    overlap = drawn(5, 2)
    for k in (1, 2, 5):
        plain = every_choice(accuracy, k)
        other_order = overlap.loc[::-1, ::-1]
        weighted = every_choice(accuracy, k, weighting="overlap", overlap=other_order)
        assert list(plain["choice"]) == list(itertools.combinations("abcde", k))
        for found, shares in (
            (plain, lambda choice: dict.fromkeys(choice, 1 / len(choice))),
            (weighted, lambda choice: weights(overlap, choice)),
        ):
            for row in found.itertuples():
                expected = prediction_errors(accuracy, shares(row.choice))
                assert (row.rmse, row.worst) == pytest.approx((expected["rmse"], expected["worst"]))
                predicted = predicted_mean(accuracy, shares(row.choice))
                tau = stats.kendalltau(accuracy.mean(axis=1).round(12), predicted.round(12))
                assert row.kendall == pytest.approx(tau.statistic)


def test_regression_leaves_each_model_out() -> None:
    accuracy = pd.DataFrame(np.random.default_rng(2).random((8, 4)), columns=list("abcd"))
    truth = accuracy.mean(axis=1)
    found = every_choice(accuracy, 2, weighting="regression").set_index("choice")
    for choice, row in found.iterrows():
        design = np.column_stack([np.ones(8), accuracy[list(choice)]])
        predicted = []
        for i in range(8):
            rest = np.arange(8) != i
            solution = np.linalg.lstsq(design[rest], truth[rest], rcond=None)[0]
            predicted.append(design[i] @ solution)
        error = np.array(predicted) - truth
        assert row["rmse"] == pytest.approx(np.sqrt((error**2).mean()))
        assert row["worst"] == pytest.approx(abs(error).max())
        assert row["kendall"] == pytest.approx(stats.kendalltau(truth, predicted).statistic)


def test_regression_on_clones_is_as_on_one_of_them() -> None:
    accuracy = pd.DataFrame(np.random.default_rng(3).random((9, 3)), columns=list("abc"))
    accuracy["d"] = accuracy["a"]
    two = every_choice(accuracy, 2, weighting="regression").set_index("choice")
    one = every_choice(accuracy, 1, weighting="regression").set_index("choice")
    assert two.loc[[("a", "d")], "rmse"].item() == pytest.approx(one.loc[[("a",)], "rmse"].item())


def test_plain_means_of_four_corruptions_over_public_models() -> None:
    """Recomputed apart from this code: median, worst and best of the 1365 choices, in points."""
    accuracy = published.load("cifar10", "RobustBench").drop(columns="clean")
    assert accuracy.shape == (23, 15)
    plain = 100 * every_choice(accuracy, 4)["rmse"]
    assert plain.agg(["median", "max", "min"]).round(2).tolist() == [2.67, 7.15, 0.60]
    fitted = 100 * every_choice(accuracy, 4, weighting="regression")["rmse"]
    assert fitted.agg(["median", "max", "min"]).round(2).tolist() == [1.34, 6.26, 0.25]


def test_bad_accuracies_and_weights_are_refused() -> None:
    equal = {"a": 0.5, "b": 0.5}
    for bad, message in (
        (ACCURACY.assign(clean=1.0), 'leave out the column "clean"'),
        (ACCURACY * 100, "divide percentages"),
        (ACCURACY.where(ACCURACY > 0.2), "without NaN"),
        (ACCURACY.head(1), "two models"),
        (ACCURACY[["a", "b", "b"]], "repeats an entry"),
    ):
        with pytest.raises(ValueError, match=message):
            prediction_errors(bad, equal)
        with pytest.raises(ValueError, match=message):
            every_choice(bad, 2)
    for shares in ({"a": 0.5, "b": 0.4}, {"a": 1.5, "b": -0.5}, {"a": math.nan, "b": 1}, {}):
        with pytest.raises(ValueError, match="must be 0 or more and sum to 1"):
            predicted_mean(ACCURACY, shares)
    with pytest.raises(UnknownNameError, match="'d'"):
        predicted_mean(ACCURACY, {"a": 0.5, "d": 0.5})


def test_bad_calls_of_every_choice_are_refused() -> None:
    overlap = frame(np.eye(3))
    for more, message in (
        ({"weighting": "equl"}, "Did you mean 'equal'"),
        ({"weighting": "overlap"}, "give the overlap"),
        ({"overlap": overlap}, "give the overlap"),
        ({"weighting": "overlap", "overlap": frame(np.eye(4))}, "only in one of them: d"),
        ({"weighting": "regression"}, "needs 5 models or more, got 3"),
    ):
        with pytest.raises(ValueError, match=message):
            every_choice(ACCURACY, 2, **more)
    with pytest.raises(ValueError, match="needs 4 models or more, got 3"):
        every_choice(ACCURACY, 1, weighting="regression")
    with pytest.raises(ValueError, match="from 1 to 3"):
        every_choice(ACCURACY, 4)
    many = pd.DataFrame(np.full((2, 40), 0.5), columns=[f"c{i}" for i in range(40)])
    with pytest.raises(ValueError, match="658008 choices of 5 of 40"):
        every_choice(many, 5)


def test_a_ranking_of_models_that_all_tie_is_undefined() -> None:
    same = pd.DataFrame(np.full((3, 2), 0.5), columns=["a", "b"])
    assert math.isnan(prediction_errors(same, {"a": 1.0})["kendall"])


# --- Categories and families ---------------------------------------------------------------------


def blocks(*sizes: int, within: float = 0.8, between: float = 0.1) -> pd.DataFrame:
    kinds = np.repeat(np.arange(len(sizes)), sizes)
    values = np.where(kinds[:, None] == kinds, within, between)
    noise = np.triu(np.random.default_rng(0).normal(0, 0.03, values.shape), 1)
    values = values + noise + noise.T
    np.fill_diagonal(values, 1)
    return frame(values)


def test_categories_find_blocks() -> None:
    assert categories(blocks(3, 4, 2), 3) == [["a", "b", "c"], ["d", "e", "f", "g"], ["h", "i"]]
    assert categories(blocks(4, 5)) == [list("abcd"), list("efghi")]


def test_the_number_of_categories_follows_the_authors_rule() -> None:
    overlap = drawn(9, 5)
    correlation = np.corrcoef(overlap)

    def within(found: list[list[str]]) -> float:
        pairs = [
            correlation[overlap.index.get_loc(i), overlap.index.get_loc(j)]
            for members in found
            for i, j in itertools.combinations(members, 2)
        ]
        return float(np.mean(pairs))

    found = categories(overlap)
    assert len(found) > 2
    assert within(found) > 0.5
    assert all(within(categories(overlap, n)) <= 0.5 for n in range(2, len(found)))


def test_k_means_finds_the_best_partition() -> None:
    overlap = drawn(7, 3)
    vectors = overlap.to_numpy()

    def spread(label: np.ndarray) -> float:
        parts = [vectors[label == value] for value in np.unique(label)]
        return sum(((part - part.mean(axis=0)) ** 2).sum() for part in parts)

    every = (np.array(label) for label in itertools.product(range(3), repeat=7))
    best = min(spread(label) for label in every if len(set(label.tolist())) == 3)
    found = categories(overlap, 3)
    label = np.array([next(i for i, c in enumerate(found) if n in c) for n in overlap.index])
    assert spread(label) == pytest.approx(best)


def test_corruptions_that_overlap_alike_are_one_category() -> None:
    assert categories(frame(np.ones((4, 4)))) == [list("abcd")]
    with pytest.raises(ValueError, match="from 1 to 1"):
        categories(frame(np.ones((4, 4))), 2)
    assert categories(frame(np.eye(3)), 3) == [["a"], ["b"], ["c"]]


GROUPS = [list("abcd"), list("efg"), list("hi"), ["j"]]


@pytest.mark.parametrize(
    ("n", "k", "imbalance", "expected"),
    [(3, 2, 0, {2}), (4, 1, 0, {1}), (2, 2, 1, {1, 3}), (3, 2, 0.8, {1, 2, 3}), (1, 4, 0, {4})],
)
def test_families_have_the_balance_asked_for(n, k, imbalance, expected) -> None:
    seen = set()
    for seed in range(30):
        chosen = families(GROUPS, n, k, imbalance=imbalance, seed=seed)
        assert len(set(chosen)) == n * k
        counts = [len(set(chosen) & set(members)) for members in GROUPS]
        counts = [count for count in counts if count]
        assert len(counts) == n
        assert np.std(counts).round(1) == imbalance
        assert set(counts) == expected
        assert chosen == families(GROUPS, n, k, imbalance=imbalance, seed=seed)
        seen.add(tuple(sorted(chosen)))
    assert (len(seen) > 1) == (n > 1), "other seeds draw others, where there are others"


def test_families_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match=r"an imbalance of 5; allowed: 0\.0, 0\.8"):
        families(GROUPS, 3, 2, imbalance=5)
    with pytest.raises(ValueError, match="allowed: none, choose fewer"):
        families(GROUPS, 4, 3)
    with pytest.raises(ValueError, match="from 1 to 4"):
        families(GROUPS, 5, 1)
    with pytest.raises(ValueError, match="repeats an entry"):
        families([["a"], ["a"]], 1, 1)


@pytest.mark.parametrize(("total", "parts"), [(6, 3), (7, 2), (5, 5), (12, 6), (3, 1)])
def test_partitions_are_all_there(total, parts) -> None:
    every = itertools.combinations_with_replacement(range(1, total + 1), parts)
    expected = {tuple(sorted(some, reverse=True)) for some in every if sum(some) == total}
    found = list(selection._partitions(total, parts))
    assert set(found) == expected
    assert len(found) == len(expected)


# --- Severities ----------------------------------------------------------------------------------


def test_calibrated_severities_by_hand() -> None:
    accuracy = pd.DataFrame(
        {
            1: [0.80, 0.60, 0.85, 0.70],
            2: [0.75, 0.50, 0.84, 0.80],
            3: [0.67, 0.40, 0.83, 0.75],
            4: [0.50, 0.30, 0.82, 0.60],
            5: [0.30, 0.20, 0.81, 0.50],
        },
        index=["even", "strong", "weak", "bumpy"],
    )
    found = calibrated_severities(accuracy, clean=0.9, loss=0.2)
    assert found["severity"].to_dict() == {"even": 3, "strong": 1, "weak": 5, "bumpy": 1}
    assert found["loss"].to_dict() == pytest.approx(
        {"even": 0.23, "strong": 0.3, "weak": 0.09, "bumpy": 0.2}
    )
    assert found["reached"].to_dict() == {
        **{"even": True, "bumpy": True},
        **{"strong": False, "weak": False},
    }


def test_calibration_takes_some_severities_and_the_weaker_of_two() -> None:
    accuracy = pd.DataFrame({2: [0.7], 4: [0.5]}, index=["fog"])
    found = calibrated_severities(accuracy, clean=0.8, loss=0.2)
    assert found.loc["fog"].tolist() == [2, 0.1, True]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"columns": ["1", "2"]}, "columns must be severities"),
        ({"columns": [0, 1]}, "columns must be severities"),
        ({"columns": [2, 1]}, "columns must be severities"),
        ({"columns": [1, 1]}, "columns must be severities"),
        ({"index": ["fog", "fog"]}, "repeats an entry"),
        ({"clean": 0}, "clean accuracy must be"),
        ({"clean": 90}, "clean accuracy must be"),
        ({"loss": 0}, "the loss must be"),
        ({"loss": 0.95}, "the loss must be"),
        ({"values": [[0.5, np.nan], [0.5, 0.5]]}, "without NaN"),
    ],
)
def test_bad_calibrations_are_refused(change, message) -> None:
    given = {"values": [[0.7, 0.6], [0.8, 0.7]], "index": ["fog", "snow"], "columns": [1, 2]}
    given |= {"clean": 0.9, "loss": 0.2} | change
    accuracy = pd.DataFrame(given["values"], given["index"], given["columns"])
    with pytest.raises(ValueError, match=message):
        calibrated_severities(accuracy, clean=given["clean"], loss=given["loss"])
