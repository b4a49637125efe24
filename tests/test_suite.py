"""The recipes of the tables of record, and what a step of each costs."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from torch import Tensor, nn

from benchmarks import run as speed
from robustlib.core.checks import UnknownNameError
from robustlib.recipes import FGSM, MTLAT, PGD, TLAT, Batch, Standard
from robustlib.recipes.cost import epochs_of_equal_compute, step_cost
from robustlib.recipes.suite import SUITE, suite, without_mixup


def test_both_readings_of_the_label_weight_are_there() -> None:
    found = suite()
    assert list(found) == [recipe.name for recipe in SUITE]
    assert found["mtlat"] == MTLAT()
    assert MTLAT().label_weight == "radius"
    assert found["mtlat_weight"].label_weight == 0.2
    assert len(found["mtlat_augmented"].corruptions) == 8


def test_hyperparameters_are_changed_by_name() -> None:
    found = suite(["mtlat.eps=2/255", "pgd.steps = 3", "mtlat_weight.label_weight=1/10"])
    assert found["mtlat"] == MTLAT(eps=2 / 255)
    assert found["pgd"].steps == 3
    assert isinstance(found["pgd"].steps, int)
    assert found["mtlat_weight"] == MTLAT(label_weight=0.1, name="mtlat_weight")
    assert found["tlat"] == TLAT()
    assert suite(["tlat.label_weight=0.5", "tlat.target=least_likely"])["tlat"] == TLAT(
        label_weight=0.5, target="least_likely"
    )


def test_without_mixup_all_else_stays() -> None:
    recipe = MTLAT(eps=4 / 255, radius="fixed", label_weight=0.3, alpha=0.1)
    assert without_mixup(recipe) == TLAT(
        eps=4 / 255, radius="fixed", label_weight=0.3, name="mtlat_unmixed"
    )
    with pytest.raises(ValueError, match="take mtlat_augmented"):
        without_mixup(suite()["mtlat_augmented"])


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (["mtlat.epz=1"], "Did you mean 'eps'"),
        (["mtlt.eps=1"], "Did you mean 'mtlat'"),
        (["mtlat.eps=7"], r"mtlat\.eps: eps must be a number from 0 to 0\.5"),
        (["mtlat.eps"], "recipe.hyperparameter=value"),
        (["mtlat.eps=0.1", "mtlat.eps=0.2"], "given twice"),
        (["pgd.steps=2.5"], "integer"),
        (["standard.name=mine"], "name"),
        (["mtlat_augmented.corruptions=nocc"], "Did you mean"),
    ],
)
def test_bad_hyperparameters_are_refused(entries: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        suite(entries)


@pytest.mark.parametrize(
    ("recipe", "cost"),
    [
        (Standard(), 1),
        (FGSM(), 1 + 1 / 3),
        (FGSM(share=1.0), 1 + 2 / 3),
        (PGD(steps=7), 1 + 14 / 3),
        (PGD(steps=4, share=0.5), 1 + 4 / 3),
        (MTLAT(), 7 / 3),
        (TLAT(batch_norm="eval"), 8 / 3),
    ],
)
def test_the_cost_of_a_step_in_standard_steps(recipe: Standard, cost: float) -> None:
    assert step_cost(recipe) == pytest.approx(cost)


def test_the_cost_is_near_what_was_measured() -> None:
    table = pd.read_csv(Path(speed.__file__).with_name("measured.csv"))
    steps = table[table["measure"].str.startswith("step")].set_index("case")["ratio"]
    for recipe in (*suite().values(), PGD()):
        if (recipe.name in steps and recipe.name not in ("augmix", "pgd")) or recipe == PGD():
            assert step_cost(recipe) == pytest.approx(steps[recipe.name], rel=0.1)
    assert step_cost(suite()["augmix"]) < steps["augmix"]  # its mixtures aren't passes


def test_equal_compute_in_epochs() -> None:
    assert epochs_of_equal_compute(Standard(), epochs=9, reference=MTLAT()) == 21
    assert epochs_of_equal_compute(MTLAT(), epochs=9, reference=MTLAT()) == 9
    assert epochs_of_equal_compute(PGD(steps=100), epochs=1, reference=MTLAT()) == 1


def test_another_recipe_has_no_known_cost() -> None:
    class Mine:
        name = "mine"

        def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
            raise NotImplementedError

    with pytest.raises(ValueError, match="cost of a step of 'mine'"):
        step_cost(Mine())


def test_unknown_recipes_name_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'augmix'"):
        suite(["augmx.severity=1"])
