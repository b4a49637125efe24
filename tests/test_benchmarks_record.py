"""What the runs of record are made from: their images, and their budget."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from benchmarks import record
from benchmarks.cifar10_jpeg import write_folder
from robustlib import data
from robustlib.data import Dataset


def test_a_folder_of_jpeg_files_is_read_back(tiny: Dataset, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    write_folder(tiny, folder)
    found = data.load("folder", root=folder, image_size=tiny.test.image_size)
    assert found.classes == tuple(sorted(tiny.classes))
    for name in ("train", "test"):
        mine, theirs = getattr(tiny, name), getattr(found, name)
        for label, kind in enumerate(tiny.classes):
            here = mine.images[mine.labels == label].float()
            there = theirs.images[theirs.labels == found.classes.index(kind)].float()
            assert len(here) == len(there)
            apart = (here[:, None] - there).abs().flatten(2).mean(dim=2)
            nearest = apart.argmin(dim=1).tolist()  # JPEG moves pixels, but no image to another
            assert sorted(nearest) == list(range(len(here)))
            assert apart.min(dim=1).values.max() < apart.median()
    with pytest.raises(ValueError, match="there already"):
        write_folder(tiny, folder)


def test_the_best_mean_accuracy_is_chosen() -> None:
    trials = pd.DataFrame(
        [
            {**candidate.settings(), "accuracy": accuracy, "seed": seed}
            for candidate, both in zip(
                record.CANDIDATES, ((0.8, 0.9), (0.86, 0.88), (0.84, 0.84)), strict=True
            )
            for seed, accuracy in enumerate(both)
        ]
    )
    assert record.best(trials)["weight_decay"] == 1e-3


def test_the_committed_table_chose_what_the_parameters_say() -> None:
    root = Path(record.__file__).parents[1]
    chosen = record.best(pd.read_csv(record.TABLE, dtype={"widths": str}))
    text = (root / "params" / "cifar10" / "04_corruption_overlap.yaml").read_text()
    assert f"weight_decay: {chosen['weight_decay']}" in text
    assert f"epochs: {chosen['epochs']}" in text
    assert chosen in [candidate.settings() for candidate in record.CANDIDATES]
