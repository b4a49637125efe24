"""The choice of the network, and what the training loop is compared with."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch

from benchmarks import networks, run
from benchmarks.networks import Candidate
from robustlib import models
from robustlib.core import jobs
from robustlib.data import Dataset
from robustlib.recipes import FGSM, Standard
from robustlib.training import Budget


def rows(*trials: tuple[Candidate, str, float, float]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                **candidate.settings(),
                "recipe": recipe,
                "accuracy": accuracy,
                "core_seconds": seconds,
            }
            for candidate, recipe, accuracy, seconds in trials
        ]
    )


def test_the_cheapest_within_a_point_of_the_best_is_chosen() -> None:
    best, near, cheap, slow = (Candidate((width,)) for width in (8, 16, 32, 64))
    table = rows(
        (best, "standard", 0.85, 40),
        (near, "standard", 0.842, 30),
        (cheap, "standard", 0.82, 10),
        (slow, "standard", 0.95, networks.LIMIT + 1),
        (cheap, "mtlat", 0.99, 1),
    )
    assert networks.chosen(table) == near.settings()
    with pytest.raises(ValueError, match="no candidate"):
        networks.chosen(table[table["core_seconds"] > networks.LIMIT])


def test_seeds_are_averaged() -> None:
    lucky, steady = Candidate((8,)), Candidate((16,))
    table = rows(
        (lucky, "standard", 0.90, 10),
        (lucky, "standard", 0.70, 10),
        (steady, "standard", 0.82, 20),
        (steady, "standard", 0.82, 20),
    )
    assert networks.chosen(table) == steady.settings()


def test_something_is_held_out_and_something_left(tiny: Dataset) -> None:
    for held_out in (0, len(tiny.train)):
        with pytest.raises(ValueError, match="held_out"):
            networks.part_for_choosing(tiny, held_out)


def test_test_images_have_no_say(tiny: Dataset) -> None:
    part = networks.part_for_choosing(tiny, 30)
    assert torch.equal(torch.cat([part.train.images, part.test.images]), tiny.train.images)
    assert torch.equal(part.test.labels, tiny.train.labels[-30:])
    assert part.test.ids.tolist() == list(range(66, 96))


def test_a_study_chooses_and_tries_the_other_recipes(
    tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(networks, "OTHERS", (FGSM(),))
    before = list(models.ARCHITECTURES)
    candidates = [Candidate((4, 8), epochs=4, batch_size=16), Candidate((8,), batch_size=32)]
    part = networks.part_for_choosing(tiny, 30)
    best = networks.study(part, candidates, [0, 1], tmp_path / "table.csv")
    monkeypatch.setattr(networks, "trial", None)
    assert networks.study(part, candidates, [0, 1], tmp_path / "table.csv") == best, "by the table"
    table = pd.read_csv(tmp_path / "table.csv")
    assert best in candidates
    assert table["recipe"].tolist() == ["standard"] * 4 + ["fgsm"] * 2
    assert table["seed"].tolist() == [0, 1] * 3
    assert table["widths"].tolist()[4:] == [best.settings()["widths"]] * 2
    assert table[["accuracy", *networks.CORRUPTIONS]].min(axis=None) >= 0
    assert (table[["core_seconds", "images_per_second"]] > 0).all(axis=None)
    assert list(models.ARCHITECTURES) == before


def test_trials_are_repeated_to_the_bit(tiny: Dataset) -> None:
    part = networks.part_for_choosing(tiny, 30)
    candidate = Candidate((4, 8), epochs=4, batch_size=16)
    first, second = (networks.trial(candidate, Standard(), 0, part) for _ in range(2))
    for name in ("core_seconds", "images_per_second"):
        del first[name], second[name]
    assert first == second
    assert first["accuracy"] > 0.5, "three classes that differ in colour"


def test_small_resnet_is_the_network_of_the_committed_table() -> None:
    table = pd.read_csv(networks.TABLE, dtype={"widths": str})
    network = models.build("small_resnet", classes=10, image_size=32, seed=0)
    blocks = [module for module in network if isinstance(module, models.ResidualBlock)]
    widths = " ".join(str(block.residual[0][0].out_channels) for block in blocks)
    assert networks.chosen(table)["widths"] == widths
    assert {"mtlat", "fgsm", "augmented"} <= set(table.loc[table["widths"] == widths, "recipe"])


def test_the_usual_loop_takes_its_best_settings(
    tiny: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[tuple[int, int]] = []

    def seconds(tasks: dict[str, run.UsualLoop], repeats: int) -> dict[str, float]:
        tried.extend((loop.processes, loop.threads) for loop in tasks.values())
        return {
            name: 1.0 if (loop.processes, loop.threads) == (1, 2) else 2.0
            for name, loop in tasks.items()
        }

    monkeypatch.setattr(run, "in_turns", seconds)
    monkeypatch.setattr(jobs, "cores", lambda: 2)
    pictures = run.PicturesOfPapers(tiny.train)
    best = run.best_settings(pictures, tiny, Budget(epochs=1, batch_size=32), 2)
    assert sorted(tried) == [(p, t) for p in (0, 1, 2) for t in (1, 2)]
    assert (best.processes, best.threads) == (1, 2)
    assert len(best.loader) == 3


def test_ours_is_the_sum_over_all_cores(tiny: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "in_turns", lambda tasks, repeats: dict.fromkeys(tasks, 2.0))
    monkeypatch.setattr(jobs, "cores", lambda: 3)
    table = run.training_throughput(tiny, batch_size=32)
    images = 96 / 2 * (3 if run.pick_device().type == "cpu" else 1)
    assert table["robustlib"].tolist() == [images, images]
    assert table["other"].tolist() == [48, 48]
