"""Metrics, overlapping score and intervals against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustlib.analysis import gains_over, mean_gain_over, metrics, overlap, statistics
from robustlib.core.checks import UnknownNameError
from robustlib.evaluation import Evaluation

# Clean accuracies of 0.8, so that R = A / 0.8.
ACCURACY = pd.DataFrame(
    {
        "clean": [0.80, 0.80, 0.80, 0.80],
        "noise": [0.40, 0.64, 0.56, 0.40],
        "blur": [0.48, 0.52, 0.64, 0.44],
        "fog": [0.56, 0.52, 0.60, 0.72],
    },
    index=["standard", "noise", "blur", "fog"],
)


def test_overlapping_scores_by_hand() -> None:
    """noise-blur: 1/2 (0.04 / 0.16 + 0.16 / 0.24) = 0.458333; noise-fog: below zero, so 0."""
    scores = overlap.overlapping_scores(ACCURACY)
    assert scores.loc["noise", "blur"] == pytest.approx(0.5 * (0.25 + 2 / 3))
    assert scores.loc["noise", "fog"] == 0
    assert scores.loc["blur", "fog"] == pytest.approx(max(0, 0.5 * (0.04 / 0.16 - 0.04 / 0.16)))
    pd.testing.assert_frame_equal(scores, scores.T)
    assert np.diag(scores).tolist() == [1, 1, 1]


def test_directed_halves_by_hand() -> None:
    halves = overlap.directed_overlaps(ACCURACY)
    assert halves.loc["noise", "blur"] == pytest.approx(0.04 / 0.16)
    assert halves.loc["blur", "noise"] == pytest.approx(0.16 / 0.24)
    assert halves.loc["noise", "fog"] == pytest.approx(-0.04 / 0.16)
    assert overlap.own_gains(ACCURACY)["noise"] == pytest.approx(0.24 / 0.8)


def test_ratio_and_raw_differ_when_clean_accuracies_do() -> None:
    accuracy = ACCURACY.copy()
    accuracy.loc["noise", "clean"] = 0.64
    ratio = overlap.overlapping_scores(accuracy, normalise="ratio")
    raw = overlap.overlapping_scores(accuracy, normalise="raw")
    assert raw.loc["noise", "blur"] == pytest.approx(0.458333, abs=1e-6)
    # R_noise(noise) = 1, R_noise(blur) = 0.8125, R_s = 0.5 and 0.6, R_blur = 0.7 and 0.8
    assert ratio.loc["noise", "blur"] == pytest.approx(0.5 * (0.2125 / 0.2 + 0.2 / 0.5))


def test_rows_and_columns_may_come_in_any_order() -> None:
    shuffled = ACCURACY.loc[["fog", "standard", "blur", "noise"], ["fog", "clean", "noise", "blur"]]
    expected = overlap.overlapping_scores(ACCURACY)
    found = overlap.overlapping_scores(shuffled)
    assert list(found) == ["fog", "noise", "blur"]
    pd.testing.assert_frame_equal(found, expected.loc[list(found), list(found)])


def test_a_corruption_without_own_gain_has_no_score() -> None:
    accuracy = ACCURACY.copy()
    accuracy.loc["fog", "fog"] = 0.56
    scores = overlap.overlapping_scores(accuracy)
    assert scores["fog"].isna().all()
    assert scores.loc["fog"].isna().all()
    assert scores.loc["noise", "blur"] == pytest.approx(0.458333, abs=1e-6)
    tiny = accuracy.copy()
    tiny.loc["fog", "fog"] = 0.5601
    assert overlap.overlapping_scores(tiny)["fog"].isna().all()
    assert overlap.overlapping_scores(tiny, min_gain=0).loc["fog", "fog"] == 1


def test_nothing_bounds_the_score_above() -> None:
    accuracy = ACCURACY.copy()
    accuracy.loc["blur", "noise"] = 0.8
    accuracy.loc["noise", "noise"] = 0.44
    assert overlap.overlapping_scores(accuracy).loc["noise", "blur"] > 4


@given(st.integers(0, 10_000), st.sampled_from(overlap.NORMALISATIONS))
def test_scores_are_symmetric_non_negative_and_one_on_the_diagonal(seed: int, kind: str) -> None:
    values = np.random.default_rng(seed).uniform(0.05, 1, (5, 5))
    names = list("abcd")
    frame = pd.DataFrame(values, index=["standard", *names], columns=["clean", *names])
    scores = overlap.overlapping_scores(frame, kind).to_numpy()
    np.testing.assert_array_equal(scores, scores.T)
    defined = ~np.isnan(scores)
    assert (scores[defined] >= 0).all()
    diagonal = np.diag(scores)
    np.testing.assert_allclose(diagonal[~np.isnan(diagonal)], 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.drop(index="standard"), "standard"),
        (lambda a: a.drop(columns="clean"), "clean"),
        (lambda a: a.drop(columns="fog"), "one row for each model"),
        (lambda a: a * 100, r"divide percentages by 100"),
        (lambda a: a.where(a < 0.8), "without NaN"),
        (lambda a: a.assign(clean=0.0), "clean accuracy above zero"),
    ],
)
def test_bad_accuracies_are_refused(change, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        overlap.overlapping_scores(change(ACCURACY))


def test_unknown_normalisation() -> None:
    with pytest.raises(UnknownNameError, match="'ratio'"):
        overlap.overlapping_scores(ACCURACY, "ratios")


def tidy() -> pd.DataFrame:
    """Two recipes; fog at severities 1 and 2; two seeds for the second recipe."""
    rows = [
        ("standard", 0, "clean", "clean", 0, 0.9),
        ("standard", 0, "fog", "weather", 1, 0.7),
        ("standard", 0, "fog", "weather", 2, 0.5),
        ("standard", 0, "pgd", "adversarial", 0, 0.1),
        ("other", 0, "clean", "clean", 0, 0.8),
        ("other", 0, "fog", "weather", 1, 0.8),
        ("other", 0, "fog", "weather", 2, 0.6),
        ("other", 1, "clean", "clean", 0, 0.8),
        ("other", 1, "fog", "weather", 1, 0.9),
        ("other", 1, "fog", "weather", 2, 0.7),
        ("other", 0, "pgd", "adversarial", 0, 0.4),
        ("other", 1, "pgd", "adversarial", 0, 0.2),
    ]
    columns = ["recipe", "training_seed", "perturbation", "family", "severity", "accuracy"]
    return pd.DataFrame(rows, columns=columns)


def test_accuracy_matrix_and_robustness_score_by_hand() -> None:
    accuracy = metrics.accuracy_matrix(tidy())
    assert list(accuracy.index) == ["standard", "other"]
    assert list(accuracy) == ["clean", "fog", "pgd"]
    assert accuracy.loc["standard", "fog"] == pytest.approx(0.6)
    assert accuracy.loc["other"].tolist() == pytest.approx([0.8, 0.75, 0.3])
    scores = metrics.robustness_scores(accuracy)
    assert scores.loc["other", "fog"] == pytest.approx(0.75 / 0.8)
    assert "clean" not in scores


def test_corruption_errors_by_hand() -> None:
    errors = metrics.corruption_errors(tidy())
    assert list(errors) == ["fog"]
    assert errors.loc["standard", "fog"] == pytest.approx(100)
    assert errors.loc["other", "fog"] == pytest.approx(100 * 0.25 / 0.4)
    relative = metrics.corruption_errors(tidy(), relative=True)
    assert relative.loc["other", "fog"] == pytest.approx(100 * (0.25 - 0.2) / (0.4 - 0.1))


def test_mce_is_the_mean_over_corruptions() -> None:
    errors = pd.DataFrame({"fog": [100.0, 60.0], "snow": [100.0, 80.0]}, index=["standard", "x"])
    assert metrics.mce(errors).tolist() == [100, 70]
    assert metrics.mce(errors, ["snow"]).tolist() == [100, 80]


def test_corruption_errors_are_undefined_where_the_reference_makes_none() -> None:
    table = tidy()
    table.loc[table["recipe"].eq("standard") & table["perturbation"].eq("fog"), "accuracy"] = 1.0
    errors = metrics.corruption_errors(table)
    assert errors["fog"].isna().all()
    assert metrics.mce(errors).isna().all()


def test_metrics_refuse_what_they_cannot_use() -> None:
    with pytest.raises(UnknownNameError, match="standard"):
        metrics.corruption_errors(tidy(), reference="standart")
    with pytest.raises(ValueError, match="clean"):
        metrics.robustness_scores(metrics.accuracy_matrix(tidy()).drop(columns="clean"))
    with pytest.raises(ValueError, match="above zero"):
        metrics.robustness_scores(metrics.accuracy_matrix(tidy()).assign(clean=0.0))


def test_wilson_interval_matches_published_values() -> None:
    """Newcombe 1998, table 1: 81/263 and 0/20, 95 %, without continuity correction."""
    low, high = statistics.wilson_interval(np.array([81 / 263, 0.0]), np.array([263, 20]))
    np.testing.assert_allclose(low, [0.2553, 0.0], atol=5e-5)
    np.testing.assert_allclose(high, [0.3662, 0.1611], atol=5e-5)


def test_intervals_in_words() -> None:
    assert statistics.interval_text(0.01, 0.2) == "0.010 to 0.200"
    assert statistics.interval_text(-0.017, 0.22, digits=2) == "-0.02 to 0.22"
    assert statistics.interval_text(float("nan"), float("nan")) == "undefined"
    assert statistics.interval_text(-0.44, float("inf")) == "at least -0.440"
    assert statistics.interval_text(-float("inf"), 0.25) == "at most 0.250"
    assert statistics.interval_text(-float("inf"), float("inf")) == "unbounded"


def test_accuracy_with_intervals_averages_severities_then_seeds() -> None:
    rows, correct = [], []
    for name, severity, accuracies in (
        ("clean", 0, (8, 9)),
        ("fog", 1, (6, 7)),
        ("fog", 5, (2, 5)),
    ):
        for seed, right in enumerate(accuracies):
            rows.append(("a", seed, name, severity, 10))
            correct.append(np.arange(10) < right)
    rows.append(("b", 0, "clean", 0, 10))
    correct.append(np.arange(10) < 5)
    columns = ["recipe", "training_seed", "perturbation", "severity", "n"]
    evaluation = Evaluation(pd.DataFrame(rows, columns=columns), np.array(correct), computed=0)
    result = metrics.accuracy_with_intervals(evaluation).set_index(["recipe", "perturbation"])
    assert list(result.index) == [("a", "clean"), ("a", "fog"), ("b", "clean")]
    fog = result.loc[("a", "fog")]
    assert fog["accuracy"] == pytest.approx(0.5)
    assert fog["high"] - fog["accuracy"] > 12.7062 * 0.1  # Student's, over the seeds alone
    assert (fog["seeds"], fog["n"]) == (2, 10)
    alone = result.loc[("b", "clean")]  # Student's over images: 2.2622 * sqrt(.25 / 9)
    assert alone["high"] - 0.5 == pytest.approx(2.2622 / 6, rel=1e-4)


FULL = pd.concat([tidy().assign(n=100, eps=0.0, norm="", options="", architecture="small_resnet")])


def unlike(**changes: object) -> pd.DataFrame:
    """The table with the second recipe's second seed changed under fog, or as `changes` say."""
    table = FULL.copy()
    chosen = (table["recipe"] == "other") & (table["training_seed"] == 1)
    for column, value in changes.items():
        table[column] = table[column].where(~(chosen & (table["perturbation"] == "fog")), value)
    return table


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (unlike(severity=1), r"'fog' was not tested at the same severities|stands more than once"),
        (
            unlike(severity=5)[
                lambda t: ~t.duplicated(["recipe", "training_seed", "perturbation", "severity"])
            ],
            r"same severities: \[5\] for 'other', seed 1, but \[1, 2\] for others",
        ),
        (unlike(options="stored in X-C"), r"'fog' stands for 2 .*options stored in X-C.*label="),
        (unlike(n=50), r"different numbers of images, \[50, 100\]"),
        (unlike(architecture="resnet18"), "different architectures, resnet18, small_resnet"),
        (FULL.assign(eps=[0, 0, 0, 0.1] + [0] * 6 + [0.2, 0.1]), r"'pgd' stands for 2 .*eps 0\.1"),
        (FULL[~((FULL.training_seed == 1) & (FULL.perturbation == "pgd"))], "seed 1, .* under pgd"),
        (pd.concat([FULL, FULL[FULL.perturbation == "clean"]]), "'clean' stands more than once"),
    ],
)
def test_unlike_rows_are_never_averaged(table: pd.DataFrame, message: str) -> None:
    evaluation = Evaluation(table, np.zeros((len(table), 2), bool), computed=0)
    with pytest.raises(ValueError, match=message):
        metrics.accuracy_matrix(table)
    with pytest.raises(ValueError, match=message):
        metrics.accuracy_with_intervals(evaluation)
    assert len(metrics.accuracy_matrix(FULL)) == 2


