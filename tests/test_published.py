"""Published accuracies: the table, and what is computed from it, by hand and by simulation."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from benchmarks import published as table_script
from robustlib import corruptions
from robustlib.analysis import published
from robustlib.analysis.atlas import atlas
from robustlib.core import paths
from robustlib.core.checks import UnknownNameError
from robustlib.study import results

TABLE = pd.read_csv(paths.project_root() / published.FILE)
FIFTEEN = list(corruptions.names("imagenet_c_15"))


def symmetric(values: list[float], names: str = "abcd") -> pd.DataFrame:
    """A matrix with ones on the diagonal and these entries above it, row by row."""
    matrix = np.eye(len(names))
    matrix[np.triu_indices(len(names), 1)] = values
    return pd.DataFrame(np.maximum(matrix, matrix.T), index=list(names), columns=list(names))


def random_symmetric(rng: np.random.Generator, names: str) -> pd.DataFrame:
    """Similarities of names that have a few hidden properties each, as corruptions do."""
    hidden = rng.normal(size=(len(names), 2))
    return pd.DataFrame(hidden @ hidden.T, index=list(names), columns=list(names))


# --- The table -----------------------------------------------------------------------------------


def test_the_table_is_whole() -> None:
    assert tuple(TABLE) == published.COLUMNS
    models = TABLE.drop_duplicates(["source", "data", "model"])
    assert models.groupby(["source", "data"]).size().to_dict() == {
        ("Kireev2022", "cifar10"): 12,
        ("Kireev2022", "imagenet100"): 11,
        ("RobustBench", "cifar10"): 23,
        ("RobustBench", "cifar100"): 13,
        ("RobustBench", "imagenet"): 12,
    }
    assert set(TABLE["corruption"]) == {"clean", *FIFTEEN}
    assert TABLE["corruption"].value_counts()[FIFTEEN].eq(71).all()
    assert TABLE["accuracy"].between(0.05, 1).all()
    keys = list(published.COLUMNS[:-1])
    assert TABLE[keys].equals(TABLE[keys].sort_values(keys, ignore_index=True))
    assert not TABLE.duplicated(keys).any()


@pytest.mark.parametrize(
    ("data", "source", "models", "papers"),
    [
        ("cifar10", "RobustBench", 23, 11),
        ("cifar10", "Kireev2022", 12, 1),
        ("cifar10", None, 31, 11),
        ("cifar100", None, 13, 7),
        ("imagenet", "RobustBench", 12, 8),
        ("imagenet100", None, 11, 1),
    ],
)
def test_load(data: str, source: str | None, models: int, papers: int) -> None:
    accuracy = published.load(data, source)
    assert accuracy.shape == (models, 16)
    assert sorted(accuracy) == sorted(["clean", *FIFTEEN])
    assert accuracy.index.names == ["paper", "model"]
    assert accuracy.index.get_level_values("paper").nunique() == papers
    assert accuracy[FIFTEEN].notna().all(axis=None)
    assert accuracy["clean"].notna().sum() == (0 if source == "Kireev2022" else models) * (
        data != "imagenet100"
    ) - 8 * (data == "cifar10" and source is None)


def test_a_model_that_both_sources_list_counts_once() -> None:
    table = TABLE[TABLE["data"] == "cifar10"]
    wide = table.pivot(index=["source", "model"], columns="corruption", values="accuracy")[FIFTEEN]
    theirs, ours = wide.loc["Kireev2022"], wide.loc["RobustBench"]
    distance = np.abs(theirs.to_numpy()[:, None] - ours.to_numpy()).max(axis=-1).min(axis=-1)
    same = theirs.index[distance < 1e-4]
    assert sorted(same) == sorted(published.LISTED_TWICE)
    assert distance[~theirs.index.isin(same)].min() > 0.01
    models = published.load("cifar10").index.get_level_values("model")
    assert not models.isin(published.LISTED_TWICE).any()
    assert set(published.LISTED_TWICE) < set(
        published.load("cifar10", "Kireev2022").index.get_level_values("model")
    )


def test_a_misspelt_name_suggests_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'cifar10'"):
        published.load("cifar1O")
    with pytest.raises(UnknownNameError, match="Did you mean 'RobustBench'"):
        published.load("cifar10", "robustbench")
    with pytest.raises(UnknownNameError, match=r"accuracies on cifar100 'Kireev2022'.*RobustBench"):
        published.load("cifar100", "Kireev2022")
    with pytest.raises(UnknownNameError, match="imagenet100"):
        published.adversarial_gains("imagenet")


def test_without_the_checkout_it_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "project_root", lambda: tmp_path)
    with pytest.raises(FileNotFoundError, match="part of the checkout"):
        published.load("cifar10")


# --- Correlations over models --------------------------------------------------------------------


def test_correlations_on_cifar10() -> None:
    found = published.correlation(published.load("cifar10", "RobustBench"))
    assert found.loc["defocus_blur", "motion_blur"] == pytest.approx(0.994, abs=5e-4)
    assert found.loc["fog", "contrast"] == pytest.approx(0.982, abs=5e-4)
    assert found.loc["gaussian_noise", "fog"] == pytest.approx(-0.014, abs=5e-4)
    assert published.effective_rank(found) == pytest.approx(2.34, abs=5e-3)


def test_correlation_is_that_of_pandas() -> None:
    accuracy = published.load("imagenet")
    found = published.correlation(accuracy)
    pd.testing.assert_frame_equal(found, accuracy.drop(columns="clean").corr())


def test_partial_correlation_is_that_of_residuals() -> None:
    accuracy = published.load("cifar10", "RobustBench").drop(columns="clean")
    level = accuracy.mean(axis=1)
    residuals = pd.DataFrame(
        {
            name: values - np.polyval(np.polyfit(level, values, 1), level)
            for name, values in accuracy.items()
        }
    )
    found = published.correlation(accuracy, partial=True)
    np.testing.assert_allclose(found, residuals.corr(), atol=1e-9)


def test_the_general_level_hides_what_partial_correlation_finds() -> None:
    """Two pairs with a property each, under a level that all four corruptions share."""
    rng = np.random.default_rng(0)
    level, noise, fog = rng.normal(size=(3, 2000, 1)) * [[[3]], [[1]], [[1]]]
    own = rng.normal(size=(2000, 4)) * 0.5
    values = level * [1, 1, 1, 1] + noise * [1, 1, 0, 0] + fog * [0, 0, 1, 1] + own
    accuracy = pd.DataFrame(values, columns=list("abcd"))
    plain, partial = (published.correlation(accuracy, partial=flag) for flag in (False, True))
    assert plain.to_numpy().min() > 0.8
    assert partial.loc["a", "b"] > 0.5
    assert partial.loc["c", "d"] > 0.5
    assert partial.loc["a", "c"] < -0.5


def test_correlation_refuses_what_has_none() -> None:
    accuracy = pd.DataFrame({"a": [0.1, 0.2, 0.4], "b": [0.3, 0.1, 0.2], "c": [0.5, 0.5, 0.5]})
    with pytest.raises(ValueError, match="with c: the same for all models"):
        published.correlation(accuracy)
    with pytest.raises(ValueError, match="with c: following the general level"):
        published.correlation(accuracy.assign(c=accuracy[["a", "b"]].mean(axis=1)), partial=True)
    with pytest.raises(ValueError, match=r"missing \(NaN\) for b"):
        published.correlation(accuracy.assign(b=[0.1, np.nan, 0.2]))
    with pytest.raises(ValueError, match="three models or more"):
        published.correlation(accuracy.iloc[:2])
    with pytest.raises(ValueError, match="3 corruptions or more"):
        published.correlation(accuracy[["a", "b"]], partial=True)


def test_effective_rank_by_hand() -> None:
    """Eigenvalues 1.5 and 0.5: shares 3/4 and 1/4, and (3/4)^(-3/4) (1/4)^(-1/4) = 1.754765."""
    assert published.effective_rank(symmetric([0.5], "ab")) == pytest.approx(1.754765)
    assert published.effective_rank(symmetric([0] * 6)) == pytest.approx(4)
    assert published.effective_rank(symmetric([1] * 6)) == pytest.approx(1)
    assert published.effective_rank(symmetric([1, 0, 0, 0, 0, 1])) == pytest.approx(2)


def test_effective_rank_refuses_other_matrices() -> None:
    with pytest.raises(ValueError, match=r"an eigenvalue is -0\.5"):
        published.effective_rank(symmetric([1.5], "ab"))
    with pytest.raises(ValueError, match="NaN"):
        published.effective_rank(symmetric([0.5], "ab").replace(0.5, np.nan))


# --- Mantel test ---------------------------------------------------------------------------------


def test_mantel_by_hand() -> None:
    """Ranks 1 to 6 against 2 1 3 4 6 5: 1 - 6 * 4 / 210. No other order of the names does as well
    as the right one, which is one of 24, in a matrix of six different entries beside itself."""
    first = symmetric([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    second = symmetric([0.2, 0.1, 0.3, 0.4, 0.9, 0.5])
    assert published.mantel(first, second).r == pytest.approx(1 - 24 / 210)
    same = published.mantel(first, first, method="pearson")
    assert same.r == pytest.approx(1)
    assert same.p == pytest.approx(1 / 24, abs=0.01)
    assert same.names == ("a", "b", "c", "d")


@pytest.mark.parametrize("method", ["spearman", "pearson"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_mantel_is_the_full_enumeration(method: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    names = "abcdef"
    first = random_symmetric(rng, names)
    second = first + 2 * random_symmetric(rng, names)
    pairs = list(itertools.combinations(range(6), 2))
    correlate = stats.spearmanr if method == "spearman" else stats.pearsonr

    def r(order: tuple[int, ...]) -> float:
        one = [first.iloc[i, j] for i, j in pairs]
        return float(correlate(one, [second.iloc[order[i], order[j]] for i, j in pairs]).statistic)

    right = r(tuple(range(6)))
    exact = np.mean([r(order) >= right - 1e-9 for order in itertools.permutations(range(6))])
    found = published.mantel(first, second, method=method)
    assert found.r == pytest.approx(right)
    assert found.p == pytest.approx(exact, abs=0.02)


def test_mantel_knows_names_not_positions() -> None:
    rng = np.random.default_rng(3)
    first, second = random_symmetric(rng, "abcdefg"), random_symmetric(rng, "abcdefg")
    shuffled = list("gcabfed")
    found = published.mantel(first, second.loc[shuffled, shuffled])
    assert found == published.mantel(first, second)


def test_mantel_has_its_size_and_power() -> None:
    """At 5 %, on names with hidden properties: 400 unrelated pairs, 100 related ones."""
    rng = np.random.default_rng(4)
    names = "abcdefghijkl"

    def rejected(weight: float, runs: int) -> float:
        tests = []
        for seed in range(runs):
            first, other = random_symmetric(rng, names), random_symmetric(rng, names)
            second = weight * first + other
            tests.append(published.mantel(first, second, permutations=199, seed=seed).p <= 0.05)
        return float(np.mean(tests))

    assert rejected(0, 400) == pytest.approx(0.05, abs=0.03)
    assert rejected(1, 100) > 0.9


def test_mantel_is_one_sided() -> None:
    first = random_symmetric(np.random.default_rng(5), "abcdefgh")
    found = published.mantel(first, -first)
    assert found.r == pytest.approx(-1)
    assert found.p == 1


def test_mantel_drops_corruptions_without_a_score() -> None:
    rng = np.random.default_rng(6)
    first, second = random_symmetric(rng, "abcdef"), random_symmetric(rng, "abcdef")
    holed = first.copy()
    holed.loc["c"] = holed["c"] = np.nan
    other = second.copy()
    other.loc["e"] = other["e"] = np.nan
    other.loc["e", "e"] = 1
    found = published.mantel(holed, other)
    kept = list("abdf")
    assert found.names == tuple(kept)
    assert found == published.mantel(first.loc[kept, kept], second.loc[kept, kept])


def test_mantel_refuses() -> None:
    rng = np.random.default_rng(7)
    first, second = random_symmetric(rng, "abcde"), random_symmetric(rng, "abcde")
    holed = second.copy()
    holed.loc["a", "d"] = holed.loc["d", "a"] = np.nan
    with pytest.raises(ValueError, match="1 entries are NaN, such as that of a and d"):
        published.mantel(first, holed)
    with pytest.raises(ValueError, match="isn't symmetric"):
        published.mantel(first, second + np.arange(5))
    with pytest.raises(ValueError, match="only one of them has e"):
        published.mantel(first.loc[list("abcd"), list("abcd")], second)
    with pytest.raises(ValueError, match="needs four names"):
        published.mantel(*(m.loc[list("abc"), list("abc")] for m in (first, second)))
    with pytest.raises(ValueError, match="same names as rows and as columns"):
        published.mantel(first, second.loc[list("bacde")])
    with pytest.raises(ValueError, match="all entries of a matrix are the same"):
        published.mantel(first, symmetric([0.5] * 10, "abcde"))
    with pytest.raises(UnknownNameError, match="Did you mean 'pearson'"):
        published.mantel(first, second, method="Pearson")
    with pytest.raises(ValueError, match="permutations must be an integer of at least 1"):
        published.mantel(first, second, permutations=0)


# --- Interval over papers ------------------------------------------------------------------------


def models_of(papers: list[int]) -> pd.MultiIndex:
    names = np.repeat([f"paper {i}" for i in range(len(papers))], papers)
    return pd.MultiIndex.from_arrays([names, np.arange(len(names))], names=["paper", "model"])


def test_jackknife_of_a_mean_is_students_interval() -> None:
    """Five papers of one model: as Student's, but with a degree of freedom less, 5 - 2 = 3."""
    values = [0.1, 0.4, 0.3, 0.6, 0.2]
    accuracy = pd.DataFrame({"fog": values}, index=models_of([1] * 5))
    found = published.jackknife_interval(accuracy, lambda frame: frame["fog"].mean())
    half = 3.182446 * np.std(values, ddof=1) / np.sqrt(5)
    assert found == pytest.approx((0.32, 0.32 - half, 0.32 + half))


