"""Recipes at equal steps and at equal compute."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest

from robustlib.analysis import comparison
from robustlib.analysis.hypotheses import hypotheses_table
from robustlib.core.checks import UnknownNameError
from robustlib.evaluation import COLUMNS, Evaluation
from robustlib.recipes import FGSM, MTLAT, Mixup, Standard
from robustlib.recipes.cost import EQUAL_COMPUTE, at_equal_compute

# Right of ten images, by seed; "noise" at two severities.
RIGHT = {
    "standard": {"clean": [8, 8], "noise": [4, 4], "fog": [6, 6]},
    "mtlat": {"clean": [8, 8], "noise": [6, 6], "fog": [6, 6]},
    "standard, equal compute": {"clean": [9, 9], "noise": [5, 5], "fog": [7, 7]},
}
COPIES = 50


def evaluation(right: dict[str, dict[str, list[int]]] = RIGHT) -> Evaluation:
    rows, correct = [], []
    for (recipe, cells), seed in itertools.product(right.items(), range(2)):
        for name in cells:
            for severity in {"clean": (0,), "noise": (1, 5)}.get(name, (3,)):
                entry = {"recipe": recipe, "training_seed": seed, "perturbation": name}
                rows.append(
                    dict.fromkeys(COLUMNS, "")
                    | entry
                    | {"model": f"{recipe}-{seed}", "severity": severity, "eps": 0.0}
                )
                images = np.random.default_rng(3).permutation(10 * COPIES)
                correct.append(images < cells[name][seed] * COPIES)
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    table["family"] = table["perturbation"]
    table["n"] = 10 * COPIES
    table["accuracy"] = np.mean(correct, axis=1)
    return Evaluation(table, np.array(correct), computed=0)


GROUPS: comparison.Groups = {
    "clean images": (evaluation(), ["clean"]),
    "two corruptions": (evaluation(), ["noise", "fog"]),
}


def test_a_recipe_without_a_twin_stands_for_itself() -> None:
    assert comparison.contestants(["standard", "mtlat", "standard" + EQUAL_COMPUTE]) == {
        "equal steps": {"standard": "standard", "mtlat": "mtlat"},
        "equal compute": {"standard": "standard, equal compute", "mtlat": "mtlat"},
    }
    assert list(comparison.contestants(["standard", "mtlat"])) == ["equal steps"]


def test_gains_by_hand() -> None:
    found = comparison.gains(GROUPS).set_index(["comparison", "recipe", "group"])
    gain = found["gain"].unstack("group")
    assert gain.loc[("equal steps", "mtlat")].to_dict() == pytest.approx(
        {"clean images": 0.0, "two corruptions": 0.1}
    )
    assert gain.loc[("equal compute", "mtlat")].to_dict() == pytest.approx(
        {"clean images": -0.1, "two corruptions": 0.0}
    )
    assert (found["low"] <= found["gain"]).all()
    assert set(found["seeds"]) == {2}
    assert set(found["n"]) == {500}


def test_advantages_over_each_of_the_others() -> None:
    over = comparison.advantages(GROUPS, "mtlat")
    assert set(over["over"]) == set(comparison.gains(GROUPS, reference="mtlat")["recipe"])
    mine = over[over["over"] == "standard"].drop(columns="over").reset_index(drop=True)
    theirs = comparison.gains(GROUPS).query("recipe == 'mtlat'").drop(columns="recipe")
    pd.testing.assert_frame_equal(mine, theirs.reset_index(drop=True))


def test_levels_and_mce_by_hand() -> None:
    levels = comparison.levels(GROUPS).set_index(["comparison", "recipe", "group"])["accuracy"]
    assert levels[("equal steps", "standard", "two corruptions")] == pytest.approx(0.5)
    assert levels[("equal compute", "standard", "clean images")] == pytest.approx(0.9)
    found = comparison.mean_corruption_errors(evaluation(), ["noise", "fog"])
    mce = found.set_index(["comparison", "recipe"])["mce"]
    assert mce[("equal steps", "standard")] == pytest.approx(100)
    assert mce[("equal steps", "mtlat")] == pytest.approx(100 * (0.4 / 0.6 + 1) / 2)
    assert mce[("equal compute", "mtlat")] == pytest.approx(100 * (0.4 / 0.5 + 0.4 / 0.3) / 2)


def test_claims_name_recipe_comparison_and_test() -> None:
    made = comparison.claims(
        GROUPS, {"mtlat": "M-TLAT"}, paper="M-TLAT", clean="clean images", margin=0.01
    )
    assert [claim.outcome.test for claim in made] == ["non-inferiority", "superiority"] * 2
    assert [claim.statement for claim in made[:2]] == [
        "M-TLAT keeps the accuracy on clean images",
        "M-TLAT raises the accuracy under two corruptions",
    ]
    table = hypotheses_table(made)
    compute = table[table["measure"].str.endswith("equal compute")]
    assert list(compute["value"]) == pytest.approx([-0.1, 0.0])
    assert compute["verdict"].iloc[0] == "contradicted"


def test_what_isn_t_there_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'mtlat'"):
        comparison.claims(
            GROUPS, {"mtlt": "M-TLAT"}, paper="M-TLAT", clean="clean images", margin=0.01
        )
    with pytest.raises(UnknownNameError, match="group"):
        comparison.claims(GROUPS, {"mtlat": "M-TLAT"}, paper="", clean="clean", margin=0.01)
    with pytest.raises(ValueError, match="margin"):
        comparison.claims(GROUPS, {"mtlat": ""}, paper="", clean="clean images", margin=0)
    with pytest.raises(UnknownNameError, match="recipe"):
        comparison.gains(GROUPS, reference="tlat")
    with pytest.raises(UnknownNameError, match="recipe"):
        comparison.advantages(GROUPS, "tlat")


def test_only_other_epochs_make_a_twin() -> None:
    twins = at_equal_compute([Standard(), Mixup(), FGSM(), MTLAT()], epochs=3, reference=MTLAT())
    names = {epochs: [recipe.name for recipe in some] for epochs, some in twins.items()}
    assert names == {
        7: ["standard, equal compute", "mixup, equal compute"],
        5: ["fgsm, equal compute"],
    }