def test_tables_from_files_and_from_memory_go_together(tmp_path) -> None:
    """A file knows no empty text, and keeps six digits."""
    precise = FULL.assign(eps=[0, 0, 0, 2 / 255] + [0] * 6 + [2 / 255] * 2)
    precise.to_csv(tmp_path / "table.csv", index=False, float_format="%.6g")
    read = pd.read_csv(tmp_path / "table.csv")
    both = pd.concat([read[read["recipe"] == "standard"], precise[precise["recipe"] == "other"]])
    assert metrics.accuracy_matrix(both).equals(metrics.accuracy_matrix(precise))


def test_corruption_errors_need_the_same_severities() -> None:
    """1 - 0.7 against 1 - 0.7 and 1 - 0.5: a ratio of sums would call the same model better."""
    half = FULL[(FULL["recipe"] == "standard") | (FULL["severity"] != 2)]
    with pytest.raises(ValueError, match="'fog' was not tested at the same severities"):
        metrics.corruption_errors(half)


def test_gains_over_another_recipe_by_hand() -> None:
    rows, correct = [], []
    for recipe, right in {"standard": (6, 4), "mine": (9, 4)}.items():
        for seed in (0, 1):
            for perturbation, count in zip(("fog", "snow"), right, strict=True):
                rows.append((recipe, seed, perturbation, 3, 100))
                correct.append(np.arange(100) < 10 * count + seed)
    columns = ["recipe", "training_seed", "perturbation", "severity", "n"]
    evaluation = Evaluation(pd.DataFrame(rows, columns=columns), np.array(correct), computed=0)
    gains = gains_over(evaluation, "mine", ["fog", "snow"])
    np.testing.assert_allclose(gains["gain"], [0.3, 0.0], atol=1e-9)
    assert (gains["low"] <= gains["gain"]).all()
    assert (gains["high"] >= gains["gain"]).all()
    assert gains["recipe"].eq("mine").all()
    mean = mean_gain_over(evaluation, "mine", ["fog", "snow"])
    assert float(mean.value) == pytest.approx(0.15)
    back = mean_gain_over(evaluation, "standard", ["fog", "snow"], reference="mine")
    assert float(back.value) == pytest.approx(-0.15)
