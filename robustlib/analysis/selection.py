"""Benchmarks from overlaps: how many corruptions there are in effect, and which few stand for all.

    chosen = choose(overlap, k=4, limit=0.5)
    prediction_errors(accuracy, weights(overlap, chosen))

Overlaps are those of `robustlib.analysis.overlapping_scores`, of the corruptions that come into
question, the candidates. They are clipped to [0, 1], for nothing can be covered more than wholly.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd

from robustlib.core.checks import (
    SEVERITIES,
    check_name,
    check_names,
    check_nonempty,
    check_number,
    check_seed,
    check_whole,
)

WEIGHTINGS = ("equal", "overlap", "regression")
_COMPARED = 100_000  # choices that are compared one by one
_STARTS = 100  # of k-means, as in the authors' code

Overlaps = pd.DataFrame | np.ndarray


# --- How many corruptions there are in effect ----------------------------------------------------


def effective_number(overlap: Overlaps, order: float = 1) -> float | np.ndarray:
    """The effective number of corruptions: K if no two overlap, 1 if all overlap wholly.

    The similarity-sensitive diversity of Leinster and Cobbold (Ecology 2012), with equal weights
    p_i = 1 / K and the overlap as similarity Z: (sum_i p_i (Zp)_i^(q-1))^(1/(1-q)), and its limits
    for q = 1 and infinity.

    Args:
        overlap: frame (K, K), or an array (..., K, K) such as bootstrap draws.
        order: q, 0 or more, infinity included. The larger, the less do corruptions count that
            overlap with few others.

    Returns a number from 1 to K, for an array of more dimensions an array (...).

    Raises:
        ValueError: an overlap that isn't square, symmetric, finite and 1 on its diagonal (the
            message names corruptions without a score), or a bad order.
    """
    _, similarity = _similarity(overlap)
    if order != math.inf:
        order = check_number(order, "order", low=0)
    ordinariness = similarity.mean(axis=-1)  # (Zp)_i, from 1 / K to 1
    if order == math.inf:
        number = 1 / ordinariness.max(axis=-1)
    elif math.isclose(order, 1):
        number = np.exp(-np.log(ordinariness).mean(axis=-1))
    else:
        number = (ordinariness ** (order - 1)).mean(axis=-1) ** (1 / (1 - order))
    return float(number) if similarity.ndim == 2 else number


# --- Which few stand for all ---------------------------------------------------------------------


def coverage(overlap: pd.DataFrame, chosen: Sequence[str]) -> float:
    """The sum over all candidates of the largest overlap with one of those chosen.

    Args:
        overlap: frame (K, K), as in `effective_number`.
        chosen: names of some candidates.

    Returns a number from the number of those chosen, which cover themselves, to K.

    Raises:
        ValueError: a bad overlap, or an empty or repeated choice; `UnknownNameError` for a name
            that is no candidate.
    """
    names, similarity = _similarity(overlap)
    return float(similarity[:, _positions(chosen, names)].max(axis=1).sum())


def choose(overlap: pd.DataFrame, k: int, limit: float) -> list[str]:
    """The k corruptions that cover all candidates best, no two of which overlap beyond a limit.

    The choice is exact: none has a larger `coverage` (beyond rounding, 1e-6). If at most 100,000
    choices meet the limit, they are compared one by one; otherwise scipy's mixed-integer solver
    finds the best (the p-median problem, ReVelle and Swain 1970, with conflicts). Of several best
    choices it is always the same one, in whatever order the candidates come.

    Args:
        overlap: frame (K, K), as in `effective_number`.
        k: how many, from 1 to K.
        limit: the largest overlap that two chosen corruptions may have, 0 or more.

    Returns names, in the order of the frame.

    Raises:
        ValueError: no choice of k meets the limit, a bad overlap, k or limit.
    """
    names, similarity = _similarity(overlap)
    k = check_whole(k, "k", low=1, high=len(names))
    limit = check_number(limit, "limit", low=0)
    order = np.argsort(names)  # so that ties don't depend on the order of the candidates
    similarity = similarity[np.ix_(order, order)]
    apart = np.asarray(overlap, dtype=float)[np.ix_(order, order)] <= limit
    choices = _choices_within(apart, k)
    if choices is None:
        chosen = _solve(similarity, k, apart)
    elif choices.shape[1] == k:
        chosen = choices[_coverages(similarity, choices).round(9).argmax()]
    else:
        raise ValueError(
            f"no {k} corruptions overlap by at most {limit:g} with each other; at most "
            f"{choices.shape[1]} do: choose fewer, or raise the limit."
        )
    return [names[i] for i in sorted(order[chosen])]


def _choices_within(apart: np.ndarray, k: int) -> np.ndarray | None:
    """All choices of k candidates that are `apart`, bool (K, K), from each other.

    Returns ints (choices, k) in lexicographic order, with the largest number of columns below k
    that there is a choice for if there is none of k; None if they are too many.
    """
    later = np.triu(apart, 1)
    choices, free = np.arange(len(apart))[:, None], later
    for _ in range(k - 1):
        row, new = np.nonzero(free)
        if len(row) > _COMPARED:
            return None
        if not len(row):
            break
        choices, free = np.column_stack([choices[row], new]), free[row] & later[new]
    return choices


def _coverages(similarity: np.ndarray, choices: np.ndarray) -> np.ndarray:
    best = similarity[choices[:, 0]]
    for column in choices.T[1:]:
        np.maximum(best, similarity[column], out=best)
    return best.sum(axis=1)


def _solve(similarity: np.ndarray, k: int, apart: np.ndarray) -> np.ndarray:
    """Positions of the best choice by mixed-integer programming.

    Variables: whether a candidate is chosen, and for each pair that overlaps whether the second
    stands for the first. A candidate has one that stands for it, which must be chosen.
    """
    from scipy import sparse
    from scipy.optimize import Bounds, LinearConstraint, milp

    size = len(similarity)
    first, second = np.nonzero(similarity)
    pairs = np.arange(len(first))
    a, b = np.nonzero(np.triu(~apart, 1))
    conflicts = np.arange(len(a))

    def matrix(rows: int, *entries: tuple[float, np.ndarray, np.ndarray]) -> sparse.csr_array:
        values = np.concatenate([np.full(len(row), value) for value, row, _ in entries])
        row, column = (np.concatenate([entry[i] for entry in entries]) for i in (1, 2))
        return sparse.csr_array((values, (row, column)), shape=(rows, size + len(pairs)))

    members = np.arange(size)
    one_each = matrix(size, (1, first, size + pairs))
    only_chosen = matrix(len(pairs), (1, pairs, size + pairs), (-1, pairs, second))
    count = matrix(1, (1, np.zeros(size, dtype=int), members))
    constraints = [
        LinearConstraint(one_each, -np.inf, 1),
        LinearConstraint(only_chosen, -np.inf, 0),
        LinearConstraint(count, k, k),
    ]
    if len(conflicts):
        not_both = matrix(len(conflicts), (1, conflicts, a), (1, conflicts, b))
        constraints.append(LinearConstraint(not_both, -np.inf, 1))
    found = milp(
        -np.concatenate([np.zeros(size), similarity[first, second]]),
        integrality=np.concatenate([np.ones(size), np.zeros(len(pairs))]),
        bounds=Bounds(0, 1),
        constraints=constraints,
        options={"mip_rel_gap": 0, "presolve": False},  # presolving takes longer than it saves
    )
    if found.status == 2:
        raise ValueError(
            f"no {k} corruptions overlap so little with each other: choose fewer, or raise the "
            "limit."
        )
    if not found.success:
        raise RuntimeError(f"scipy.optimize.milp failed: {found.message}")
    return np.flatnonzero(found.x[:size] > 0.5)


# --- How well they predict the mean over all -----------------------------------------------------


def weights(overlap: pd.DataFrame, chosen: Sequence[str]) -> pd.Series:
    """The share of all candidates that each chosen corruption stands for.

    This project's choice: a candidate is stood for by the one that overlaps most with it. Those
    that tie share it evenly, and so all share a candidate that overlaps with none of them.

    Args:
        overlap: frame (K, K), as in `effective_number`.
        chosen: names of some candidates.

    Returns weights that sum to 1, by name in the order of `chosen`. The weighted mean of a model's
    accuracies under those chosen predicts its mean over all candidates; see `prediction_errors`.

    Raises:
        ValueError: as for `coverage`.
    """
    names, similarity = _similarity(overlap)
    members = np.array(_positions(chosen, names))
    return pd.Series(_shares(similarity, members[None])[0], index=list(chosen), name="weight")


def _shares(similarity: np.ndarray, choices: np.ndarray) -> np.ndarray:
    """Weights (choices, k) of the members of each choice, ints (choices, k)."""
    overlaps = similarity[:, choices]  # candidates, choices, k
    nearest = overlaps == overlaps.max(axis=-1, keepdims=True)
    return (nearest / nearest.sum(axis=-1, keepdims=True)).mean(axis=0)


def predicted_mean(accuracy: pd.DataFrame, weights: Mapping[str, float] | pd.Series) -> pd.Series:
    """Each model's mean accuracy over all candidates, as the chosen corruptions predict it.

    Args:
        accuracy: one row for each model, a column for each chosen corruption at least; in [0, 1].
        weights: by corruption, summing to 1, as from `weights`.

    Returns the weighted mean of the accuracies for each model.

    Raises:
        ValueError: accuracies outside [0, 1] or NaN, weights that are negative or don't sum to 1;
            `UnknownNameError` for a corruption without a column.
    """
    shares = pd.Series(weights, dtype=float)
    if not ((shares >= 0).all() and math.isclose(shares.sum(), 1, abs_tol=1e-6)):
        raise ValueError(
            f"the weights must be 0 or more and sum to 1, got {shares.to_dict()}, which sum to "
            f"{shares.sum():g}."
        )
    names = [str(name) for name in accuracy.columns]
    chosen = check_names([str(name) for name in shares.index], names, "corruption")
    values = _accuracies(accuracy[list(chosen)])
    return pd.Series(values @ shares.to_numpy(), accuracy.index, name="predicted")


def prediction_errors(
    accuracy: pd.DataFrame, weights: Mapping[str, float] | pd.Series
) -> dict[str, float]:
    """How well chosen corruptions predict each model's mean over all candidates.

    Args:
        accuracy: one row for each of two or more models, a column for each candidate and no other;
            in [0, 1].
        weights: by chosen corruption, as in `predicted_mean`.

    Returns, over the models: "rmse", the root mean square of predicted less true mean; "worst",
    the largest error either way, both as accuracies in [0, 1]; and "kendall", Kendall's tau-b of
    the two rankings (NaN if all models tie in one).

    Raises:
        ValueError: as for `predicted_mean`; a column "clean", or fewer than two models.
    """
    truth = _means(accuracy)
    errors = _errors(truth, predicted_mean(accuracy, weights).to_numpy()[:, None])
    return {name: float(values[0]) for name, values in errors.items()}


def every_choice(
    accuracy: pd.DataFrame, k: int, *, weighting: str = "equal", overlap: pd.DataFrame | None = None
) -> pd.DataFrame:
    """The `prediction_errors` of every choice of k corruptions there is.

    The smallest error is that of the best choice in hindsight; the distribution over the rows is
    that of a random choice.

    Args:
        accuracy: as in `prediction_errors`.
        k: how many are chosen, from 1 to the number of columns.
        weighting: "equal" for the plain mean of those chosen; "overlap" for `weights`;
            "regression" predicts each model by least squares with intercept from all others
            (leave one out), which takes k + 3 models at least.
        overlap: for the weighting "overlap", a frame with the columns of `accuracy` in its rows
            and columns.

    Returns a frame with a row for each choice, as tuple of names in column "choice", and the
    columns rmse, worst and kendall.

    Raises:
        ValueError: as for `prediction_errors`; a bad k, more than 100,000 choices, too few models,
            or an overlap that is missing, not wanted, or of other corruptions.
    """
    truth = _means(accuracy)
    values, names = _accuracies(accuracy), [str(name) for name in accuracy.columns]
    k = check_whole(k, "k", low=1, high=len(names))
    check_name(weighting, WEIGHTINGS, "weighting")
    if (overlap is not None) != (weighting == "overlap"):
        raise ValueError('give the overlap with weighting="overlap", and only then.')
    if math.comb(len(names), k) > _COMPARED:
        raise ValueError(
            f"there are {math.comb(len(names), k)} choices of {k} of {len(names)} corruptions; "
            f"at most {_COMPARED} can be compared."
        )
    choices = np.array(list(itertools.combinations(range(len(names)), k)))
    chosen = values[:, choices]  # models, choices, k
    if weighting == "regression":
        predicted = _left_out(truth, chosen)
    elif overlap is not None:
        others = set(names) ^ {str(name) for name in overlap.columns}
        if others:
            raise ValueError(
                "overlap and accuracy must be of the same corruptions; only in one of them: "
                f"{', '.join(sorted(others))}."
            )
        _, similarity = _similarity(overlap.loc[names, names])
        predicted = (chosen * _shares(similarity, choices)).sum(axis=-1)
    else:
        predicted = chosen.mean(axis=-1)
    found = {"choice": [tuple(names[i] for i in row) for row in choices.tolist()]}
    return pd.DataFrame(found | _errors(truth, predicted))


def _left_out(truth: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Predictions (models, choices) for each model by least squares from all others."""
    models, _, k = chosen.shape
    if models < k + 3:
        raise ValueError(
            f"a regression on {k} corruptions, one model left out, needs {k + 3} models or more, "
            f"got {models}."
        )
    design = np.insert(chosen.transpose(1, 0, 2), 0, 1, axis=-1)  # choices, models, 1 + k
    inverse = np.linalg.pinv(design)
    residual = truth - (design @ (inverse @ truth[:, None]))[..., 0]
    free = 1 - (design * inverse.swapaxes(1, 2)).sum(axis=-1)  # 1 - leverage
    left_out = np.full_like(residual, np.nan)  # where the others don't determine it
    np.divide(residual, free, out=left_out, where=free > 1e-9)
    return (truth - left_out).T