def test_the_jackknife_leaves_out_whole_papers() -> None:
    """Copies of a model add nothing: the interval is that of the papers."""
    values = np.array([0.1, 0.4, 0.3, 0.6, 0.2])
    accuracy = pd.DataFrame({"fog": values.repeat(3)}, index=models_of([3] * 5))
    single = pd.DataFrame({"fog": values}, index=models_of([1] * 5))
    found, wanted = (
        published.jackknife_interval(frame, lambda frame: frame["fog"].mean())
        for frame in (accuracy, single)
    )
    assert found == pytest.approx(wanted)


def test_the_jackknife_covers_what_it_claims() -> None:
    """Models of eleven papers, as many each as RobustBench has; those of a paper resemble each
    other. The statistic is the rank correlation of fixed similarities with the correlations."""
    rng = np.random.default_rng(0)
    accuracy = published.load("cifar10", "RobustBench").drop(columns="clean")
    truth = published.correlation(accuracy).to_numpy()
    above = np.triu_indices(15, 1)
    noise = rng.normal(size=len(above[0]))
    similarity = stats.rankdata(truth[above] + truth[above].std() * noise)
    wanted = np.corrcoef(similarity, stats.rankdata(truth[above]))[0, 1]

    def statistic(frame: pd.DataFrame) -> float:
        found = np.corrcoef(frame.to_numpy(), rowvar=False)[above]
        return float(np.corrcoef(similarity, stats.rankdata(found))[0, 1])

    papers = accuracy.index.codes[0]
    covered = []
    for _ in range(400):
        shared = rng.multivariate_normal(np.zeros(15), truth, size=11, method="eigh")[papers]
        own = rng.multivariate_normal(np.zeros(15), truth, size=23, method="eigh")
        drawn = pd.DataFrame(shared + own, index=accuracy.index)
        _, low, high = published.jackknife_interval(drawn, statistic)
        covered.append(low <= wanted <= high)
    assert 0.93 <= np.mean(covered) <= 0.99


