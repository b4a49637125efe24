"""The recipes that the tables of record compare."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields, replace

from robustlib.core.checks import as_number, check_name
from robustlib.recipes.adversarial import FGSM, MTLAT, PGD, TLAT
from robustlib.recipes.augmix import AugMix
from robustlib.recipes.base import Recipe
from robustlib.recipes.plain import LabelSmoothing, Mixup, Standard

SUITE: tuple[Recipe, ...] = (
    Standard(),
    LabelSmoothing(),
    Mixup(),
    FGSM(),
    PGD(eps=4 / 255, steps=4),
    AugMix(),
    TLAT(),
    MTLAT(),
    MTLAT(label_weight=0.2, name="mtlat_weight"),
    MTLAT(corruptions="noc", name="mtlat_augmented"),
)


def suite(hyperparameters: Iterable[str] = ()) -> dict[str, Recipe]:
    """The recipes by name, with some hyperparameters changed.

    `mtlat` takes the radius as the label's weight, the likelier reading of the paper;
    `mtlat_weight` one weight for all images; `mtlat_augmented` perturbs half of each batch by the
    eight corruptions of ImageNet-NOC before it is mixed. The others are what M-TLAT is made of,
    and what it has to beat.

    Args:
        hyperparameters: each "recipe.hyperparameter=value", such as "mtlat.eps=2/255".

    Raises:
        UnknownNameError: no such recipe, or one without such a hyperparameter.
        ValueError: an entry of another form, or given twice; a value out of range.
    """
    found = {recipe.name: recipe for recipe in SUITE}
    given = set()
    for entry in hyperparameters:
        left, _, text = (part.strip() for part in entry.partition("="))
        name, _, hyperparameter = left.partition(".")
        if not (name and hyperparameter and text):
            raise ValueError(
                "a hyperparameter must have the form recipe.hyperparameter=value, such as "
                f"mtlat.eps=0.02, got {entry!r}."
            )
        recipe = found[check_name(name, found, "recipe")]
        allowed = {field.name for field in fields(recipe)} - {"name", "loss_weights"}  # type: ignore[arg-type]
        check_name(hyperparameter, allowed, f"hyperparameter of {name!r}")
        if left in given:
            raise ValueError(f"{left} is given twice.")
        given.add(left)
        try:
            found[name] = replace(recipe, **{hyperparameter: _value(text)})  # type: ignore[type-var]
        except ValueError as error:
            raise ValueError(f"{left}: {error}") from None
    return found


def without_mixup(mtlat: MTLAT) -> TLAT:
    """M-TLAT with all but its Mixup, named "mtlat_unmixed": beside it, one sees what Mixup adds.

    `tlat` says so only where it shares all other hyperparameters with `mtlat`.

    Raises:
        ValueError: a recipe with corruptions, which would be taken away with Mixup.
    """
    if mtlat.corruptions:
        raise ValueError(
            f"{mtlat.name}: what Mixup adds can't be told from what corruptions add; leave "
            "corruptions empty, and take mtlat_augmented beside it for them."
        )
    shared = {field.name: getattr(mtlat, field.name) for field in fields(TLAT)}
    return TLAT(**shared | {"name": "mtlat_unmixed"})


def _value(text: str) -> float | str:
    try:
        number = as_number(text)
    except (ValueError, ZeroDivisionError):
        return text
    return int(number) if number == int(number) else number