def _errors(truth: np.ndarray, predicted: np.ndarray) -> dict[str, np.ndarray]:
    """Errors over models of predictions (models, n); each value (n,)."""
    error = predicted - truth[:, None]
    first, second = np.triu_indices(len(truth), 1)
    true_sign = np.sign((truth[first] - truth[second]).round(12))
    sign = np.sign((predicted[first] - predicted[second]).round(12))
    untied = np.sqrt((true_sign != 0).sum() * (sign != 0).sum(axis=0))
    tau = np.full(predicted.shape[1], np.nan)  # of all at once; scipy's takes minutes
    np.divide(true_sign @ sign, untied, out=tau, where=untied > 0)
    return {
        "rmse": np.sqrt((error**2).mean(axis=0)),
        "worst": abs(error).max(axis=0),
        "kendall": tau,
    }


# --- The authors' categories ---------------------------------------------------------------------


def categories(overlap: pd.DataFrame, n: int | None = None, *, seed: int = 0) -> list[list[str]]:
    """Categories of corruptions by k-means of their overlaps with all candidates.

    Laugros, Caplier and Ospici, BMVC 2021 (arXiv 2107.12052), by their public code: the best of
    100 starts; n is the smallest number, from 2 on, for which the overlaps of two corruptions of
    one category correlate by more than .5 on average. Clipping the overlaps is this project's
    choice.

    Args:
        overlap: frame (K, K), as in `effective_number`.
        n: the number of categories; None for the authors' rule.
        seed: of the starts.

    Returns the names in each category, in the order of the frame.

    Raises:
        ValueError: a bad overlap, or an n outside 1 .. the number of corruptions that can be told
            apart by their overlaps.
    """
    names, vectors = _similarity(overlap)
    seed, distinct = check_seed(seed), len(np.unique(vectors, axis=0))
    if n is not None:
        n = check_whole(n, "the number of categories, n,", low=1, high=distinct)
        return _named(_kmeans(vectors, n, seed), names)
    for count in range(min(2, distinct), distinct + 1):
        label = _kmeans(vectors, count, seed)
        same = (label[:, None] == label) & ~np.eye(len(names), dtype=bool)
        if count < distinct and np.corrcoef(vectors)[same].mean() > 0.5:
            break
    return _named(label, names)


