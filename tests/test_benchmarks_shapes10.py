"""The calibration of shapes10: what it measures, on which images, and what the table says."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pandas as pd
import pytest

from benchmarks import shapes10 as calibration
from robustlib.core.checks import UnknownNameError
from robustlib.core.store import Store
from robustlib.data import shapes10


def table(clean: float, pgd: float, gains: list[float]) -> pd.DataFrame:
    rows = [{"perturbation": "clean", "standard": clean}, {"perturbation": "pgd", "standard": pgd}]
    for name, gain in zip(calibration.NINETEEN, gains, strict=True):
        rows.append({"perturbation": name, "standard": 0.5, "own": 0.5 + gain, "own_gain": gain})
    return pd.DataFrame(rows)


def test_the_aim_is_met_or_said_to_be_missed() -> None:
    enough, few = [0.05] * 15 + [0.049] * 4, [0.05] * 14 + [0.049] * 5
    assert calibration.shortfalls(table(0.80, 0.29, enough)) == []
    assert calibration.shortfalls(table(0.92, 0.0, enough)) == []
    assert "clean accuracy 0.930" in calibration.shortfalls(table(0.93, 0.0, enough))[0]
    assert "clean accuracy 0.790" in calibration.shortfalls(table(0.79, 0.0, enough))[0]
    assert "PGD 0.300" in calibration.shortfalls(table(0.9, 0.3, enough))[0]
    assert "14 own gains" in calibration.shortfalls(table(0.9, 0.0, few))[0]
    assert len(calibration.shortfalls(table(0.5, 0.5, few))) == 3
    with pytest.raises(UnknownNameError, match="saturate"):
        calibration.shortfalls(table(0.9, 0.0, enough).query("perturbation != 'saturate'"))


def test_a_trial_scores_models_on_images_that_are_not_the_test_images(
    tmp_path: Path,
) -> None:
    dataset = calibration.images(shapes10.APPEARANCE, 130, 20)
    kept = {
        image.numpy().tobytes()
        for split in ("train", "test")
        for image in shapes10.generate(split, range(200)).images
    }
    assert all(image.numpy().tobytes() in kept for image in dataset.train.images)
    assert not any(image.numpy().tobytes() in kept for image in dataset.test.images)
    found = calibration.trial(
        dataset, ["contrast", "fog"], Store(tmp_path), epochs=1, finetuning=1
    ).set_index("perturbation")
    assert found.index.tolist() == ["clean", "pgd", "contrast", "fog"]
    assert found["standard"].between(0, 1).all()
    assert found.loc["pgd", "standard"] <= found.loc["clean", "standard"]
    assert found.loc[["clean", "pgd"], ["own", "own_clean", "own_gain"]].isna().all(axis=None)
    models = found.loc[["contrast", "fog"]]
    assert models["own_clean"].between(0, 1).all()
    pd.testing.assert_series_equal(
        models["own_gain"], models["own"] - models["standard"], check_names=False
    )


def test_each_trial_takes_one_feature_back() -> None:
    chosen = asdict(calibration.TRIALS[calibration.CHOSEN])
    assert chosen == asdict(shapes10.APPEARANCE)
    for name, appearance in calibration.TRIALS.items():
        changed = {key for key, value in asdict(appearance).items() if value != chosen[key]}
        assert all(key == name.split()[0] or key == "period" for key in changed)


def test_the_committed_table_is_of_this_version_and_meets_the_aim() -> None:
    found = pd.read_csv(calibration.TABLE)
    assert (found["version"] == shapes10.VERSION).all()
    assert set(found["trial"]) <= set(calibration.TRIALS)
    assert calibration.shortfalls(found[found["trial"] == calibration.CHOSEN]) == []
