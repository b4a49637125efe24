"""Verdicts on pairs of adversarial and common robustness, and sets of corruptions to train with."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from robustlib.analysis import crossed_intervals, independence, overlap
from robustlib.analysis.hypotheses import ONE_SEED
from robustlib.analysis.independence import dependences, mean_gain, training_sets, unlike
from robustlib.evaluation import COLUMNS, Evaluation

Accuracies = Mapping[str, Mapping[str, float]]

# By recipe and perturbation. Own gains: .4 of the attack, .4, .2 and 0 of the corruptions.
ACCURACY = {
    "standard": {"clean": 0.8, "adversarial": 0.2, "a": 0.4, "b": 0.6, "c": 0.4},
    "pgd": {"clean": 0.8, "adversarial": 0.6, "a": 0.5, "b": 0.5, "c": 0.4},
    "a": {"clean": 0.8, "adversarial": 0.3, "a": 0.8},
    "b": {"clean": 0.8, "adversarial": 0.1, "b": 0.8},
    "c": {"clean": 0.8, "adversarial": 0.2, "c": 0.4},
}


def evaluation(
    accuracy: Accuracies,
    *,
    seeds: int = 3,
    n: int = 400,
    rng: np.random.Generator | None = None,
    spread: float = 0.0,
) -> Evaluation:
    """Per-image results of given accuracies: exact, or drawn with images' and seeds' own effects.

    spread: standard deviation over seeds, of each model under each perturbation.
    """
    hard = np.random.default_rng(7).permutation(n) if rng is None else rng.standard_normal(n)
    rows, correct = [], []
    for recipe, seed in itertools.product(accuracy, range(seeds)):
        for perturbation, value in accuracy[recipe].items():
            rows.append(
                {
                    **dict.fromkeys(COLUMNS, ""),
                    "model": f"{recipe}-{seed}",
                    "recipe": recipe,
                    "training_seed": seed,
                    "perturbation": perturbation,
                    "severity": 0,
                    "eps": 0.0,
                    "n": n,
                }
            )
            if rng is None:
                correct.append(hard < round(value * n))
            else:
                level = stats.norm.ppf(np.clip(value + spread * rng.standard_normal(), 0.01, 0.99))
                correct.append((hard + rng.standard_normal(n)) / np.sqrt(2) < level)
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    table["accuracy"] = np.mean(correct, axis=1)
    return Evaluation(table, np.array(correct), computed=0)


# --- Adversarial against common robustness -------------------------------------------------------


def test_gains_halves_and_overlaps_by_hand() -> None:
    """PGD gains .1 of a's .4 and loses .1 of b's .2; a brings .1, b loses .1 of PGD's own .4."""
    (found,) = dependences(evaluation(ACCURACY), ["pgd"], ["a", "b", "c"], normalise="raw")
    table = found.table(margin=0.1).set_index("corruption")
    np.testing.assert_allclose(table["gain"], [0.1, -0.1, 0], atol=1e-6)
    np.testing.assert_allclose(table["own_gain"], [0.4, 0.2, 0], atol=1e-6)
    np.testing.assert_allclose(table["own_gain_attack"], 0.4, atol=1e-6)
    np.testing.assert_allclose(table["from_attack"], [0.25, -0.5, np.nan], atol=1e-6)
    np.testing.assert_allclose(table["to_attack"], [0.25, -0.25, 0], atol=1e-6)
    np.testing.assert_allclose(table["overlap"], [0.25, -0.375, np.nan], atol=1e-6)
    assert table["verdict"].tolist() == ["linked", "antagonistic", "no score"]
    assert table.loc["c", ["low", "high", "p", "p_holm"]].isna().all()
    assert (table["seeds"] == 3).all()
    assert (table["n"] == 400).all()


def test_halves_are_of_accuracies_relative_to_clean() -> None:
    """With .5 clean instead of .8, PGD has R(a) = .5 / .5, where standard has .4 / .8."""
    lower = {**ACCURACY, "pgd": {**ACCURACY["pgd"], "clean": 0.5}}
    (found,) = dependences(evaluation(lower), ["pgd"], ["a"])
    assert found.table(margin=0.1).loc[0, "from_attack"] == pytest.approx(0.5 / 0.5, abs=1e-6)
    assert found.table(margin=0.1).loc[0, "gain"] == pytest.approx(0.1, abs=1e-6)


