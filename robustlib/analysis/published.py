"""Published accuracies of public models under the fifteen corruptions of ImageNet-C.

They show our overlaps from outside: which corruptions go together across models that this project
never saw, and whether adversarial training gains and loses where ours does. `data/README.md` says
where the numbers come from (RobustBench; Kireev, Andriushchenko and Flammarion 2022).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from robustlib import corruptions
from robustlib.core import paths
from robustlib.core.checks import (
    check_flag,
    check_name,
    check_names,
    check_nonempty,
    check_number,
    check_seed,
    check_whole,
)

FILE = "data/published.csv"
DATA = ("cifar10", "cifar100", "imagenet", "imagenet100")
COLUMNS = ("source", "data", "paper", "model", "corruption", "accuracy")

# Adversarially trained models of Kireev et al. 2022 -> the model trained likewise, but without.
ADVERSARIAL = {
    "cifar10": {
        "linf-at-eps=1.0/255": "standard",
        "l2-at-eps=0.1": "standard",
        "fast-pat-eps=0.02": "standard",
        "rlat-eps=0.08": "standard",
        "rlat-eps=0.05-augmix": "augmix",
        "rlat-eps=0.02-deepaugment": "deepaugment",
    },
    "imagenet100": {
        "linf-at-eps=0.05/256": "standard",
        "l2-at-eps=0.05": "standard",
        "rlat-eps=0.02": "standard",
        "rlat-eps=0.05-augmix": "augmix",
        "rlat-eps=0.02-ant": "ant",
        "rlat-eps=0.01-sin": "sin",
    },
}

# Models of Kireev et al. 2022 on CIFAR-10 that RobustBench lists, too, under names of its own.
LISTED_TWICE = (
    "augmix",
    "gauss-augment-50percent-sigma=0.1",
    "rlat-eps=0.08",
    "rlat-eps=0.05-augmix",
)

# The standard model and the best on average of RobustBench, by its `model_info`, and what they are.
ROBUSTBENCH = {
    "cifar10": {
        "Standard": "WideResNet-28-10",
        "Diffenderfer2021Winning_LRR_CARD_Deck": "pruned WideResNet-18s, an ensemble of six",
    },
    "imagenet": {
        "Standard_R50": "ResNet-50",
        "Tian2022Deeper_DeiT-B": "DeiT Base",
    },
}

LEVELS = {"plain": False, "general level out": True}  # -> `partial` of `correlation`

_BLOCK = 1000  # permutations at a time, so that memory doesn't grow with their number


def available() -> bool:
    """Whether the table is there: it is part of the checkout, not of the installed package."""
    return (paths.project_root() / FILE).is_file()


def load(data: str, source: str | None = None) -> pd.DataFrame:
    """Published accuracies on a data set, averaged over severities 1 to 5.

    Args:
        data: "cifar10", "cifar100", "imagenet" (their corrupted versions, CIFAR-10-C and so on) or
            "imagenet100".
        source: "RobustBench" or "Kireev2022"; None for all, with the four models that both list
            taken from RobustBench.

    Returns a frame with a row for each model, indexed by (paper, model), and the columns "clean"
    (NaN where not published) and one for each of the fifteen corruptions; values in [0, 1]. Models
    of one paper share code, architecture or method, and so are no independent sample.

    Raises:
        UnknownNameError: no such data set, or the source has none of its models.
        FileNotFoundError: the package was installed without its checkout, which holds the table.
    """
    path = paths.project_root() / FILE
    if not available():
        raise FileNotFoundError(
            f"there is no {path}: the table of published accuracies is part of the checkout, not "
            "of the installed package. Run from the checkout, or copy the file there."
        )
    table = pd.read_csv(path)
    check_name(data, table["data"].unique(), "data set with published accuracies")
    table = table[table["data"] == data]
    if source is None and data == "cifar10":
        table = table[~table["model"].isin(LISTED_TWICE)]
    if source is not None:
        check_name(source, table["source"].unique(), f"source of accuracies on {data}")
        table = table[table["source"] == source]
    wide = table.pivot(index=["paper", "model"], columns="corruption", values="accuracy")
    corruptions = [name for name in wide if name != "clean"]
    return wide.reindex(columns=["clean", *corruptions]).rename_axis(columns=None)


def correlation(accuracy: pd.DataFrame, *, partial: bool = False) -> pd.DataFrame:
    """Pearson correlation of the accuracies of two corruptions, over models.

    Args:
        accuracy: a row for each model, three or more, and a column for each corruption; a column
            "clean" is left out.
        partial: False for the plain correlation, which is high for most pairs, since good models
            are good at everything. True takes this general level out: the partial correlation
            given the model's mean over all corruptions (this project's choice; unlike subtracting
            the mean, it lets each corruption follow the level at its own rate). What is left sums
            to zero over the corruptions, so some pairs must come out negative: the order of the
            pairs says something, the sign of one pair little.

    Returns a symmetric frame, corruptions by corruptions, in [-1, 1], with 1 on the diagonal.

    Raises:
        ValueError: too few models or corruptions, NaN, or a corruption on which all models are
            equal (with `partial`, also one that follows the general level exactly).
    """
    values = accuracy.drop(columns="clean", errors="ignore")
    partial = check_flag(partial, "partial")
    models, corruptions = values.shape
    if models < 3 or corruptions < 2 + partial:
        raise ValueError(
            f"a correlation needs three models or more and {2 + partial} corruptions or more, got "
            f"{models} and {corruptions}."
        )
    if values.isna().any(axis=None):
        missing = list(values.columns[values.isna().any()])
        raise ValueError(f"accuracies are missing (NaN) for {', '.join(map(str, missing))}.")
    covariance = np.cov(values.to_numpy(dtype=float), rowvar=False)
    variance = np.diag(covariance).copy()
    if partial:
        with_level = covariance.mean(axis=0)  # covariance with the mean over corruptions
        if with_level.mean() > 0:
            covariance = covariance - np.outer(with_level, with_level) / with_level.mean()
    left = np.diag(covariance)
    constant = left <= 1e-9 * np.maximum(variance, 1e-9)
    if constant.any():
        names = ", ".join(map(str, values.columns[constant]))
        reason = "following the general level" if partial else "the same for all models"
        raise ValueError(f"no correlation with {names}: {reason}. Leave it out.")
    result = covariance / np.sqrt(np.outer(left, left))
    np.fill_diagonal(result, 1)
    return pd.DataFrame(result.clip(-1, 1), index=values.columns, columns=values.columns)


def effective_rank(correlations: pd.DataFrame) -> float:
    """How many independent directions a correlation matrix has: 1 to its size.

    The exponential of the entropy of its eigenvalues, divided by their sum (Roy and Vetterli 2007).

    Args:
        correlations: symmetric, positive semi-definite, without NaN, as from `correlation`.

    Raises:
        ValueError: not such a matrix.
    """
    values = _symmetric(correlations)
    if np.isnan(values).any():
        raise ValueError("the correlations hold NaN; leave those corruptions out.")
    eigenvalues = np.linalg.eigvalsh(values)
    if eigenvalues[0] < -1e-6 * eigenvalues[-1]:
        raise ValueError(f"not a matrix of correlations: an eigenvalue is {eigenvalues[0]:.3g}.")
    share = eigenvalues[eigenvalues > 0] / eigenvalues[eigenvalues > 0].sum()
    return float(np.exp(-(share * np.log(share)).sum()))


@dataclass(frozen=True)
class Mantel:
    """Result of `mantel`.

    Attributes:
        r: correlation of the two matrices over pairs of names, -1 to 1.
        p: p value of "no more alike than by chance", one-sided.
        names: that entered; those without a score were dropped.
    """

    r: float
    p: float
    names: tuple[str, ...]


def mantel(
    first: pd.DataFrame,
    second: pd.DataFrame,
    *,
    method: str = "spearman",
    permutations: int = 9999,
    seed: int = 0,
) -> Mantel:
    """Mantel test: do two matrices call the same pairs similar? (Mantel 1967)

    Correlates the entries off the diagonal. Pairs that share a name are no independent sample, so
    the p value comes from permuting the names of one matrix: (b + 1) / (m + 1), where b of m
    permutations correlate at least as well. It takes the matrices as they are: how `r` varies with
    the models that were measured is what `jackknife_interval` says.

    Args:
        first: symmetric, names by names, such as overlaps.
        second: likewise, over the same names in any order, such as correlations.
        method: "spearman" (of ranks) or "pearson".
        permutations: 1 or more.
        seed: of the permutations.

    A name whose entries are all NaN in either matrix, such as a corruption without an own gain, is
    dropped.

    Raises:
        ValueError: different names, matrices that aren't symmetric, single entries that are NaN,
            fewer than four names left, or a matrix that is the same everywhere.
        UnknownNameError: unknown method.
    """
    check_name(method, ("spearman", "pearson"), "method")
    permutations = check_whole(permutations, "permutations", low=1)
    rng = np.random.default_rng(check_seed(seed))
    names, one, other = _matched(first, second)
    above = np.triu_indices(len(names), 1)
    target = _standard_scores(one, above, method)[above]
    scores = _standard_scores(other, above, method)

    r = float(target @ scores[above])
    as_good = 0
    for start in range(0, permutations, _BLOCK):
        count = min(_BLOCK, permutations - start)
        order = rng.permuted(np.tile(np.arange(len(names)), (count, 1)), axis=1)
        drawn = scores[order[:, above[0]], order[:, above[1]]] @ target
        as_good += int((drawn >= r - 1e-12).sum())
    return Mantel(r, (as_good + 1) / (permutations + 1), names)


def jackknife_interval(
    accuracy: pd.DataFrame,
    statistic: Callable[[pd.DataFrame], float],
    *,
    confidence: float = 0.95,
) -> tuple[float, float, float]:
    """A statistic over models, with an interval for other models of the same kind.

    Leaves out the models of one paper at a time, since they are no independent sample. Deviations
    are taken from the estimate itself, and the degrees of freedom are the effective number of
    papers, (sum n)^2 / sum n^2 for n models each, less 2 (this project's choice: in simulations
    with the papers of each data set it covers 92 to 99 %, a plain jackknife down to 87 %).

    Args:
        accuracy: as from `load`, indexed by "paper" and model.
        statistic: of such a frame, for example `effective_rank` of its `correlation`, or the `r`
            of `mantel` between fixed overlaps and it (one permutation will do). Must be smooth; a
            largest value isn't.
        confidence: above 0, below 1.

    Returns the statistic and the ends of the interval, which may lie outside the statistic's range.

    Raises:
        ValueError: no level "paper", or too few papers (an effective number of 3 or less).
    """
    confidence = check_number(confidence, "confidence", low=0, high=1 - 1e-9, above=True)
    if "paper" not in accuracy.index.names:
        raise ValueError('accuracy must be indexed by "paper" and model, as from published.load.')
    papers = accuracy.index.get_level_values("paper")
    sizes = papers.value_counts()
    effective = sizes.sum() ** 2 / (sizes**2).sum()
    if effective <= 3:
        raise ValueError(
            f"{len(accuracy)} models of {len(sizes)} papers ({effective:.1f} effective ones) are "
            "too few for an interval over papers; more than 3 are needed."
        )
    from scipy import stats  # late: it takes the better part of a second

    estimate = statistic(accuracy)
    left_out = np.array([statistic(accuracy[papers != paper]) for paper in sizes.index])
    variance = (1 - 1 / len(sizes)) * ((left_out - estimate) ** 2).sum()
    half = float(stats.t.ppf(0.5 + confidence / 2, effective - 2) * np.sqrt(variance))
    return estimate, estimate - half, estimate + half


def adversarial_gains(data: str) -> pd.DataFrame:
    """What adversarial training gained in Kireev et al. 2022, in points of accuracy, signed.

    Args:
        data: "cifar10" or "imagenet100".

    Returns a frame with a row for each adversarially trained model, indexed by (model, reference),
    and a column for each corruption: accuracy of the model minus that of the reference, which was
    trained likewise but without adversarial examples ("standard", or "augmix" and so on). Radii
    stand in the models' names, as published.

    Raises:
        UnknownNameError: another data set.
    """
    pairs = ADVERSARIAL[check_name(data, ADVERSARIAL, "data set of Kireev et al. 2022")]
    accuracy = load(data, "Kireev2022").droplevel("paper").drop(columns="clean")
    models, references = list(pairs), list(pairs.values())
    gains = 100 * (accuracy.loc[models].to_numpy() - accuracy.loc[references].to_numpy())
    index = pd.MultiIndex.from_arrays([models, references], names=["model", "reference"])
    return pd.DataFrame(gains, index=index, columns=accuracy.columns)


def predicted_correlations(overlap: pd.DataFrame, data: str) -> pd.DataFrame:
    """Do our overlaps predict which corruptions go together across public models?

    The yardstick is how well public models on each of the other data sets predict it.

    Args:
        overlap: symmetric, four or more of the fifteen corruptions by themselves, each with a
            score, such as `Atlas.overlap` of them.
        data: of the public models, as in `load`.

    Returns a frame with two rows, for the plain `correlation` and for the one with the general
    level taken out, for each predictor. Columns: correlation ("plain" or "general level out"),
    predicted by ("our overlap", "models on cifar100" and so on), r and p of `mantel`, low and high
    of its `jackknife_interval` over the papers of `data` (95 %, cut at -1 and 1), and corruptions,
    how many entered. The general level is that over all fifteen.

    Raises:
        ValueError: an overlap that isn't symmetric, too small or without a score somewhere, or
            data of too few papers (imagenet100).
        UnknownNameError: unknown data, or a corruption that is none of the fifteen.
    """
    fifteen = corruptions.names("imagenet_c_15")
    accuracy = load(data)[list(fifteen)]
    check_names([str(name) for name in overlap.index], fifteen, "corruption")
    _symmetric(overlap)
    if overlap.isna().any(axis=None):
        unscored = overlap.index[overlap.isna().any()]
        raise ValueError(f"overlaps without a score, of {', '.join(unscored)}: leave them out.")
    others = [other for other in DATA if other != data]
    rows = []
    for level, partial in LEVELS.items():
        outside = correlation(accuracy, partial=partial)
        inside = {"our overlap": overlap}
        for other in others:
            theirs = load(other)[list(fifteen)]
            inside[f"models on {other}"] = correlation(theirs, partial=partial)
        for predictor, matrix in inside.items():
            names = list(matrix)
            test = mantel(matrix, outside.loc[names, names])
            low, high = _interval_of_r(matrix, accuracy, partial=partial)
            row = {"correlation": level, "predicted by": predictor, "r": test.r}
            rows.append(row | {"low": low, "high": high, "p": test.p, "corruptions": len(names)})
    return pd.DataFrame(rows)


def _interval_of_r(
    matrix: pd.DataFrame, accuracy: pd.DataFrame, *, partial: bool
) -> tuple[float, float]:
    def r(models: pd.DataFrame) -> float:
        outside = correlation(models, partial=partial).loc[list(matrix), list(matrix)]
        return mantel(matrix, outside, permutations=1).r

    _, low, high = jackknife_interval(accuracy, r)
    return max(-1.0, low), min(1.0, high)


def beside_kireev(
    ours: pd.DataFrame,
    model: str = "linf-at-eps=1.0/255",
    data: str = "cifar10",
    *,
    margin: float = 0.5,
) -> pd.DataFrame:
    """Our gains by adversarial training beside those of one model of Kireev et al. 2022.

    A sign counts only where our interval excludes 0 and theirs, which has no interval, is beyond
    the margin (half a point is this project's choice). Count them, but without a test: corruptions
    are no independent sample.

    Args:
        ours: a row for each corruption, indexed by its name, with the columns gain, low and high,
            in points of accuracy.
        model: one of `ADVERSARIAL[data]`; its radius stands in its name.
        data: "cifar10" or "imagenet100".
        margin: gains and losses of theirs up to this size, in points, count as none.

    Returns `ours` with two columns more: kireev, their gain in points (NaN where they have none),
    and agreement of the signs: "agree", "differ" or "undecided".

    Raises:
        ValueError: no such columns, no corruption in common, or a bad margin.
        UnknownNameError: unknown data or model.
    """
    _check_gains(ours)
    gains = adversarial_gains(data).droplevel("reference")
    theirs = gains.T[check_name(model, gains.index, "model of Kireev et al. 2022")]
    _shared(ours, theirs.index)
    found = ours.assign(kireev=theirs)
    return found.assign(agreement=_agreement(found, found["kireev"], margin))


def signs(ours: pd.DataFrame, *, margin: float = 0.5) -> pd.DataFrame:
    """Where the gains of all models of Kireev et al. 2022 agree with ours in sign.

    Arguments and rule as for `beside_kireev`.

    Returns a frame with a row for each adversarially trained model of both data sets and each
    corruption that both have. Columns: data, model, reference (its counterpart without adversarial
    examples), corruption, theirs (gain in points), gain, low, high (ours), and agreement.

    Raises:
        ValueError: no such columns, no corruption in common, or a bad margin.
    """
    _check_gains(ours)
    parts = []
    for data in ADVERSARIAL:
        gains = adversarial_gains(data)
        shared = _shared(ours, gains.columns)
        part = gains[shared].melt(var_name="corruption", value_name="theirs", ignore_index=False)
        parts.append(part.reset_index().assign(data=data))
    table = pd.concat(parts, ignore_index=True)
    table = table.join(ours[["gain", "low", "high"]], on="corruption")
    table["agreement"] = _agreement(table, table["theirs"], margin)
    first = ["data", "model", "reference", "corruption"]
    return table[first + [name for name in table if name not in first]]


def _shared(ours: pd.DataFrame, theirs: pd.Index) -> list[str]:
    shared = [name for name in ours.index if name in theirs]
    if not shared:
        raise ValueError(f"no corruption in common: {list(ours.index)} and {list(theirs)}.")
    return shared


def _agreement(ours: pd.DataFrame, theirs: pd.Series, margin: float) -> np.ndarray:
    margin = check_number(margin, "margin", low=0, unit="points")
    counts = ((ours["low"] > 0) | (ours["high"] < 0)) & (theirs.abs() > margin)
    same = ours["gain"] * theirs > 0
    return np.where(counts, np.where(same, "agree", "differ"), "undecided")


def beside_robustbench(ours: pd.DataFrame, differs: str, data: str = "cifar10") -> pd.DataFrame:
    """Our accuracies beside those of RobustBench's standard model and of its best.

    The best has the highest mean over the fifteen corruptions.

    Args:
        ours: a row for each model, indexed by its name, with the columns "clean" and one for each
            of the fifteen corruptions, averaged over severities 1 to 5; values in [0, 1].
        differs: our network and training data in words, and the radius, if there is one.
        data: "cifar10" or "imagenet".

    Returns a frame with a row for each model, ours first. Columns: source, model, clean, mean (over
    the fifteen), both in [0, 1], and differs, which says for RobustBench what the other columns
    don't.

    Raises:
        ValueError: a missing column, or values outside [0, 1] or NaN.
        UnknownNameError: other data.
    """
    words = ROBUSTBENCH[check_name(data, ROBUSTBENCH, "data set")]
    theirs = load(data, "RobustBench").droplevel("paper").loc[list(words)]
    missing = [str(name) for name in theirs if name not in ours]
    if missing:
        raise ValueError(f"our accuracies need a column for each of {', '.join(missing)}.")
    accuracy = pd.concat({"this project": ours[list(theirs)], "RobustBench": theirs})
    if not ((accuracy >= 0) & (accuracy <= 1)).all(axis=None):
        raise ValueError("accuracies must be in [0, 1], without NaN.")
    table = accuracy.rename_axis(["source", "model"])[["clean"]]
    table["mean"] = accuracy.drop(columns="clean").mean(axis=1)
    images = "CIFAR-10" if data == "cifar10" else "ImageNet"
    table["differs"] = [differs] * len(ours) + [
        f"{network}; all training images of {images}; the files of {images}-C; no radius"
        for network in words.values()
    ]
    return table.reset_index()


def _check_gains(ours: pd.DataFrame) -> None:
    check_nonempty(list(ours.index), "the list of our corruptions")
    missing = [name for name in ("gain", "low", "high") if name not in ours]
    if missing:
        raise ValueError(
            f"our gains need the columns gain, low and high, in points; {', '.join(missing)} "
            f"missing of {', '.join(map(str, ours.columns))}."
        )


def _symmetric(matrix: pd.DataFrame) -> np.ndarray:
    check_nonempty(list(matrix.index), "the list of a matrix's names")
    values = matrix.to_numpy(dtype=float)
    if list(matrix.index) != list(matrix.columns):
        raise ValueError(
            "a matrix needs the same names as rows and as columns, in the same order; got the rows "
            f"{list(matrix.index)} and the columns {list(matrix.columns)}."
        )
    if not np.allclose(values, values.T, equal_nan=True):
        raise ValueError("the matrix isn't symmetric; take the mean of it and its transpose.")
    return values


def _matched(
    first: pd.DataFrame, second: pd.DataFrame
) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    """The names with scores in both matrices, and the two (names, names), in that order."""
    for frame in (first, second):
        _symmetric(frame)
    odd = sorted(set(map(str, first.index)) ^ set(map(str, second.index)))
    if odd:
        raise ValueError(
            f"both matrices need the same names; only one of them has {', '.join(odd)}. Select "
            "the common ones with frame.loc[names, names]."
        )
    matrices = [
        frame.loc[first.index, first.index].to_numpy(dtype=float) for frame in (first, second)
    ]
    diagonal = np.eye(len(first), dtype=bool)
    scored = ~np.any([(np.isnan(m) | diagonal).all(axis=1) for m in matrices], axis=0)
    names = tuple(str(name) for name in first.index[scored])
    one, other = (matrix[np.ix_(scored, scored)] for matrix in matrices)
    if len(names) < 4:
        raise ValueError(f"a Mantel test needs four names with scores, got {len(names)}: {names}.")
    above = np.triu_indices(len(names), 1)
    for matrix in (one, other):
        missing = np.flatnonzero(np.isnan(matrix[above]))
        if len(missing):
            pair = " and ".join(names[axis[missing[0]]] for axis in above)
            raise ValueError(
                f"{len(missing)} entries are NaN, such as that of {pair}; leave such names out."
            )
    return names, one, other


def _standard_scores(
    matrix: np.ndarray, above: tuple[np.ndarray, np.ndarray], method: str
) -> np.ndarray:
    """The entries off the diagonal, or their ranks, with mean 0 and sum of squares 1."""
    values = matrix[above]
    if method == "spearman":
        values = pd.Series(values).rank().to_numpy()
    values = values - values.mean()
    norm = np.linalg.norm(values)
    if norm <= 1e-12:
        raise ValueError("all entries of a matrix are the same; they can't be correlated.")
    scores = np.zeros_like(matrix)
    scores[above] = values / norm
    return scores + scores.T
