"""The comparisons of attacks with other implementations, here with stand-ins for them."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from benchmarks import attacks, autoattack
from robustlib import models
from robustlib.data import Dataset

PACKAGE = """
class AutoAttack:
    origin = {origin!r}
"""


class ChannelMeans(nn.Module):
    """Logits that are ten times the mean of each channel."""

    def forward(self, images: Tensor) -> Tensor:
        return 10 * images.mean((2, 3))


class StandIn:
    """Moves every image by a fraction of the radius, and notes how it was set up."""

    made: ClassVar[list[StandIn]] = []
    share = 1.0

    def __init__(self, network: nn.Module, **given: Any) -> None:
        self.given = given
        self.eps = given["eps"]
        self.apgd = SimpleNamespace(n_restarts=5, n_iter=100)
        self.apgd_targeted = SimpleNamespace(n_iter=100, n_target_classes=9)
        self.square = SimpleNamespace(n_queries=5000, rescale_schedule=False)
        self.made.append(self)

    def run_standard_evaluation(self, images: Tensor, labels: Tensor, bs: int) -> Tensor:
        """The label's channel down, the others up."""
        sign = 1 - 2 * nn.functional.one_hot(labels, 3).view(-1, 3, 1, 1)
        return (images + self.share * self.eps * sign).clamp(0, 1)


@pytest.fixture
def forget() -> Any:
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "autoattack"]:
        del sys.modules[name]


def checkout(folder: Path, text: str = PACKAGE) -> Path:
    package = folder / "autoattack"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("from .autoattack import AutoAttack\n")
    (package / "autoattack.py").write_text(text.format(origin=folder.name))
    return folder


def test_a_checkout_is_imported_from_its_folder(tmp_path: Path, forget: None) -> None:
    path = list(sys.path)
    found = autoattack.official(checkout(tmp_path / "mine"))
    assert found.origin == "mine"  # type: ignore[attr-defined]
    assert sys.path == path
    with pytest.raises(autoattack.BadCheckoutError, match="in the way of the one in"):
        autoattack.official(checkout(tmp_path / "other"))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (None, "no checkout of auto-attack.*Clone https://github.com/fra31/auto-attack"),
        ("import not_to_be_found", "can't be imported: No module named 'not_to_be_found'"),
        ("def broken(", "can't be imported"),
        ("AutoAttacks = 1", "can't be imported"),
    ],
)
def test_other_folders_are_refused(
    text: str | None, match: str, tmp_path: Path, forget: None
) -> None:
    folder = tmp_path / "given" if text is None else checkout(tmp_path / "given", text)
    with pytest.raises(autoattack.BadCheckoutError, match=match):
        autoattack.official(folder)


@pytest.mark.parametrize("arguments", [["none"], [".", "--images", "0"]])
def test_the_command_refuses_before_any_work(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["autoattack", *arguments])
    monkeypatch.setattr(autoattack, "models", lambda: pytest.fail("work was done"))
    with pytest.raises(SystemExit) as stopped:
        autoattack.main()
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert "no checkout of auto-attack" in error or "--images must be at least 1" in error


def test_rows_compare_like_with_like(tiny: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StandIn, "made", [])
    part = tiny.test.first(40)
    budgets = {"steps": 8, "classes": 2, "queries": 12}
    whole = {"steps": 9, "classes": 2, "queries": 13}
    table = autoattack.compare(
        StandIn,
        [models.wrap(ChannelMeans().eval(), name="means")],
        part.float_images(),
        part.labels,
        eps=0.2,
        matched=budgets,
        standard=whole,
    )
    assert table["attack"].tolist() == ["apgd_ce", "apgd_dlr", "square", "strong", "strong"]
    assert table[["steps", "classes", "queries"]].to_numpy().tolist() == [
        [8, 0, 0],
        [8, 2, 0],
        [0, 0, 12],
        [8, 2, 12],
        [9, 2, 13],
    ]
    # The stand-in makes the largest step toward each wrong class, so nothing beats it.
    best = table.loc[0, "theirs"]
    assert 0.1 < best < table.loc[0, "clean"]
    assert table["theirs"].eq(best).all()
    assert (table["points"] >= -1e-9).all()
    assert table["points"].tolist() == pytest.approx((100 * (table.ours - table.theirs)).tolist())
    assert (100 * (1 - table["agreed"])).tolist() == pytest.approx(table["points"].tolist())
    assert table.loc[[0, 1, 3], "points"].abs().max() <= 2.5
    one, *_, last = StandIn.made
    assert one.given["attacks_to_run"] == ["apgd-ce"]
    assert (one.apgd.n_iter, one.apgd.n_restarts) == (8, 1)
    assert (one.apgd_targeted.n_iter, one.apgd_targeted.n_target_classes) == (8, 2)
    assert (one.square.n_queries, one.square.rescale_schedule) == (12, True)
    assert "attacks_to_run" not in last.given
    assert last.apgd.n_iter == 100