def test_it_agrees_with_the_matrix_of_all_overlaps() -> None:
    """The same pairs as rows and columns of one matrix, by the code of the overlapping score."""
    rng = np.random.default_rng(3)
    names = ["adversarial", "a", "b"]
    drawn = {
        recipe: {"clean": 0.9} | {name: float(rng.uniform(0.3, 0.9)) for name in names}
        for recipe in ["standard", "pgd", "a", "b"]
    }
    for recipe, name in (("pgd", "adversarial"), ("a", "a"), ("b", "b")):
        drawn["standard"][name], drawn[recipe][name] = 0.3, 0.8
    whole = evaluation(drawn, rng=rng, spread=0.01)
    correct = whole.per_seed(["standard", "pgd", "a", "b"], ["clean", *names])
    for normalise in overlap.NORMALISATIONS:
        expected = overlap.signed_overlaps(correct, normalise)[0, [1, 2]].interval()
        (found,) = dependences(whole, ["pgd"], ["a", "b"], normalise=normalise)
        table = found.table(margin=0.1)
        np.testing.assert_allclose(table["overlap"], expected.estimate)
        np.testing.assert_allclose(table["low"], expected.low)
        np.testing.assert_allclose(table["high"], expected.high)


def test_a_corruption_that_nothing_was_trained_with_has_a_gain_but_no_score() -> None:
    accuracy = {name: ACCURACY[name] for name in ("standard", "pgd", "a")}
    (found,) = dependences(evaluation(accuracy), ["pgd"], ["b", "a"])
    table = found.table(margin=0.1)
    assert table["gain"].tolist() == pytest.approx([-0.1, 0.1], abs=1e-6)
    assert table["verdict"].tolist() == ["no score", "linked"]
    assert table["own_gain"].isna().tolist() == [True, False]


def test_one_seed_speaks_of_these_models_only() -> None:
    (found,) = dependences(evaluation(ACCURACY, seeds=1), ["pgd"], ["a", "b", "c"])
    table = found.table(margin=0.1)
    assert table["verdict"].tolist() == [ONE_SEED, ONE_SEED, "no score"]


def related(shares: Mapping[str, float], own: float = 0.3) -> Accuracies:
    """Accuracies of which each corruption's signed overlap with the attack is its share."""
    standard = {"clean": 0.95, "adversarial": 0.4, **dict.fromkeys(shares, 0.4)}
    attacked = {"adversarial": 0.4 + own} | {name: 0.4 + own * s for name, s in shares.items()}
    single = {
        name: {"clean": 0.95, "adversarial": 0.4 + own * share, name: 0.4 + own}
        for name, share in shares.items()
    }
    return {"standard": standard, "pgd": {**standard, **attacked}, **single}


class Drawn(Evaluation):
    """Looks up what is asked for, without the checks, which take most of a simulation's time."""

    def per_seed(self, recipes: Sequence[str], perturbations: Sequence[str]) -> np.ndarray:
        places = self.table.groupby(["recipe", "perturbation"]).indices
        rows = [[places[pair] for pair in itertools.product([r], perturbations)] for r in recipes]
        return np.moveaxis(self.correct[np.array(rows)], 2, 0)


def simulated(
    shares: Mapping[str, float], *, runs: int, margin: float, seeds: int, n: int, seed: int
) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    tables = []
    for _ in range(runs):
        drawn = evaluation(related(shares), seeds=seeds, n=n, rng=rng, spread=0.01)
        drawn = Drawn(drawn.table, drawn.correct, computed=0)
        tables += [d.table(margin=margin) for d in dependences(drawn, ["pgd"], list(shares))]
    return pd.concat(tables, ignore_index=True)


def test_verdicts_know_the_truth() -> None:
    """Where the truth is clear it is found, and seldom anything else."""
    truth = {"linked": 0.7, "antagonistic": -0.7, "independent": 0.0}
    shares = {f"{kind} {i}": share for kind, share in truth.items() for i in range(20)}
    table = simulated(shares, runs=4, margin=0.25, seeds=4, n=1000, seed=5)
    kind = table["corruption"].str.split().str[0]
    for verdict, found_at_least in (("verdict", 0.8), ("verdict_holm", 0.5)):
        right = (table[verdict] == kind).groupby(kind).mean()
        wrong = (table[verdict] != kind) & (table[verdict] != "undecided")
        assert (right > found_at_least).all(), (verdict, right)
        assert wrong.mean() < 0.02