def test_the_jackknife_refuses_too_few_papers() -> None:
    one_paper = published.load("imagenet100")
    with pytest.raises(ValueError, match=r"11 models of 1 papers \(1.0 effective ones\)"):
        published.jackknife_interval(one_paper, lambda frame: 0.0)
    with pytest.raises(ValueError, match='indexed by "paper"'):
        published.jackknife_interval(one_paper.droplevel("paper"), lambda frame: 0.0)
    with pytest.raises(ValueError, match="confidence"):
        published.jackknife_interval(one_paper, lambda frame: 0.0, confidence=95)


# --- Adversarial training ------------------------------------------------------------------------


def test_adversarial_gains_at_1_255() -> None:
    accuracy = published.load("cifar10", "Kireev2022").droplevel("paper")
    stated = {
        "gaussian_noise": (47, 83),
        "jpeg_compression": (79, 90),
        "fog": (88 + 1, 76 - 1),  # 88.5 and 75.5
        "contrast": (76, 59),
    }
    gains = published.adversarial_gains("cifar10").loc[("linf-at-eps=1.0/255", "standard")]
    for name, (before, after) in stated.items():
        was, is_now = 100 * accuracy.loc[["standard", "linf-at-eps=1.0/255"], name]
        assert (was, is_now) == pytest.approx((before, after), abs=0.51)
        assert gains[name] == pytest.approx(is_now - was)
    assert gains["gaussian_noise"] == pytest.approx(36.3)
    assert gains["fog"] == pytest.approx(-13.066)


