"""Overlaps from warm starts against those from scratch: how they are compared, and the rule."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy import stats

from benchmarks import warm_starts
from benchmarks.networks import part_for_choosing
from benchmarks.warm_starts import WAYS, Accuracies, Way
from robustlib import data
from robustlib.core.jobs import Workers
from robustlib.core.store import Store
from robustlib.training import Budget

ROOT = Path(warm_starts.__file__).parents[1]
STEPS = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])  # of the six pairs of four corruptions


def models(overlaps: Sequence[float], gains: Mapping[str, float] | None = None) -> pd.DataFrame:
    """Accuracies with exactly these overlaps: 1 on clean images, .5 for the standard model."""
    count = round((1 + np.sqrt(1 + 8 * len(overlaps))) / 2)
    names = [f"c{i}" for i in range(count)]
    scores = np.eye(count)
    scores[np.triu_indices(count, 1)] = overlaps
    scores = np.maximum(scores, scores.T)
    own = np.array([{**dict.fromkeys(names, 0.2), **(gains or {})}[name] for name in names])
    values = 0.5 + np.vstack([np.zeros(count), scores * own])
    frame = pd.DataFrame(values, index=["standard", *names], columns=names)
    frame.insert(0, "clean", 1.0)
    return frame


def seeds_of(*overlaps: Sequence[float], first: int = 0) -> Accuracies:
    return {first + place: models(values) for place, values in enumerate(overlaps)}


def table(by_way: Mapping[str, Accuracies], images: Sequence[int] = (2000,)) -> pd.DataFrame:
    parts = [
        frame.rename_axis("model")
        .reset_index()
        .assign(way=way, seed=seed, test_images=count, seconds=10.0 * (1 + seed))
        for way, found in by_way.items()
        for seed, frame in found.items()
        for count in images
    ]
    whole = pd.concat(parts, ignore_index=True)
    about = ["way", "seed", "model", "test_images", "seconds"]
    return whole[about + [name for name in whole if name not in about]]


def swapped(first: int, second: int) -> np.ndarray:
    found = STEPS.copy()
    found[[first, second]] = found[[second, first]]
    return found


def nearly(base: Sequence[float], count: int) -> Accuracies:
    """Seeds that differ by a little in all overlaps, which leaves their order as it is."""
    middle = (count - 1) / 2
    return seeds_of(*(np.asarray(base) + 0.01 * (seed - middle) for seed in range(count)))


def test_a_correlation_is_corrected_for_the_noise_of_seeds() -> None:
    # Spearman's rho of six pairs is 1 - (sum of squared differences of ranks) / 35.
    found = warm_starts.compare(
        seeds_of(STEPS, swapped(0, 1)), seeds_of(swapped(4, 5), STEPS, first=1)
    )
    assert (found["corruptions"], found["lost"]) == (4, "")
    assert found["between_scratch"] == pytest.approx(33 / 35)
    assert found["between_cheap"] == pytest.approx(33 / 35)
    # Seeds 0 and 1, 0 and 2, 1 and 2; the pair of equal seeds (31 / 35) is left out.
    assert found["corrected_apart"] == pytest.approx((33 + 35 + 33) / 105 / (33 / 35))
    assert found["corrected_apart"] == pytest.approx(101 / 99)  # above 1, and not clipped
    # Means: .15 .15 .3 .4 .5 .6 and .1 .2 .3 .4 .55 .55, so ranks with a tie in each.
    assert found["spearman"] == pytest.approx(16.5 / 17)
    # Reliability of two seeds: 2 (33 / 35) / (1 + 33 / 35) = 33 / 34.
    assert found["corrected"] == pytest.approx((33 / 34) / (33 / 34))
    assert found["difference"] == pytest.approx(4 * 0.05 / 6)
    assert found["bias"] == pytest.approx(0)
    assert found["low"] < found["corrected_apart"] < found["high"]


def test_the_interval_is_that_of_a_jackknife_over_corruptions() -> None:
    generator = np.random.default_rng(0)
    base = np.linspace(0.2, 1.1, 10)
    x, y, u, v = (base + 0.3 * generator.random(10) for _ in range(4))
    found = warm_starts.compare(seeds_of(x, y), seeds_of(u, v))
    pairs = list(itertools.combinations(range(5), 2))

    def estimate(without: int) -> float:
        r = pd.DataFrame({"x": x, "y": y, "u": u, "v": v})[[without not in p for p in pairs]].corr(
            method="spearman"
        )
        return (r.at["x", "v"] + r.at["y", "u"]) / 2 / np.sqrt(r.at["x", "y"] * r.at["u", "v"])

    whole, left_out = estimate(-1), np.array([estimate(name) for name in range(5)])
    error = np.sqrt(4 / 5 * ((left_out - whole) ** 2).sum())
    assert found["corrected_apart"] == pytest.approx(whole)
    assert found["high"] - whole == pytest.approx(2.7764451 * error)  # Student, 4 degrees
    assert whole - found["low"] == pytest.approx(2.7764451 * error)


def test_noise_that_shared_seeds_share_does_not_pass_for_agreement() -> None:
    """True correlation of ranks about .6; seeds add noise of their own, and some in common."""
    generator = np.random.default_rng(1)
    both, apart, truth = [], [], []
    for _ in range(20):
        one, other = (generator.normal(size=66) for _ in range(2))
        other = 0.6 * one + 0.8 * other
        common = {seed: generator.normal(size=66) for seed in range(5)}
        scratch, cheap = (
            {
                seed: models(1 + 0.2 * (base + common[seed] + 0.5 * generator.normal(size=66)))
                for seed in range(count)
            }
            for base, count in ((one, 3), (other, 5))
        )
        found = warm_starts.compare(scratch, cheap)
        both.append(found["corrected"])
        apart.append(found["corrected_apart"])
        truth.append(pd.Series(one).corr(pd.Series(other), method="spearman"))
    assert np.mean(apart) == pytest.approx(np.mean(truth), abs=0.04)
    assert np.mean(both) > np.mean(truth) + 0.1


def test_no_correction_where_seeds_do_not_agree_at_all() -> None:
    found = warm_starts.compare(seeds_of(STEPS, 0.7 * STEPS[::-1]), nearly(STEPS, 2))
    assert found["between_scratch"] == pytest.approx(-1)
    assert np.isnan(found["corrected"])
    assert np.isnan(found["corrected_apart"])


def test_only_corruptions_with_a_clear_own_gain_from_scratch_are_compared() -> None:
    scratch = {
        seed: models(np.repeat(0.4, 10), {"c0": gain, "c1": 0.03})
        for seed, gain in enumerate((0.02, 0.03, 0.04))
    }
    gains = warm_starts.own_gain_intervals(scratch)
    # .03, and a standard error of .01 / sqrt(3) with Student's 4.3027 at two degrees of freedom
    assert gains.loc["c0", "low"] == pytest.approx(0.03 - 4.302653 * 0.01 / np.sqrt(3))
    assert gains.loc["c0", "high"] == pytest.approx(0.03 + 4.302653 * 0.01 / np.sqrt(3))
    kept, lost = warm_starts.scored(scratch, scratch)
    assert (kept, lost) == (["c1", "c2", "c3", "c4"], [])
    cheap = dict(scratch)
    cheap[1] = models(np.repeat(0.4, 10), {"c3": 0.005, "c0": 0.005})
    assert warm_starts.scored(scratch, cheap) == (["c1", "c2", "c4"], ["c3"])
    with pytest.raises(ValueError, match="four corruptions or more"):
        warm_starts.compare(scratch, cheap)
    with pytest.raises(ValueError, match="two seeds"):
        warm_starts.compare(scratch, {0: scratch[0]})


def test_the_bias_of_a_corruption_with_its_interval() -> None:
    moved = np.array([0.8, 0.8, 0.8, 0.5, 0.5, 0.5])  # the pairs of c0 by .3
    found = warm_starts.biases(nearly(np.full(6, 0.5), 3), nearly(moved, 3))
    # Each seed is .01 from the next: a standard error of sqrt(2 * .0001 / 3), Student's 2.7764.
    half = 2.7764451 * np.sqrt(0.0002 / 3)
    assert found["bias"].tolist() == pytest.approx([0.3, 0.1, 0.1, 0.1])
    assert (found["high"] - found["bias"]).tolist() == pytest.approx([half] * 4)
    assert (found["bias"] - found["low"]).tolist() == pytest.approx([half] * 4)
    assert found["verdict"].tolist() == ["beyond", "within", "within", "within"]
    less = warm_starts.biases(nearly(moved, 3), nearly(np.full(6, 0.5), 3))
    assert less["verdict"].tolist() == ["beyond", "within", "within", "within"]
    near = warm_starts.biases(nearly(np.full(6, 0.5), 3), nearly(np.full(6, 0.64), 3))
    assert near["verdict"].tolist() == ["undecided"] * 4
    above = warm_starts.biases(nearly(np.full(6, 0.5), 3), nearly(np.full(6, 0.66), 3))
    assert above["verdict"].tolist() == ["undecided"] * 4
    # Welch: variances of the means .0001 / 3 and .001 / 5, Welch and Satterthwaite's degrees.
    wider = seeds_of(*(np.full(6, 0.5 + step) for step in (-0.04, -0.02, 0, 0.02, 0.04)))
    uneven = warm_starts.biases(nearly(np.full(6, 0.5), 3), wider)
    one, other = 0.0001 / 3, 0.001 / 5
    student = stats.t.ppf(0.975, (one + other) ** 2 / (one**2 / 2 + other**2 / 4))
    assert uneven["high"].tolist() == pytest.approx([student * np.sqrt(one + other)] * 4)


def test_the_rule() -> None:
    def verdict(scratch: np.ndarray, warm: np.ndarray, **lost: float) -> bool:
        seeds = nearly(warm, 5)
        if lost:
            seeds[2] = models(warm, lost)
        return warm_starts.holds(table({"scratch": nearly(scratch, 3), "warm": seeds}))

    base = np.array([0.7, 0.8, 0.9, 1.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6])  # first the pairs of c0
    assert verdict(base, base)
    assert verdict(base, base + 0.1)
    assert not verdict(base, base + 0.2)
    assert not verdict(base, base + np.repeat([0.3, 0.0], [4, 6]))  # in the same order
    assert not verdict(base, base, c3=0.005)  # no score with one seed
    near = 0.5 + base / 10
    assert verdict(near, near)
    assert not verdict(near, near[::-1])  # another order, without a bias that matters


def test_the_summary_has_what_the_table_has_the_models_of() -> None:
    by_way = {way.name: nearly(STEPS, len(way.seeds)) for way in WAYS}
    whole = table(by_way, warm_starts.TEST_IMAGES)
    found = warm_starts.summary(whole)
    assert list(found[["way", "seeds", "test_images"]].itertuples(index=False, name=None)) == [
        ("warm", "0 1 2 3 4", 2000),
        ("warm, 1 epoch", "0 1 2", 2000),
        ("warm, 5,000 images", "0 1 2", 2000),
        ("warm", "0 1 2", 2000),
        ("warm", "3 4", 2000),
        ("warm", "0 1 2 3 4", 1000),
        ("warm", "0 1 2 3 4", 500),
    ]
    assert found["corrected_apart"].tolist() == pytest.approx([1.0] * 7)
    # Five models a seed, of 10, 20, ... seconds.
    assert warm_starts.seconds(whole).to_dict() == pytest.approx(
        {"scratch": 100, "warm": 150, "warm, 1 epoch": 100, "warm, 5,000 images": 100}
    )
    assert warm_starts.report(whole).endswith("Warm starts stay the default: True")
    assert found["core_seconds"].tolist() == pytest.approx([150, 100, 100, 150, 150, 150, 150])
    part = whole[whole["way"].isin(["scratch", "warm"])]
    assert warm_starts.summary(part)["way"].tolist() == ["warm"] * 5
    with pytest.raises(ValueError, match="'scratch' of seed 2"):
        warm_starts.summary(whole[whole["seed"] < 2])


def test_a_study_trains_scores_and_goes_on(tmp_path: Path) -> None:
    names, images = ("contrast", "rotation"), (20, 10)
    ways = (Way("scratch", (0,)), Way("warm", (0,), epochs=1, images=100))
    part = part_for_choosing(data.load("shapes10", n_train=150, n_test=10), held_out=20)
    store, path = Store(tmp_path / "store"), tmp_path / "table.csv"

    def study() -> pd.DataFrame:
        return warm_starts.study(
            part,
            ways,
            names,
            images,
            path,
            budget=Budget(epochs=1, batch_size=32),
            store=store,
            workers=Workers(1),
        )

    found = study()
    assert found[["way", "test_images", "model"]].apply(tuple, axis=1).tolist() == list(
        itertools.product(("scratch", "warm"), images, ("standard", *names))
    )
    assert list(found)[-3:] == ["clean", *names]
    # Three severities of 20 or 10 images.
    for count, rows in found.groupby("test_images"):
        right = rows[["clean", *names]].to_numpy() * 3 * count
        assert right == pytest.approx(right.round(), abs=0.01)
    of = found.set_index(["way", "test_images", "model"])["seconds"]
    start = of["scratch", 20, "standard"]  # which the warm start's standard model goes on from
    assert of["warm", 20, "standard"] > start
    kept = {kind: sorted((store.root / kind).iterdir()) for kind in ("models", "evaluations")}
    assert sum(file.suffix == ".safetensors" for file in kept["models"]) == 6
    pd.testing.assert_frame_equal(study(), found)
    assert {kind: sorted((store.root / kind).iterdir()) for kind in kept} == kept
    by_seed = warm_starts.accuracies(found, "warm", [0], 10)
    assert by_seed[0].index.tolist() == ["standard", *names]
    assert by_seed[0].columns.tolist() == ["clean", *names]


def test_corruptions_and_budget_are_those_of_the_runs() -> None:
    full, record = (
        yaml.safe_load((ROOT / "params" / run / "04_corruption_overlap.yaml").read_text())
        for run in ("full", "cifar10")
    )
    assert list(warm_starts.CORRUPTIONS) == full["corruptions"]
    assert list(warm_starts.SEVERITIES) == record["severities"]
    assert warm_starts.BUDGET.weight_decay == record["weight_decay"]


def test_the_committed_table_is_whole_and_the_atlas_of_record_follows_the_rule() -> None:
    found = pd.read_csv(warm_starts.TABLE)
    assert list(found)[5:] == ["clean", *warm_starts.CORRUPTIONS]
    trained = {(way.name, seed) for way in WAYS for seed in way.seeds}
    assert set(found[["way", "seed"]].itertuples(index=False, name=None)) == trained
    assert len(found) == len(trained) * 13 * len(warm_starts.TEST_IMAGES)
    assert len(warm_starts.summary(found)) == len(warm_starts.COMPARED)
    record = ROOT / "params" / "cifar10" / "04_corruption_overlap.yaml"
    warm = yaml.safe_load(record.read_text())["finetune_epochs"] > 0
    assert warm_starts.holds(found) == warm


def test_readme_says_what_the_table_says() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    shown = re.search(r"<!-- warm -->\n(.*)<!-- /warm -->", readme, re.DOTALL)
    assert shown
    text = " ".join(shown[1].split())
    table = pd.read_csv(warm_starts.TABLE)
    scratch, warm = (
        warm_starts.accuracies(table, way.name, way.seeds, warm_starts.TEST_IMAGES[0])
        for way in (warm_starts.SCRATCH, warm_starts.WARM)
    )
    found, bias = warm_starts.compare(scratch, warm), warm_starts.biases(scratch, warm)["verdict"]
    numbers = f"{found['corrected_apart']:.2f} ({found['low']:.2f} to {found['high']:.2f})"
    assert f"rank correlation of {numbers}" in text
    assert found["corruptions"] == 10
    assert f"for {(bias == 'within').sum()} of {len(bias)} corruptions" in text
    assert f"{' and '.join(bias.index[bias == 'undecided'])} that is undecided" in text
    assert not (bias == "beyond").any()
    cost = warm_starts.seconds(table)
    assert f"the cost is {100 * cost['warm'] / cost['scratch']:.0f} %" in text
    cheaper = [round(100 * cost[way.name] / cost["scratch"]) for way in WAYS[2:]]
    assert f"at {cheaper[0]} and {cheaper[1]} % of the cost" in text
    for way in WAYS[2:]:
        side = warm_starts.accuracies(table, way.name, way.seeds, warm_starts.TEST_IMAGES[0])
        assert warm_starts.compare(scratch, side)["corrected_apart"] > 0.9
        assert not (warm_starts.biases(scratch, side)["verdict"] == "beyond").any()
