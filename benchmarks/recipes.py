"""Which hyperparameters: each recipe of the tables of record with several, on held-out images.

    python -m benchmarks.recipes data/cifar10-jpeg      about 70 minutes of one core

Candidates are trained on 20,000 of the training images of CIFAR-10 for 6 epochs and scored on 2,000
others, of which 500 are attacked; the test images have no say. The rule, the same for all recipes,
written down before the results: of a recipe's candidates that lose at most `LOSS` of the standard
model's clean accuracy, the one with the best mean of two accuracies, that over the nineteen
corruptions of ImageNet-C at severity 3 and that under PGD at 2/255; if all lose more, the one that
loses least. Label smoothing and AugMix keep their authors' settings, and `mtlat_augmented` takes
those of `mtlat`. The table is `benchmarks/recipes.csv`. With one training seed, differences of a
point mean little: what is chosen is reasonable, not best.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch

from benchmarks.networks import part_for_choosing
from robustlib import corruptions, data
from robustlib.analysis import accuracy_matrix
from robustlib.core.jobs import Workers
from robustlib.core.store import Store
from robustlib.data import Dataset
from robustlib.evaluation import evaluate
from robustlib.perturbations import Attack, Corruption
from robustlib.recipes import Recipe
from robustlib.recipes.suite import suite
from robustlib.training import Budget, train

TABLE = Path(__file__).with_name("recipes.csv")
LOSS = 0.01
ATTACK = Attack("pgd", "2/255", steps=10)
RADII = ("1/255", "2/255", "4/255", "8/255")
GRIDS: dict[str, dict[str, tuple[str, ...]]] = {
    "standard": {},
    "mixup": {"alpha": ("0.2", "0.4")},
    "fgsm": {"eps": RADII[1:]},
    "pgd": {"eps": RADII[:3]},
    "tlat": {"eps": RADII[1:]},
    "mtlat": {"eps": RADII[1:], "alpha": ("0.1", "0.4")},
    "mtlat_weight": {"eps": RADII[1:], "label_weight": ("0.1", "0.3")},
}


def candidates(grids: Mapping[str, Mapping[str, Sequence[str]]]) -> dict[str, Recipe]:
    """Every recipe of the grids with every combination, by its entries for `suite`, joined.

    The standard recipe, which has none, is "standard".
    """
    found: dict[str, Recipe] = {}
    for name, grid in grids.items():
        for values in itertools.product(*grid.values()):
            entries = [f"{name}.{key}={value}" for key, value in zip(grid, values, strict=True)]
            label = ", ".join(entries) or name
            found[label] = replace(suite(entries)[name], name=label)  # type: ignore[type-var]
    return found


def scores(
    part: Dataset,
    grids: Mapping[str, Mapping[str, Sequence[str]]],
    *,
    architecture: str,
    budget: Budget,
    attacked: int,
    store: Store,
    workers: Workers,
) -> pd.DataFrame:
    """A row a candidate: recipe, hyperparameters, clean, corrupted and pgd (accuracies).

    Args:
        part: candidates are trained on its training split and scored on its test split.
        grids: as `GRIDS`.
        architecture, budget, store, workers: as in `robustlib.training.train`.
        attacked: images that are attacked.
    """
    found = candidates(grids)
    trained = train(
        list(found.values()),
        part,
        architecture=architecture,
        budget=budget,
        seeds=[0],
        store=store,
        device="cpu",
        workers=workers,
    )
    nineteen = corruptions.names("imagenet_c")
    grid = [Corruption(name, 3) for name in nineteen]
    common = evaluate(trained, part.test, grid, store=store, workers=workers)
    hit = evaluate(trained, part.test.first(attacked), [ATTACK], store=store, workers=workers)
    accuracy = accuracy_matrix(common.table).loc[list(found)]
    return pd.DataFrame(
        {
            "recipe": [label.partition(".")[0] for label in found],
            "hyperparameters": [label if "." in label else "" for label in found],
            "clean": accuracy["clean"].to_numpy(),
            "corrupted": accuracy[list(nineteen)].mean(axis=1).to_numpy(),
            "pgd": accuracy_matrix(hit.table).loc[list(found), "pgd"].to_numpy(),
        }
    )


def chosen(table: pd.DataFrame) -> dict[str, list[str]]:
    """The entries for `suite` that the rule takes, by recipe, from a table of `scores`."""
    floor = table.set_index("recipe").at["standard", "clean"] - LOSS
    found = {}
    for recipe, rows in table.groupby("recipe", sort=False):
        kept = rows[rows["clean"] >= floor - 1e-9]
        if kept.empty:
            kept = rows.nlargest(1, "clean")
        best = kept.loc[(kept["corrupted"] + kept["pgd"]).idxmax(), "hyperparameters"]
        if best:
            found[str(recipe)] = str(best).split(", ")
    found["mtlat_augmented"] = [
        entry.replace("mtlat.", "mtlat_augmented.") for entry in found.get("mtlat", [])
    ]
    return found


def read() -> pd.DataFrame:
    """The committed table."""
    return pd.read_csv(TABLE, keep_default_na=False)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.recipes",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", help="with train/ and test/, a folder a class in each")
    torch.set_num_threads(1)
    whole = data.load("folder", root=parser.parse_args().folder, image_size=32, n_train=22_000)
    with Workers() as workers:
        table = scores(
            part_for_choosing(whole, held_out=2000),
            GRIDS,
            architecture="small_resnet",
            budget=Budget(epochs=6, weight_decay=5e-4),
            attacked=500,
            store=Store(),
            workers=workers,
        )
    table.to_csv(TABLE, index=False, float_format="%.4g")
    print(table.to_string(index=False))
    print(f"chosen: {chosen(table)}")


if __name__ == "__main__":
    main()