@pytest.mark.parametrize("data", published.ADVERSARIAL)
def test_adversarial_gains_have_a_row_for_each_model(data: str) -> None:
    gains = published.adversarial_gains(data)
    assert dict(gains.index.tolist()) == published.ADVERSARIAL[data]
    assert sorted(gains) == sorted(FIFTEEN)
    assert gains["jpeg_compression"].gt(0).all()
    assert gains["contrast"].lt(0).all()


def test_our_gains_beside_theirs() -> None:
    ours = pd.DataFrame(
        {"gain": [5, -2, 1.5], "low": [4, -3, 1], "high": [6, -1, 2]},
        index=["gaussian_noise", "jpeg_compression", "hue"],
    )
    found = published.beside_kireev(ours)
    pd.testing.assert_frame_equal(found[list(ours)], ours)
    assert found["kireev"].tolist() == pytest.approx([36.3, 11.03, np.nan], nan_ok=True)
    assert found["agreement"].tolist() == ["agree", "differ", "undecided"]
    open_ours = ours.assign(low=-3.0, high=3.0)
    assert set(published.beside_kireev(open_ours)["agreement"]) == {"undecided"}
    assert published.beside_kireev(ours, margin=12)["agreement"].iloc[1] == "undecided"
    assert published.beside_kireev(ours, "rlat-eps=0.05-augmix")["kireev"].iloc[0] < 36.3
    with pytest.raises(UnknownNameError, match=r"Did you mean 'linf-at-eps=1.0/255'"):
        published.beside_kireev(ours, "linf-at-eps=1/255")
    with pytest.raises(ValueError, match="columns gain, low and high, in points; low, high miss"):
        published.beside_kireev(ours[["gain"]])
    with pytest.raises(ValueError, match="repeats an entry"):
        published.beside_kireev(pd.concat([ours, ours]))
    with pytest.raises(ValueError, match="no corruption in common"):
        published.beside_kireev(ours[2:])
    with pytest.raises(ValueError, match="margin"):
        published.beside_kireev(ours, margin=-1)