def test_equivalence_keeps_its_size_at_the_margin() -> None:
    """An overlap of just the margin is called independent in about 5 % of the pairs, or less."""
    table = simulated(
        {f"c{i}": 0.3 for i in range(50)}, runs=10, margin=0.3, seeds=3, n=600, seed=6
    )
    assert 0 < (table["verdict"] == "independent").mean() < 0.08
    assert table["verdict"].isin(["linked", "antagonistic"]).mean() < 0.05
    by_run = (table["verdict_holm"] != "undecided").groupby(table.index // 50).any()
    assert by_run.mean() < 0.2  # Holm's 5 % for a family, of 10


def test_the_mean_overlap_is_that_of_the_pairs_with_a_score() -> None:
    """By hand (.25 - .375) / 2; its interval by the jackknife of that function of accuracies."""
    (found,) = dependences(evaluation(ACCURACY), ["pgd"], ["a", "b", "c"], normalise="raw")
    assert found.mean_overlap(["a", "b", "c", "d"]).value == pytest.approx(-0.0625, abs=1e-6)
    assert found.mean_overlap(["a"]).value == pytest.approx(0.25, abs=1e-6)
    with pytest.raises(ValueError, match="with a score is empty"):
        found.mean_overlap(["c"])

    shares = {"a": 0.5, "b": -0.2, "c": 0.1}
    related_to = related(shares)
    accuracy = {recipe: {**related_to["standard"], **related_to[recipe]} for recipe in related_to}
    drawn = evaluation(accuracy, n=2000, rng=np.random.default_rng(4), spread=0.01)
    (found,) = dependences(drawn, ["pgd"], list(shares))
    interval = found.mean_overlap(list(shares)).interval()

    def mean(values: np.ndarray) -> np.ndarray:
        halves = overlap.directed(values, "ratio", 0.0)
        return (halves[..., 0, 1:] + halves[..., 1:, 0]).mean(axis=-1) / 2

    correct = drawn.per_seed(["standard", "pgd", *shares], ["clean", "adversarial", *shares])
    expected = crossed_intervals(mean, correct)
    assert interval.estimate == pytest.approx(expected.estimate)
    assert interval.low == pytest.approx(expected.low, abs=0.1 * (expected.high - expected.low))
    assert interval.high == pytest.approx(expected.high, abs=0.1 * (expected.high - expected.low))


def test_pairs_that_can_t_be_judged_are_refused() -> None:
    whole = evaluation(ACCURACY)
    (found,) = dependences(whole, ["pgd"], ["a"])
    for margin in (0, -0.1):
        with pytest.raises(ValueError, match="margin"):
            found.table(margin=margin)
    with pytest.raises(ValueError, match="not evaluated"):
        dependences(whole, ["fgsm"], ["a"])
    with pytest.raises(ValueError, match="trains with a corruption alone"):
        dependences(whole.where(~whole.table["recipe"].isin(["a", "b", "c"])), ["pgd"], ["a"])
    with pytest.raises(ValueError, match="Did you mean 'ratio'"):
        dependences(whole, ["pgd"], ["a"], normalise="rato")


def test_evaluations_of_different_models_are_joined() -> None:
    whole = evaluation(ACCURACY)
    of_pgd = whole.table["recipe"] == "pgd"
    parts = [whole.where(~of_pgd), whole.where(of_pgd)]
    together = independence.joined(parts)
    recipes = ["standard", "pgd"]
    np.testing.assert_array_equal(
        together.per_seed(recipes, ["clean", "a"]), whole.per_seed(recipes, ["clean", "a"])
    )
    with pytest.raises(ValueError, match="repeats"):
        independence.joined([whole, parts[1]])
    with pytest.raises(ValueError, match=r"same images, got \[300, 400\]"):
        independence.joined([parts[0], evaluation(ACCURACY, n=300).where(of_pgd)])


# --- Training on chosen corruptions ---------------------------------------------------------------


def square(**pairs: float) -> pd.DataFrame:
    """Overlaps by pair of one-letter names, such as ab=0.5; 0 for pairs that aren't given."""
    names = sorted(set("".join(pairs)))
    frame = pd.DataFrame(np.eye(len(names)), index=names, columns=names)
    for (first, second), value in pairs.items():
        frame.loc[first, second] = frame.loc[second, first] = value
    return frame


def members(sets: pd.DataFrame, name: str, seed: int) -> list[str]:
    chosen = (sets["set"] == name) & (sets["training_seed"] == seed)
    return sets.loc[chosen, "corruption"].tolist()


def test_each_seed_has_the_set_that_the_others_choose() -> None:
    """a covers b and c by what seed 0 may know, d covers b and c by seed 1; e has no score."""
    overlaps = {0: square(ab=0.4, ac=0.4, bd=0), 1: square(bc=0, bd=0.4, cd=0.4, ab=0)}
    sets = training_sets(overlaps, list("dcbae"), size=2, random_sets=3, limit=0.3)
    assert members(sets, "chosen", 0) == ["d", "a"]
    assert members(sets, "chosen", 1) == ["d", "a"]
    alike = training_sets(overlaps, list("cbae"), size=1, random_sets=3, limit=0.3)
    assert members(alike, "chosen", 0) == ["a"]
    assert members(alike, "chosen", 1) in (["a"], ["b"], ["c"])  # none covers another
    assert members(sets, "all", 1) == list("dcbae")
    drawn = [tuple(members(sets, f"random {i}", 0)) for i in (1, 2, 3)]
    assert len(set(drawn)) == 3
    assert all(len(names) == 2 and set(names) < set("abcde") for names in drawn)
    assert drawn == [tuple(members(sets, f"random {i}", 1)) for i in (1, 2, 3)]
    again = training_sets(overlaps, list("dcbae"), size=2, random_sets=3, limit=0.3)
    pd.testing.assert_frame_equal(sets, again)


def test_sets_that_can_t_be_made_are_refused() -> None:
    overlaps = {0: square(ab=0.9, ac=0.9, bc=0.9)}
    arguments = {"size": 2, "random_sets": 2, "limit": 0.5}
    with pytest.raises(ValueError, match="at most 1 do"):
        training_sets(overlaps, list("abc"), **arguments)
    with pytest.raises(ValueError, match="1 of 3 candidates have an overlapping score"):
        training_sets(overlaps, list("axy"), **arguments)
    with pytest.raises(ValueError, match="size of a set"):
        training_sets(overlaps, list("ab"), **arguments)
    with pytest.raises(ValueError, match="number of random sets"):
        training_sets(overlaps, list("abc"), **{**arguments, "random_sets": 4})


def test_unlike_is_below_the_limit_with_every_member() -> None:
    overlaps = square(au=0.4, bu=0.1, av=0.2, bv=0.3, aw=0, bw=0.5)
    assert unlike(overlaps, ["a", "b"], list("uvwx"), limit=0.45) == ["u", "v"]
    assert unlike(overlaps, ["a"], list("uvwx"), limit=0.4) == ["v", "w"]
    assert unlike(overlaps, ["a", "x"], list("uvw"), limit=0.4) == []


def test_overlaps_owe_nothing_to_the_seed_left_out() -> None:
    def of(accuracies: Mapping[int, Accuracies]) -> Evaluation:
        parts = []
        for seed, accuracy in accuracies.items():
            whole = evaluation(accuracy, seeds=max(accuracies) + 1)
            parts.append(whole.where(whole.table["training_seed"] == seed))
        return independence.joined(parts)

    few: Accuracies = {
        "standard": {"clean": 0.8, "a": 0.4, "b": 0.4},
        "a": {"clean": 0.8, "a": 0.8, "b": 0.6},
        "b": {"clean": 0.8, "a": 0.6, "b": 0.8},
    }
    less = {**few, "a": {**few["a"], "b": 0.5}, "b": {**few["b"], "a": 0.5}}
    record = of({0: few, 1: less, 2: few})
    for left_out, expected in ((1, 0.5), (2, 0.375), (7, 0.5 * 2 / 3 + 0.25 / 3)):
        found = independence.overlaps_without(record, left_out, ["a", "b", "x"])
        np.testing.assert_allclose(found, [[1, expected], [expected, 1]], atol=1e-6)
        assert list(found.index) == ["a", "b"]
    with pytest.raises(ValueError, match=r"training seed 1 only.*choose other 'seeds'"):
        independence.overlaps_without(of({1: few}), 1, ["a", "b"])
    with pytest.raises(ValueError, match="that the atlas has is empty"):
        independence.overlaps_without(record, 1, ["x"])


def test_without_an_own_gain_there_is_no_overlap_to_choose_by() -> None:
    found = independence.overlaps_without(evaluation(related({"a": 0.5})), 0, ["a"])
    assert found.loc["a", "a"] == 1
    flat = evaluation(related({"a": 0.5}, own=0.005), n=4000)
    assert independence.overlaps_without(flat, 0, ["a"]).empty
    with pytest.raises(ValueError, match="without NaN"):
        independence.overlaps_without(evaluation(related({"a": 0.5, "b": 0.5})), 0, ["a", "b"])


def test_mean_gains_by_hand() -> None:
    """Corruptions that count differ by seed: a for seed 0, a and b for seed 1."""
    accuracy = {
        "standard": {"clean": 0.8, "a": 0.3, "b": 0.5},
        "one": {"clean": 0.8, "a": 0.5, "b": 0.5},
        "two": {"clean": 0.8, "a": 0.6, "b": 0.4},
    }
    whole = evaluation(accuracy, seeds=2)
    counted = {0: ["a"], 1: ["a", "b"]}
    found = mean_gain(whole, "one", {"standard": counted})
    assert found.value == pytest.approx((0.2 + 0.1) / 2)
    assert found.seeds == 2
    assert found.images == 400
    both = mean_gain(whole, "one", {"standard": counted, "two": {0: ["b"], 1: ["b"]}})
    assert both.value == pytest.approx(((0.2 + 0.1) / 2 + 0.1) / 2)
    for wrong in ({0: ["a"], 1: []}, {0: [], 1: []}):
        with pytest.raises(ValueError, match="needs corruptions to be compared on"):
            mean_gain(whole, "one", {"standard": wrong})
    with pytest.raises(ValueError, match="Did you mean 'two'"):
        mean_gain(whole, "one", {"tow": counted})
