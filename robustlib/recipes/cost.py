"""What a training step costs, so that recipes can be compared at equal compute."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from robustlib.recipes.adversarial import FGSM, PGD, TLAT
from robustlib.recipes.augmix import AugMix
from robustlib.recipes.base import Recipe
from robustlib.recipes.plain import Augmented, LabelSmoothing, Mixup, Standard

_FORWARD, _TO_IMAGES, _TO_ALL = 1, 1, 2  # passes forward, and backward to images or to all weights
_STEP = _FORWARD + _TO_ALL

EQUAL_COMPUTE = ", equal compute"
"""Ends the name of a recipe that was trained for as much compute as another, not as many steps."""


def step_cost(recipe: Recipe) -> float:
    """Passes through the network in a step, in units of the standard step on the same batch.

    A pass forward counts 1; backward, the gradients with respect to a layer's inputs 1, and with
    respect to its weights another 1, which attacks do without. So a standard step has 3 passes, and
    M-TLAT, which shares the pass forward with its attack, 7. What a recipe does to images or labels
    isn't counted (this project's choice).

    Args:
        recipe: one of this project's, or of a class derived from them.

    Raises:
        ValueError: another recipe, whose passes aren't known.
    """
    if isinstance(recipe, PGD):
        return 1 + recipe.share * recipe.steps * (_FORWARD + _TO_IMAGES) / _STEP
    if isinstance(recipe, FGSM):
        return 1 + recipe.share * (_FORWARD + _TO_IMAGES) / _STEP
    if isinstance(recipe, TLAT):
        of_attack = _TO_IMAGES if recipe.batch_norm == "train" else _FORWARD + _TO_IMAGES
        return 2 + of_attack / _STEP
    if isinstance(recipe, AugMix):
        return 3.0
    if isinstance(recipe, Standard | Augmented | LabelSmoothing | Mixup):
        return 1.0
    raise ValueError(
        f"the cost of a step of {recipe.name!r} isn't known: only recipes of robustlib.recipes "
        "have one."
    )


def epochs_of_equal_compute(recipe: Recipe, *, epochs: int, reference: Recipe) -> int:
    """The epochs of a recipe that take as many passes as `epochs` of the reference; at least 1.

    Rounded to whole epochs, so what remains of a difference is at most half an epoch's.
    """
    return max(1, round(epochs * step_cost(reference) / step_cost(recipe)))


def at_equal_compute(
    recipes: Iterable[Recipe], *, epochs: int, reference: Recipe
) -> dict[int, list[Recipe]]:
    """Those recipes that must be trained for other epochs to cost what the reference does.

    Returns them by their epochs, under names with `EQUAL_COMPUTE` added.
    """
    found: dict[int, list[Recipe]] = {}
    for recipe in recipes:
        needed = epochs_of_equal_compute(recipe, epochs=epochs, reference=reference)
        if needed != epochs:
            renamed = replace(recipe, name=recipe.name + EQUAL_COMPUTE)  # type: ignore[type-var]
            found.setdefault(needed, []).append(renamed)
    return found
