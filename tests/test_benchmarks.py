from __future__ import annotations

import json
import sys

import pandas as pd
import pytest
import torch

from benchmarks import run
from robustlib.corruptions import corrupt, info
from robustlib.data import Dataset

COLUMNS = ["measure", "case", "robustlib", "compared with", "other", "ratio", "ratio means"]


def check(table: pd.DataFrame) -> None:
    assert list(table) == COLUMNS
    assert (table[["robustlib", "other"]] > 0).all(axis=None)


def test_every_task_runs_once_to_warm_up_and_then_in_turns() -> None:
    calls: list[str] = []
    seconds = run.in_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 2)
    assert "".join(calls) == "ababab"
    assert list(seconds) == ["a", "b"]


def test_training_throughput(tiny: Dataset) -> None:
    table = run.training_throughput(tiny, batch_size=32, workers=0, repeats=1)
    check(table)
    assert table["measure"].tolist() == ["training, images/s"]
    assert table["ratio"].tolist() == pytest.approx((table["robustlib"] / table["other"]).tolist())


def test_recipe_costs(tiny: Dataset) -> None:
    table = run.recipe_costs(tiny, batch_size=8, steps=1, repeats=1)
    check(table)
    assert table["case"].tolist() == ["standard", "augmented", "mixup", "fgsm", "tlat", "mtlat"]
    assert table["ratio"][0] == 1
    assert table["ratio"].tolist() == pytest.approx((table["robustlib"] / table["other"]).tolist())


def test_corruption_costs(tiny: Dataset) -> None:
    threads = torch.get_num_threads()
    table = run.corruption_costs(tiny, n=4, repeats=1)
    check(table)
    assert table["case"].tolist() == list(run.ONE_IMAGE)
    assert table["measure"].unique().tolist() == ["4 images of 16 px, ms"]
    assert table["ratio"].tolist() == pytest.approx((table["other"] / table["robustlib"]).tolist())
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("name", ["gaussian_blur", "jpeg_compression", "brightness", "contrast"])
def test_what_is_compared_does_the_same_work(name: str) -> None:
    rows = torch.linspace(60, 200, 32).expand(3, 32, 32)
    image = (rows + rows.mT / 8).to(torch.uint8)
    pixels = image.float() / 255
    parameters = info(name).parameters(32)[run.SEVERITY - 1]
    jpeg = name == "jpeg_compression"
    theirs = run.ONE_IMAGE[name](image if jpeg else pixels, **parameters)
    ours = corrupt(pixels[None], name, run.SEVERITY)[0]
    difference = (ours - (theirs / 255 if jpeg else theirs)).abs().mean()
    assert difference < (ours - pixels).abs().mean() / 2


def test_the_table_and_its_provenance_are_written(
    tiny: Dataset, tmp_path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = pd.DataFrame([run.row("work, ms", "case", 1.0, "another", 2.0, 2.0, run.FASTER)])

    def part(dataset: Dataset) -> pd.DataFrame:
        return line

    monkeypatch.setenv("ROBUSTLIB_REPORTS", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["run"])
    monkeypatch.setattr(run.data, "load", lambda *args, **options: tiny)
    for name in ("training_throughput", "recipe_costs", "corruption_costs"):
        monkeypatch.setattr(run, name, part)
    run.main()
    assert len(pd.read_csv(tmp_path / "bench.csv")) == 3
    facts = json.loads((tmp_path / "bench.json").read_text("utf-8"))
    assert {"processor", "packages", "threads"} <= set(facts)
    printed = capsys.readouterr().out
    assert "times faster" in printed
    assert facts["processor"] in printed
