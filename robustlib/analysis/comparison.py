"""Recipes beside a reference, at equal steps and at equal compute: gains, and claims on them.

A recipe's step may cost several standard steps. At equal steps, all have seen as many batches; at
equal compute, all have cost as many passes through the network, and cheap recipes have taken more
steps. What a method is worth is what it gains at equal compute.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from robustlib.analysis.crossed import Estimate, crossed_estimate
from robustlib.analysis.hypotheses import Hypothesis, noninferiority, superiority
from robustlib.analysis.metrics import mce_estimates, mean_gain_over
from robustlib.core.checks import check_name
from robustlib.evaluation import Evaluation
from robustlib.recipes.cost import EQUAL_COMPUTE

EQUAL_STEPS = "equal steps"
AT_EQUAL_COMPUTE = EQUAL_COMPUTE.removeprefix(", ")

Groups = Mapping[str, tuple[Evaluation, Sequence[str]]]
"""What is measured on, in words -> an evaluation and the perturbations to average."""


def contestants(recipes: Sequence[str]) -> dict[str, dict[str, str]]:
    """Comparison -> recipe -> the name under which it was evaluated for it.

    Args:
        recipes: names of an evaluation, some of which may end with `EQUAL_COMPUTE`; those without
            such a twin stand for themselves at equal compute, too.

    Returns "equal steps" and, if any name ends so, "equal compute".
    """
    plain = [name for name in recipes if not name.endswith(EQUAL_COMPUTE)]
    found = {EQUAL_STEPS: {name: name for name in plain}}
    if len(plain) < len(recipes):
        twins = {name: name + EQUAL_COMPUTE for name in plain}
        found[AT_EQUAL_COMPUTE] = {
            name: twin if twin in recipes else name for name, twin in twins.items()
        }
    return found


def gains(groups: Groups, *, reference: str = "standard") -> pd.DataFrame:
    """Accuracy that each recipe gains over the reference, in the same comparison.

    Args:
        groups: see `Groups`; all evaluations of the same recipes and seeds.
        reference: the recipe to compare with.

    Returns a row for each comparison, recipe but the reference, and group: comparison, recipe,
    group, gain, low and high (95 %, seeds and images, or with one seed images only), seeds, n.

    Raises:
        UnknownNameError: the reference isn't there.
        ValueError: as for `Evaluation.per_seed`.
    """
    rows = []
    for comparison, names in _compared(groups).items():
        check_name(reference, names, "recipe")
        for recipe in names:
            for group in groups if recipe != reference else ():
                found = _gain(groups[group], names[recipe], names[reference])
                rows.append((comparison, recipe, group, *_row(found)))
    return _frame(rows, "gain")


def advantages(groups: Groups, recipe: str) -> pd.DataFrame:
    """Accuracy that one recipe gains over each of the others, in the same comparison.

    Returns a row for each comparison, other recipe and group: comparison, over (its name), group,
    gain, low, high, seeds, n. Arguments and errors as for `gains`, whose reference is the recipe.
    """
    others = gains(groups, reference=recipe).rename(columns={"recipe": "over"})
    turned = {"gain": "gain", "low": "high", "high": "low"}
    return others.assign(**{name: 0 - others[other] for name, other in turned.items()})


def levels(groups: Groups) -> pd.DataFrame:
    """Accuracy of each recipe, averaged over the perturbations of each group.

    Returns a row for each comparison, recipe and group: comparison, recipe, group, accuracy, low
    and high (as in `gains`), seeds, n. Errors as for `gains`.
    """
    rows = []
    for comparison, names in _compared(groups).items():
        for recipe, evaluated in names.items():
            for group, (evaluation, perturbations) in groups.items():
                correct = evaluation.per_seed([evaluated], perturbations)[:, 0].mean(axis=1)
                rows.append((comparison, recipe, group, *_row(crossed_estimate(correct))))
    return _frame(rows, "accuracy")


def mean_corruption_errors(
    evaluation: Evaluation, corruptions: Sequence[str], *, reference: str = "standard"
) -> pd.DataFrame:
    """mCE of each recipe in percent, the reference of the same comparison being 100.

    Args:
        evaluation: of the corruptions at the same severities for all recipes.
        corruptions: to average over, such as `corruptions.names("imagenet_c")`.
        reference: the recipe whose errors divide.

    Returns a row for each comparison and recipe: comparison, recipe, group ("mCE"), mce, low and
    high (as in `gains`), seeds, n. Errors as for `gains`.
    """
    rows = []
    for comparison, names in _compared({"": (evaluation, corruptions)}).items():
        check_name(reference, names, "recipe")
        correct = evaluation.per_seed(list(names.values()), corruptions)
        found = mce_estimates(correct, reference=list(names).index(reference))
        rows += [
            (comparison, recipe, "mCE", *_row(found[place])) for place, recipe in enumerate(names)
        ]
    return _frame(rows, "mce")


def claims(
    groups: Groups,
    recipes: Mapping[str, str],
    *,
    paper: str,
    clean: str,
    margin: float,
    reference: str = "standard",
) -> list[Hypothesis]:
    """The claims of a method: no loss of clean accuracy, a gain on everything else.

    Args:
        groups: see `Groups`.
        recipes: name in the evaluation -> name in the statements.
        paper: short name.
        clean: the group that is tested for non-inferiority; the others for superiority.
        margin: the loss that counts as none, in accuracy.
        reference: the recipe to compare with.

    Returns one hypothesis for each comparison, recipe and group.

    Raises:
        UnknownNameError: a recipe, the reference or `clean` isn't there.
        ValueError: a margin that isn't positive.
    """
    check_name(clean, groups, "group")
    found = []
    for comparison, names in _compared(groups).items():
        for recipe, words in recipes.items():
            one, other = (names[check_name(name, names, "recipe")] for name in (recipe, reference))
            for group in groups:
                gain = _gain(groups[group], one, other)
                if group == clean:
                    outcome = noninferiority(gain, margin=margin)
                    statement = f"{words} keeps the accuracy on {group}"
                else:
                    outcome = superiority(gain)
                    statement = f"{words} raises the accuracy under {group}"
                measure = f"mean gain over {reference}, {comparison}"
                found.append(Hypothesis(paper, statement, measure, outcome))
    return found


def _compared(groups: Groups) -> dict[str, dict[str, str]]:
    evaluation, _ = next(iter(groups.values()))
    return contestants([str(name) for name in evaluation.table["recipe"].unique()])


def _gain(group: tuple[Evaluation, Sequence[str]], recipe: str, reference: str) -> Estimate:
    evaluation, perturbations = group
    return mean_gain_over(evaluation, recipe, perturbations, reference=reference)


def _row(estimate: Estimate) -> tuple[float, float, float, int, int]:
    found = estimate.interval()
    ends = (float(found.estimate), float(found.low), float(found.high))
    return (*ends, found.seeds, found.images)


def _frame(rows: Sequence[tuple[object, ...]], value: str) -> pd.DataFrame:
    columns = ["comparison", "recipe", "group", value, "low", "high", "seeds", "n"]
    return pd.DataFrame(rows, columns=columns)
