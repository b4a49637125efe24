"""Training recipes: each is a frozen dataclass whose `loss` is the batch loss it minimises.

A recipe sees one batch at a time and draws all its randomness from `batch.seed`, so that training
is reproducible whatever ran before. All recipes take the same number of optimiser steps on
batches of the same size. Hyperparameters marked "this project's choice" are recalled from the
papers or chosen here, not confirmed by published code.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

from robustlib.core.checks import check_name
from robustlib.core.identity import Registry
from robustlib.recipes.adversarial import (
    FGSM,
    MTLAT,
    PGD,
    TLAT,
    radii,
    targeted_labeling_example,
)
from robustlib.recipes.augmix import AugMix
from robustlib.recipes.base import Batch, Recipe, soft_cross_entropy
from robustlib.recipes.plain import Augmented, LabelSmoothing, Mixup, Standard, mix

RECIPES: Registry[Callable[..., Recipe]] = Registry(
    {
        "standard": Standard,
        "augmented": Augmented,
        "mixup": Mixup,
        "label_smoothing": LabelSmoothing,
        "fgsm": FGSM,
        "pgd": PGD,
        "tlat": TLAT,
        "mtlat": MTLAT,
        "augmix": AugMix,
    }
)

__all__ = [
    "FGSM",
    "MTLAT",
    "PGD",
    "RECIPES",
    "TLAT",
    "AugMix",
    "Augmented",
    "Batch",
    "LabelSmoothing",
    "Mixup",
    "Recipe",
    "Standard",
    "build",
    "mix",
    "radii",
    "soft_cross_entropy",
    "targeted_labeling_example",
]


def build(recipe: str, **hyperparameters: Any) -> Recipe:
    """The recipe of that name, one of `RECIPES`, say `build("mtlat", alpha=0.4)`.

    Raises:
        UnknownNameError: unknown recipe, or a hyperparameter that it doesn't have.
        ValueError: a hyperparameter out of range, or `corruptions` missing for "augmented".
    """
    check_name(recipe, RECIPES, "recipe")
    allowed = [field.name for field in fields(RECIPES[recipe])]  # type: ignore[arg-type]
    for name in hyperparameters:
        check_name(name, allowed, f"hyperparameter of {recipe!r}")
    if recipe == "augmented":
        hyperparameters.setdefault("corruptions", ())
    return RECIPES[recipe](**hyperparameters)