def test_signs_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six corruptions: both gain, opposite, ours open, theirs small, both lose, only ours."""
    names = ["noise", "jpeg", "blur", "snow", "fog", "hue"]
    gain = [5, -2, 1, 3, -4, 9]
    ours = pd.DataFrame({"gain": gain, "low": [4, -3, -1, 2, -5, 8]}, index=names)
    ours["high"] = [6, -1, 3, 4, -3, 10]
    theirs = pd.DataFrame(
        [[30, 10, 7, 0.5, -9]],
        index=pd.MultiIndex.from_tuples([("at", "standard")], names=["model", "reference"]),
        columns=names[:5],
    )
    monkeypatch.setattr(
        published, "adversarial_gains", {"cifar10": theirs, "imagenet100": -theirs}.get
    )
    found = published.signs(ours)
    assert list(found)[:5] == ["data", "model", "reference", "corruption", "theirs"]
    assert list(found)[5:] == ["gain", "low", "high", "agreement"]
    assert found["corruption"].tolist() == 2 * names[:5]
    assert found["theirs"].tolist() == [30, 10, 7, 0.5, -9, -30, -10, -7, -0.5, 9]
    assert found["gain"].tolist() == 2 * gain[:5]
    here = found.loc[found["data"] == "cifar10", "agreement"].tolist()
    there = found.loc[found["data"] == "imagenet100", "agreement"].tolist()
    assert here == ["agree", "differ", "undecided", "undecided", "agree"]
    assert there == ["differ", "agree", "undecided", "undecided", "differ"]
    assert published.signs(ours, margin=0.4)["agreement"].iloc[3] == "agree"
    assert published.signs(ours, margin=20)["agreement"].iloc[4] == "undecided"


def test_signs_of_all_their_models() -> None:
    ours = pd.DataFrame({"gain": -1.0, "low": -2.0, "high": -0.5}, index=FIFTEEN)
    found = published.signs(ours)
    models = found[["data", "model", "reference"]].drop_duplicates()
    assert [tuple(row) for row in models.to_numpy()] == [
        (data, model, reference)
        for data, pairs in published.ADVERSARIAL.items()
        for model, reference in pairs.items()
    ]
    assert len(found) == 12 * 15
    assert found.loc[found["corruption"] == "contrast", "agreement"].isin(["agree"]).any()
    assert not (found["agreement"] == "agree")[found["theirs"] > 0].any()
    zero = published.signs(ours.assign(low=-2.0, high=0.0))
    assert zero["agreement"].eq("undecided").all(), "an interval that reaches 0 decides nothing"
    with pytest.raises(ValueError, match="no corruption in common"):
        published.signs(ours.set_axis([f"other {i}" for i in range(15)]))
    with pytest.raises(ValueError, match="margin"):
        published.signs(ours, margin=-1)
    with pytest.raises(ValueError, match="is empty"):
        published.signs(ours[:0])


# --- Tables of ours beside theirs ----------------------------------------------------------------


def test_overlaps_that_are_the_correlations_predict_them() -> None:
    accuracy = published.load("cifar100")[FIFTEEN]
    names = FIFTEEN[:8]
    perfect = published.correlation(accuracy).loc[names, names]
    found = published.predicted_correlations(perfect, "cifar100")
    assert list(found["predicted by"]) == 2 * [
        "our overlap",
        "models on cifar10",
        "models on imagenet",
        "models on imagenet100",
    ]
    assert list(found["correlation"]) == 4 * ["plain"] + 4 * ["general level out"]
    assert list(found["corruptions"]) == 2 * [8, 15, 15, 15]
    ours = found.iloc[0]
    assert (ours["r"], ours["high"]) == pytest.approx((1, 1))
    assert ours["low"] < 1
    assert ours["p"] < 0.01
    row = found.iloc[6]  # imagenet, general level out
    matrices = [
        published.correlation(published.load(data)[FIFTEEN], partial=True)
        for data in ("imagenet", "cifar100")
    ]
    test = published.mantel(*matrices)
    assert (row["r"], row["p"]) == pytest.approx((test.r, test.p))
    _, low, high = published.jackknife_interval(
        accuracy,
        lambda models: (
            published.mantel(
                matrices[0], published.correlation(models, partial=True), permutations=1
            ).r
        ),
    )
    assert (row["low"], row["high"]) == pytest.approx((low, min(1, high)))


def test_predicted_correlations_refuse() -> None:
    overlap = symmetric([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]).set_axis(FIFTEEN[:4])
    overlap = overlap.set_axis(FIFTEEN[:4], axis=1)
    with pytest.raises(ValueError, match=f"without a score, of {FIFTEEN[0]}, {FIFTEEN[1]}"):
        published.predicted_correlations(overlap.replace(0.1, np.nan), "cifar10")
    with pytest.raises(ValueError, match="too few for an interval"):
        published.predicted_correlations(overlap, "imagenet100")
    renamed = overlap.rename(index={"shot_noise": "shotnoise"}, columns={"shot_noise": "shotnoise"})
    with pytest.raises(UnknownNameError, match="Did you mean 'shot_noise'"):
        published.predicted_correlations(renamed, "cifar10")


def test_the_committed_tables_of_notebook_05_follow() -> None:
    """From the committed per-image results; ours with a mean that is taken here."""
    record = results.evaluation("cifar10", "overlap")
    whole = atlas(record)
    committed = results.committed("cifar10", "published_mantel")
    scored = [name for name in FIFTEEN if name in whole.scored]
    found = published.predicted_correlations(whole.overlap().loc[scored, scored], "cifar10")
    pd.testing.assert_frame_equal(found, committed, rtol=1e-5, check_dtype=False)
    beside = results.committed("cifar10", "adversarial_beside").set_index("index")
    assert list(beside.index) == FIFTEEN
    table = record.table.assign(accuracy=record.correct.mean(axis=1))
    accuracy = table.pivot_table(index="recipe", columns="perturbation", values="accuracy")[FIFTEEN]
    gain = 100 * (accuracy.loc["adversarial"] - accuracy.loc["standard"])
    assert beside["gain"].tolist() == pytest.approx(gain.tolist(), abs=1e-3)
    recomputed = published.beside_kireev(beside[["gain", "low", "high"]])
    pd.testing.assert_frame_equal(recomputed, beside, rtol=1e-5, check_dtype=False)


def test_our_accuracies_beside_those_of_robustbench() -> None:
    ours = pd.DataFrame(0.5, index=["plain", "mtlat"], columns=["clean", *FIFTEEN])
    ours.loc["mtlat", "fog"] = 0.8
    found = published.beside_robustbench(ours, "small network, radius 4/255")
    assert list(found) == ["source", "model", "clean", "mean", "differs"]
    assert found["source"].tolist() == 2 * ["this project"] + 2 * ["RobustBench"]
    assert found["model"].tolist()[:3] == ["plain", "mtlat", "Standard"]
    assert found["mean"].tolist()[:2] == pytest.approx([0.5, 0.52])
    assert found["clean"].tolist() == pytest.approx([0.5, 0.5, 0.9478, 0.9656])
    assert found["mean"].tolist()[2:] == pytest.approx([0.7346, 0.9278], abs=1e-3)
    assert found["differs"].tolist()[:2] == 2 * ["small network, radius 4/255"]
    assert (
        found["differs"].str.contains("WideResNet-28-10; all training images of CIFAR-10").sum()
        == 1
    )
    with pytest.raises(ValueError, match="a column for each of clean"):
        published.beside_robustbench(ours.drop(columns="clean"), "")
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        published.beside_robustbench(100 * ours, "")
    with pytest.raises(ValueError, match="without NaN"):
        published.beside_robustbench(ours.replace(0.8, np.nan), "")
    with pytest.raises(UnknownNameError, match="imagenet"):
        published.beside_robustbench(ours, "", "cifar100")


@pytest.mark.parametrize("data", published.ROBUSTBENCH)
def test_the_models_that_are_shown_are_standard_and_the_best(data: str) -> None:
    models = published.load(data, "RobustBench")[FIFTEEN].mean(axis=1).droplevel("paper")
    standard, best = published.ROBUSTBENCH[data]
    assert standard.startswith("Standard")
    assert models.idxmax() == best


# --- The script that makes the table -------------------------------------------------------------


def checkouts(folder: Path, *, stated: float = 50.0) -> tuple[Path, Path]:
    """Small ones of both repositories: two corruptions, whose means are 0.4 and 0.6."""
    levels = np.array([0.6, 0.5, 0.4, 0.3, 0.2])
    columns = pd.MultiIndex.from_product([["fog", "snow"], list("12345")])
    for data in table_script.DATA:
        place = folder / "bench" / "model_info" / data / "corruptions"
        place.mkdir(parents=True)
        row = pd.DataFrame(
            [[*levels, *(levels + 0.2)]], index=["Ada2020AllResNet"], columns=columns
        )
        row.to_csv(place / "unaggregated_results.csv")
        about = {"clean_acc": "90.5", "corruptions_acc": str(stated)}
        (place / "Ada2020All_ResNet.json").write_text(json.dumps(about))
    for data in ("cifar10", "imagenet100"):
        place = folder / "kireev" / "full_evaluation_results" / data
        place.mkdir(parents=True)
        rows = pd.DataFrame([levels, levels + 0.2], index=["fog", "snow"], columns=list("12345"))
        rows.loc["average"] = 0
        rows.assign(avg=0).to_csv(place / f"linf-at-eps=1.0:255-{data}.csv")
    return folder / "bench", folder / "kireev"


def test_the_script_makes_the_table(tmp_path: Path) -> None:
    table = table_script.build(*checkouts(tmp_path))
    assert tuple(table) == published.COLUMNS
    assert len(table) == 3 * 3 + 2 * 2
    assert table[table["data"] == "cifar10"].to_numpy().tolist() == [
        ["Kireev2022", "cifar10", "Kireev2021Effectiveness", "linf-at-eps=1.0/255", "fog", 0.4],
        ["Kireev2022", "cifar10", "Kireev2021Effectiveness", "linf-at-eps=1.0/255", "snow", 0.6],
        ["RobustBench", "cifar10", "Ada2020All", "Ada2020All_ResNet", "clean", 0.905],
        ["RobustBench", "cifar10", "Ada2020All", "Ada2020All_ResNet", "fog", 0.4],
        ["RobustBench", "cifar10", "Ada2020All", "Ada2020All_ResNet", "snow", 0.6],
    ]


def test_the_script_checks_what_it_reads(tmp_path: Path) -> None:
    with pytest.raises(table_script.BadCheckoutError, match=r"is 0.5000, but .* states 0.6000"):
        table_script.build(*checkouts(tmp_path, stated=60.0))
    with pytest.raises(table_script.BadCheckoutError, match="name a checkout"):
        table_script.robustbench(tmp_path)
    with pytest.raises(table_script.BadCheckoutError, match="no full_evaluation_results"):
        table_script.kireev(tmp_path)