def _kmeans(vectors: np.ndarray, n: int, seed: int) -> np.ndarray:
    """Labels 0 .. n - 1 with the least sum of squares within."""
    from scipy.cluster.vq import ClusterError, kmeans2

    generator = np.random.default_rng(seed)
    best, least = None, math.inf
    for _ in range(_STARTS):
        try:
            centres, label = kmeans2(
                vectors, n, iter=30, minit="++", missing="raise", rng=generator
            )
        except ClusterError:  # a category became empty
            continue
        within = float(((vectors - centres[label]) ** 2).sum())
        if within < least - 1e-12:
            best, least = label, within
    if best is None:
        raise ValueError(f"k-means found no {n} categories; ask for fewer.")
    return best


def _named(label: np.ndarray, names: Sequence[str]) -> list[list[str]]:
    members: dict[int, list[str]] = {}
    for value, name in zip(label.tolist(), names, strict=True):
        members.setdefault(value, []).append(name)
    return list(members.values())


def families(
    categories: Sequence[Sequence[str]], n: int, k: int, *, imbalance: float = 0, seed: int = 0
) -> list[str]:
    """A random benchmark of n * k corruptions from n categories, more or less balanced.

    The benchmarks of Laugros, Caplier and Ospici, BMVC 2021: n categories are represented, by k
    corruptions each on average; imbalance is the standard deviation of these n numbers, to one
    decimal, as in their public code. They get to an imbalance above 0 by replacing members one by
    one; here the numbers are drawn at once, evenly among those of that imbalance (this project's
    choice), then the categories that have so many, then the members.

    Args:
        categories: names by category, as from `categories`.
        n: how many categories are represented.
        k: members of each, on average.
        imbalance: 0 for k members of each.
        seed: of the draws.

    Returns names, in the order of the categories.

    Raises:
        ValueError: n or k below 1, more categories than there are, a name in two categories, or
            an imbalance that the categories don't allow; the message names those they do.
    """
    n = check_whole(n, "n, the number of categories,", low=1, high=len(categories))
    k, seed = check_whole(k, "k", low=1), check_seed(seed)
    imbalance = check_number(imbalance, "imbalance", low=0)
    check_nonempty([name for members in categories for name in members], "the categories")
    sizes = np.array([len(members) for members in categories])
    largest = np.sort(sizes)[::-1][:n]
    possible = [counts for counts in _partitions(n * k, n) if (largest >= counts).all()]
    fitting = [counts for counts in possible if round(np.std(counts), 1) == round(imbalance, 1)]
    if not fitting:
        allowed = sorted({float(round(np.std(counts), 1)) for counts in possible})
        raise ValueError(
            f"no {n * k} corruptions of {n} of these categories have an imbalance of "
            f"{imbalance:g}; allowed: {', '.join(map(str, allowed)) or 'none, choose fewer'}."
        )
    generator = np.random.default_rng(seed)
    counts = fitting[generator.integers(len(fitting))]
    drawn = generator.permutation(len(categories))[:n]
    while (sizes[drawn] < counts).any():
        drawn = generator.permutation(len(categories))[:n]
    return [
        str(name)
        for category, count in sorted(zip(drawn.tolist(), counts, strict=True))
        for name in generator.permutation(list(categories[category]))[:count]
    ]


