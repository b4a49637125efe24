"""Hyperparameters picked on held-out training images."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import yaml

from benchmarks import recipes
from robustlib.core.jobs import Workers
from robustlib.core.store import Store
from robustlib.data import Dataset
from robustlib.recipes.suite import suite
from robustlib.training import Budget

ROOT = Path(__file__).parents[1]


def test_every_combination_is_a_candidate() -> None:
    found = recipes.candidates(
        {"standard": {}, "mtlat": {"eps": ("2/255", "4/255"), "alpha": ("0.1", "0.4")}}
    )
    assert list(found)[:2] == ["standard", "mtlat.eps=2/255, mtlat.alpha=0.1"]
    assert len(found) == 5
    last = found["mtlat.eps=4/255, mtlat.alpha=0.4"]
    assert (last.eps, last.alpha) == (4 / 255, 0.4)  # type: ignore[attr-defined]
    assert all(recipe.name == label for label, recipe in found.items())


def test_the_rule_takes_the_most_robust_that_keeps_clean_accuracy() -> None:
    rows = [
        ("standard", "", 0.80, 0.50, 0.20),
        ("mixup", "mixup.alpha=0.1", 0.80, 0.51, 0.20),
        ("mixup", "mixup.alpha=0.4", 0.785, 0.60, 0.40),  # loses more than a point
        ("mtlat", "mtlat.eps=2/255, mtlat.alpha=0.1", 0.795, 0.52, 0.50),
        ("mtlat", "mtlat.eps=4/255, mtlat.alpha=0.1", 0.790, 0.51, 0.60),  # loses a point exactly
        ("fgsm", "fgsm.eps=2/255", 0.70, 0.50, 0.60),
        ("fgsm", "fgsm.eps=8/255", 0.60, 0.40, 0.90),  # all lose more: the least
    ]
    table = pd.DataFrame(rows, columns=["recipe", "hyperparameters", "clean", "corrupted", "pgd"])
    assert recipes.chosen(table) == {
        "mixup": ["mixup.alpha=0.1"],
        "mtlat": ["mtlat.eps=4/255", "mtlat.alpha=0.1"],
        "fgsm": ["fgsm.eps=2/255"],
        "mtlat_augmented": ["mtlat_augmented.eps=4/255", "mtlat_augmented.alpha=0.1"],
    }


def test_candidates_are_scored(tiny: Dataset, tmp_path: Path) -> None:
    with Workers(1) as workers:
        table = recipes.scores(
            tiny,
            {"standard": {}, "mixup": {"alpha": ("0.1",)}},
            architecture="small_resnet",
            budget=Budget(epochs=1, batch_size=16),
            attacked=4,
            store=Store(tmp_path),
            workers=workers,
        )
    assert list(table["recipe"]) == ["standard", "mixup"]
    assert table[["clean", "corrupted", "pgd"]].stack().between(0, 1).all()


def test_the_record_takes_what_the_committed_table_chose() -> None:
    table = recipes.read()
    assert set(table["recipe"]) == set(recipes.GRIDS)
    wanted = [entry for entries in recipes.chosen(table).values() for entry in entries]
    text = (ROOT / "params" / "cifar10" / "03_mtlat.yaml").read_text("utf-8")
    assert sorted(yaml.safe_load(text)["hyperparameters"]) == sorted(wanted)
    suite(wanted)