def test_an_official_attack_that_leaves_the_ball_is_no_comparison(
    tiny: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StandIn, "share", 1.1)
    part = tiny.test.first(4)
    with pytest.raises(AssertionError, match="left the ball"):
        autoattack.run_official(
            StandIn,
            ChannelMeans().eval(),
            part.float_images(),
            part.labels,
            [],
            eps=0.1,
            seed=0,
            budgets=autoattack.MATCHED,
        )


def test_the_table_and_its_provenance_are_written(
    tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = [models.wrap(ChannelMeans().eval(), name="means")]
    monkeypatch.setattr(autoattack, "official", lambda folder: StandIn)
    monkeypatch.setattr(autoattack, "models", lambda: (mine, tiny))
    monkeypatch.setattr(autoattack, "STANDARD", autoattack.MATCHED)
    monkeypatch.setattr(autoattack.paths, "results_dir", lambda name: tmp_path / "out" / name)
    monkeypatch.setattr(sys, "argv", ["autoattack", "folder", "--images", "6"])
    autoattack.main()
    assert len(pd.read_csv(tmp_path / "out" / "autoattack.csv")) == 5
    facts = json.loads((tmp_path / "out" / "autoattack.json").read_text("utf-8"))
    assert facts["images"] == 6
    assert facts["eps"] == autoattack.EPS
    assert {"processor", "packages", "commit"} <= set(facts)


def test_attacks_stand_beside_those_of_foolbox(tiny: Dataset) -> None:
    part = tiny.test.first(30)
    mine = models.wrap(ChannelMeans().eval(), name="means")
    best = part.float_images().mean((2, 3)).topk(2).values
    lead = float((best[:, 0] - best[:, 1]).median())  # 2 eps, and sqrt(2 / 256) eps in the L2 norm
    given = {name: {**options, "eps": lead / 2} for name, options in attacks.OURS.items()}
    given |= {name: {**given[name], "eps": 1.02 * lead * 128**0.5} for name in ("cw", "ddn")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attacks, "OURS", given)
        table = attacks.compare([mine], part.float_images(), part.labels, repeats=1)
    assert table["attack"].tolist() == ["fgsm", "pgd", "mi_fgsm", "cw", "ddn"]
    assert table["ours"].between(0.1, 0.9).all()
    # The model is linear, so that all are exact, up to the search of the smallest norm.
    assert (table["ours"] - table["foolbox"])[:3].abs().max() <= 0.04
    assert (table["ours"] - table["foolbox"])[3:].max() <= 0.1
    assert (table[["seconds", "foolbox_seconds"]] > 0).all(axis=None)
    assert table["ratio"].tolist() == pytest.approx(
        (table["foolbox_seconds"] / table["seconds"]).tolist()
    )


def test_a_perturbation_beyond_the_radius_does_not_count(tiny: Dataset) -> None:
    part = tiny.test.first(12)
    batch = ChannelMeans().eval(), part.float_images(), part.labels
    method = attacks.theirs()["ddn"]
    wide, narrow = (attacks.by_foolbox(*batch, eps, method, "ddn") for eps in (20.0, 1e-3))
    assert not wide.any()
    assert narrow.all()


def test_every_task_runs_once_to_warm_up_and_then_in_turns() -> None:
    calls: list[str] = []

    def task(name: str) -> torch.Tensor:
        calls.append(name)
        return torch.tensor([len(calls)])

    results, seconds = attacks.in_turns([partial(task, "a"), partial(task, "b")], 2)
    assert "".join(calls) == "ababab"
    assert [int(result) for result in results] == [5, 6]
    assert len(seconds) == 2