def _partitions(total: int, parts: int, most: int | None = None) -> Iterator[tuple[int, ...]]:
    """All ways to write `total` as a sum of whole numbers above 0, the largest first."""
    if parts == 1:
        if most is None or total <= most:
            yield (total,)
        return
    for head in range(min(most or total, total - parts + 1), (total - 1) // parts, -1):
        for tail in _partitions(total - head, parts - 1, head):
            yield (head, *tail)


# --- Severities ----------------------------------------------------------------------------------


def calibrated_severities(accuracy: pd.DataFrame, *, clean: float, loss: float) -> pd.DataFrame:
    """The severity of each corruption at which it costs the model most nearly a given loss.

    Args:
        accuracy: of the standard model, in [0, 1]: a row for each corruption, a column for each
            severity, some of 1 to 5. Use images that the benchmark won't be made of.
        clean: its accuracy on clean images.
        loss: of accuracy, that each corruption is to cost, above 0 and up to `clean`.

    Returns a row for each corruption: "severity", int, the weaker one if two are as near; "loss",
    what it costs there; and "reached", whether its losses lie on both sides of the one wanted. If
    not, the corruption can't be calibrated: it never costs so much, or always more.

    Raises:
        ValueError: accuracies outside [0, 1] or NaN, columns that are no severities, a bad clean
            accuracy or loss.
    """
    severities = [int(column) if column in SEVERITIES else 0 for column in accuracy.columns]
    if not severities or sorted(set(severities) - {0}) != severities:
        raise ValueError(
            f"the columns must be severities, of 1 to 5 and rising, got {list(accuracy.columns)}."
        )
    check_nonempty([str(name) for name in accuracy.index], "the list of corruptions")
    clean = check_number(clean, "the clean accuracy", low=0, above=True, high=1)
    loss = check_number(loss, "the loss", low=0, above=True, high=clean)
    losses = (clean - _accuracies(accuracy)).round(12)
    nearest = abs(losses - loss).round(12).argmin(axis=1)
    return pd.DataFrame(
        {
            "severity": np.array(severities)[nearest],
            "loss": losses[np.arange(len(losses)), nearest],
            "reached": (losses.min(axis=1) <= loss) & (losses.max(axis=1) >= loss),
        },
        index=accuracy.index,
    )


# --- Checks --------------------------------------------------------------------------------------


def _similarity(overlap: Overlaps) -> tuple[list[str], np.ndarray]:
    """Names of the candidates, and their overlaps clipped to [0, 1], float (..., K, K)."""
    values = np.asarray(overlap, dtype=float)
    if values.ndim < 2 or values.shape[-1] != values.shape[-2] or not values.shape[-1]:
        raise ValueError(
            f"the overlap must be square, a row and column for each corruption, got {values.shape}."
        )
    names = [str(position) for position in range(values.shape[-1])]
    if isinstance(overlap, pd.DataFrame):
        names = [str(name) for name in overlap.index]
        if names != [str(name) for name in overlap.columns]:
            raise ValueError(
                "the overlap must have the same names in rows and columns, in the same order, got "
                f"the rows {names} and the columns {list(overlap.columns)}."
            )
        check_nonempty(names, "the overlap")
    bad = ~np.isfinite(values).all(axis=tuple(range(values.ndim - 2)))
    if bad.any():
        without = np.diagonal(bad) if np.diagonal(bad).any() else bad.any(axis=0)
        raise ValueError(
            "no overlap is known of "
            f"{', '.join(name for name, lacks in zip(names, without, strict=True) if lacks)} "
            "(NaN: the own gain is too small?); leave them out: overlap.drop(index=names, "
            "columns=names)."
        )
    if not np.allclose(values, np.swapaxes(values, -1, -2), atol=1e-6):
        raise ValueError(
            "the overlap must be symmetric; give the overlapping scores, not the directed halves."
        )
    if not np.allclose(np.diagonal(values, axis1=-2, axis2=-1), 1, atol=1e-6):
        raise ValueError("the overlap of a corruption with itself, the diagonal, must be 1.")
    return names, np.clip(values, 0, 1)


def _positions(chosen: Sequence[str], names: list[str]) -> list[int]:
    return [names.index(name) for name in check_names(chosen, names, "corruption")]


def _means(accuracy: pd.DataFrame) -> np.ndarray:
    """Each model's mean over all candidates."""
    names = [str(name) for name in accuracy.columns]
    check_nonempty(names, "the list of corruptions, the columns of the accuracies,")
    if "clean" in names:
        raise ValueError('leave out the column "clean": the mean is over corruptions.')
    if len(accuracy) < 2:
        raise ValueError(f"two models or more are needed, got {len(accuracy)}.")
    return _accuracies(accuracy).mean(axis=1)


def _accuracies(accuracy: pd.DataFrame) -> np.ndarray:
    values = accuracy.to_numpy(dtype=float)
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError("accuracies must lie in [0, 1], without NaN; divide percentages by 100.")
    return values
