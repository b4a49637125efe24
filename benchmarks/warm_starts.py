"""Does an overlap from warm starts measure the same as one from scratch?

    python -m benchmarks.warm_starts data/cifar10-jpeg    three hours of a core, on two of them
    python -m benchmarks.warm_starts                      what the committed table says

From scratch, the standard model and one for each corruption are trained for ten epochs from random
weights. From warm starts, only the standard model is; from it on, each model, the standard one
too, is trained for one or two epochs at half the learning rate. Both on 20,000 training images of
CIFAR-10, scored on 2,000 others of the training images: the test images have no say. An
interrupted run goes on from the store. The table, `benchmarks/warm_starts.csv`, has a row for each
model and each number of images that it was scored on; all else is computed from it.

**The rule**, this project's choice, written down before the results. Warm starts stay the default
if, with two epochs and all seeds,

- the overlaps' correlation with those from scratch, corrected for seed noise between different
  seeds (`corrected_apart` below), is .9 or more;
- no corruption's bias is clearly beyond .15, that is its interval as a whole;
- no corruption that has an overlap from scratch loses it: its own gain is above the guard of
  `overlapping_scores` in each seed.

This isn't a proof of equality: an interval that is neither within .15 nor beyond it decides nothing
about its corruption, and is called undecided.

**What is compared.** The overlapping score under "ratio", clamped at 0 as it is, of all pairs of
corruptions whose own gain from scratch is clearly above .02 (the lower end of its interval).
Intervals are Student's over seeds: they hold for these images, since what the choice of images does
is the same in both ways. A bias is the mean signed difference of a corruption's overlaps with all
others, with Welch's interval of single seeds; where seeds are shared it is too wide rather than too
narrow.

**Seed noise** lowers a correlation even if both measure the same. Spearman (1904, Am. J. Psychol.
15) divides it by sqrt(r_xx r_yy), the reliabilities of both sides. That of one seed is the mean
correlation r between two seeds; that of the mean of k seeds is k r / (1 + (k - 1) r) (Spearman and
Brown 1910). Both formulas are of scores; for ranks they are approximations. A correction may come
out above 1 and is reported so; it is NaN where a reliability isn't positive. `corrected` is that of
the overlaps of mean accuracies. It takes the noise of both sides as independent, but a seed that
both have gives them the same standard model (a warm start goes on from it), whose noise is in each
pair of corruptions, and `corrected` comes out too high. `corrected_apart` is the mean correlation
of a seed from scratch with *another* seed from warm starts, divided by sqrt(r_xx r_yy) of single
seeds; so it doesn't. Its interval is for other corruptions of the kind (jackknife over corruptions,
as in `robustlib.analysis.atlas.rank_correlation`).

Fewer images to measure on are the first of the 2,000, so they share their images' noise with the
comparison: the correlations of these rows are somewhat too high.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from benchmarks.networks import part_for_choosing
from robustlib import data
from robustlib.analysis.overlap import overlapping_scores, own_gains
from robustlib.core.jobs import Workers
from robustlib.core.store import Store
from robustlib.data import Dataset
from robustlib.evaluation import evaluate
from robustlib.perturbations import corruption_grid
from robustlib.recipes import Augmented, Standard
from robustlib.training import Budget, train

TABLE = Path(__file__).with_suffix(".csv")
CORRUPTIONS = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "gaussian_blur",
    "defocus_blur",
    "pixelate",
    "contrast",
    "fog",
    "brightness",
    "rotation",
    "translation",
    "hue",
)
SEVERITIES = (1, 3, 5)
TRAINING_IMAGES = 20_000
TEST_IMAGES = (2000, 1000, 500)
BUDGET = Budget(epochs=10, weight_decay=5e-4)
LEAST_GAIN, LEAST_CORRELATION, MOST_BIAS = 0.02, 0.9, 0.15


@dataclass(frozen=True)
class Way:
    """A way to train the models of an overlap.

    Attributes:
        seeds: training seeds.
        epochs: from the standard model on; 0 for all models from scratch.
        images: of the training images, how many these epochs see.
    """

    name: str
    seeds: tuple[int, ...]
    epochs: int = 0
    images: int = TRAINING_IMAGES


SCRATCH = Way("scratch", (0, 1, 2))
WARM = Way("warm", (0, 1, 2, 3, 4), epochs=2)
WAYS = (
    SCRATCH,
    WARM,
    Way("warm, 1 epoch", (0, 1, 2), epochs=1),
    Way("warm, 5,000 images", (0, 1, 2), epochs=2, images=5000),
)
COMPARED = (
    *((way.name, way.seeds, TEST_IMAGES[0]) for way in WAYS[1:]),
    (WARM.name, (0, 1, 2), TEST_IMAGES[0]),
    (WARM.name, (3, 4), TEST_IMAGES[0]),  # which share no seed with those from scratch
    *((WARM.name, WARM.seeds, count) for count in TEST_IMAGES[1:]),
)
Accuracies = dict[int, pd.DataFrame]
"""By seed, as `overlapping_scores` takes them: models by perturbations."""


def study(
    part: Dataset,
    ways: Sequence[Way],
    corruptions: Sequence[str],
    test_images: Sequence[int],
    table: Path,
    *,
    budget: Budget,
    store: Store,
    workers: Workers,
) -> pd.DataFrame:
    """The table, as written to the CSV file `table` after each way and seed.

    Columns: way; seed; model, "standard" or the corruption trained with; test_images, on how many
    it was scored; seconds of one core that its training took, for a warm start's standard model
    with what came before; and the accuracies, "clean" and on each corruption, averaged over
    severities.
    """
    fixed: dict[str, Any] = {
        "architecture": "small_resnet",
        "store": store,
        "device": "cpu",
        "workers": workers,
        "progress": False,
    }
    augmented = [Augmented((name,)) for name in corruptions]
    grid = corruption_grid(corruptions, SEVERITIES)
    seeds = sorted({seed for way in ways for seed in way.seeds})
    found, began = [], time.perf_counter()

    def say(step: str) -> None:
        print(f"{(time.perf_counter() - began) / 60:5.1f} minutes: {step}", flush=True)

    standard = train([Standard()], part, budget=budget, seeds=seeds, **fixed)
    say("standard models")
    for way in ways:
        seen = Dataset.build(part.name, part.classes, part.train.first(way.images), part.test)
        for seed in way.seeds:
            start = standard[seeds.index(seed)]
            if way.epochs:
                shorter = budget.finetuning(way.epochs)
                recipes = [Standard(), *augmented]
                models = train(recipes, seen, budget=shorter, seeds=[seed], start=start, **fixed)
            else:
                models = [start, *train(augmented, seen, budget=budget, seeds=[seed], **fixed)]
            seconds = [model.seconds for model in models]
            seconds[0] += start.seconds if way.epochs else 0
            say(f"{way.name}, seed {seed}, trained")
            scores = evaluate(
                models, part.test, grid, store=store, workers=workers, progress=False
            ).per_seed([model.recipe for model in models], ["clean", *corruptions])[0]
            about = {"way": way.name, "seed": seed, "model": [model.recipe for model in models]}
            for count in test_images:
                accuracy = scores[..., :count].mean(axis=-1, dtype=float)
                columns = dict(zip(["clean", *corruptions], accuracy.T, strict=True))
                row = {**about, "test_images": count, "seconds": seconds, **columns}
                found.append(pd.DataFrame(row))
            pd.concat(found).to_csv(table, index=False, float_format="%.5g")
            say(f"{way.name}, seed {seed}, scored")
    return pd.read_csv(table)


def accuracies(table: pd.DataFrame, way: str, seeds: Sequence[int], test_images: int) -> Accuracies:
    """The part of a table with those seeds of that way.

    Raises:
        ValueError: one of them isn't in the table.
    """
    chosen = table[(table["way"] == way) & (table["test_images"] == test_images)]
    missing = sorted(set(seeds) - set(chosen["seed"]))
    if missing:
        raise ValueError(
            f"the table has no models {way!r} of seed {', '.join(map(str, missing))} scored on "
            f"{test_images} images; give python -m benchmarks.warm_starts the folder of images."
        )
    columns = table.loc[:, "clean":].columns
    return {
        seed: chosen[chosen["seed"] == seed].set_index("model")[columns].rename_axis(index=None)
        for seed in seeds
    }


def own_gain_intervals(found: Accuracies) -> pd.DataFrame:
    """One row for each corruption, with the columns own_gain, low and high (95 %, over seeds)."""
    gains = pd.DataFrame([own_gains(frame) for frame in found.values()])
    half = stats.t.ppf(0.975, len(gains) - 1) * gains.sem()
    mean = gains.mean()
    return pd.DataFrame({"own_gain": mean, "low": mean - half, "high": mean + half})


def scored(scratch: Accuracies, cheap: Accuracies) -> tuple[list[str], list[str]]:
    """The corruptions that are compared, and those that the cheap way loses."""
    gains = own_gain_intervals(scratch)
    clear = [str(name) for name in gains.index[gains["low"] > LEAST_GAIN]]
    kept = [n for n in clear if all(overlapping_scores(f).notna().at[n, n] for f in cheap.values())]
    return kept, [name for name in clear if name not in kept]


def overlaps(found: Accuracies, names: Sequence[str]) -> np.ndarray:
    """Those of the single seeds, (seeds, names, names)."""
    return np.array([overlapping_scores(frame).loc[names, names] for frame in found.values()])


def reliability(r: float, seeds: int) -> float:
    """That of a mean of seeds that correlate with r each (Spearman-Brown); 0 for a negative r."""
    return seeds * max(r, 0.0) / (1 + (seeds - 1) * max(r, 0.0))


def corrected(r: float, first: float, second: float) -> float:
    """r / sqrt(first second), for the reliabilities of both sides; NaN where one is 0 or less."""
    return r / np.sqrt(first * second) if first > 0 and second > 0 else np.nan


def correlations_of_seeds(
    first: np.ndarray, second: np.ndarray, apart: np.ndarray
) -> tuple[float, float, float]:
    """Spearman's, mean over pairs of seeds: within `first`, within `second`, between them.

    first, second: (seeds, n). apart: bool (seeds, seeds), which pairs count between them.
    """
    r = np.corrcoef(stats.rankdata(np.concatenate([first, second]), axis=1))
    size = len(first)
    within = [part[np.triu_indices(len(part), 1)] for part in (r[:size, :size], r[size:, size:])]
    return within[0].mean(), within[1].mean(), r[:size, size:][apart].mean()


def compare(scratch: Accuracies, cheap: Accuracies) -> dict[str, float | str]:
    """How well the overlaps of a cheap way agree with those from scratch; see the module.

    Returns corruptions, how many are compared; lost, the names of those lost; spearman of the
    overlaps of mean accuracies, and corrected; between_scratch and between_cheap, the mean
    correlation of two seeds; corrected_apart, low and high; difference, the mean absolute one of
    the overlaps of mean accuracies; bias, the mean of cheap less scratch.

    Raises:
        ValueError: fewer than two seeds on a side, or than four corruptions to compare.
    """
    if min(len(scratch), len(cheap)) < 2:
        raise ValueError("seed noise is known from two seeds on, on each side.")
    names, lost = scored(scratch, cheap)
    if len(names) < 4:
        raise ValueError(f"four corruptions or more can be compared, but there are {len(names)}.")
    one, two = np.triu_indices(len(names), 1)
    first, second = (overlaps(side, names)[:, one, two] for side in (scratch, cheap))
    means = [
        overlaps({0: sum(side.values()) / len(side)}, names)[0, one, two]
        for side in (scratch, cheap)
    ]
    apart = np.array([[seed != other for other in cheap] for seed in scratch])
    within_first, within_second, between = correlations_of_seeds(first, second, apart)
    estimate = corrected(between, within_first, within_second)
    left_out = []
    for place in range(len(names)):
        kept = (one != place) & (two != place)
        r = correlations_of_seeds(first[:, kept], second[:, kept], apart)
        left_out.append(corrected(r[2], r[0], r[1]))
    error = np.sqrt((1 - 1 / len(names)) * ((np.array(left_out) - estimate) ** 2).sum())
    half = stats.t.ppf(0.975, len(names) - 1) * error
    reliable = reliability(within_first, len(first)), reliability(within_second, len(second))
    spearman = float(stats.spearmanr(*means).statistic)
    return {
        "corruptions": len(names),
        "lost": " ".join(lost),
        "spearman": spearman,
        "corrected": corrected(spearman, *reliable),
        "between_scratch": within_first,
        "between_cheap": within_second,
        "corrected_apart": estimate,
        "low": estimate - half,
        "high": estimate + half,
        "difference": float(np.abs(means[1] - means[0]).mean()),
        "bias": float((means[1] - means[0]).mean()),
    }


def biases(scratch: Accuracies, cheap: Accuracies) -> pd.DataFrame:
    """One row for each corruption compared: bias, low, high (95 %) and verdict.

    verdict: "within" if the interval lies in -.15 to .15, "beyond" if it lies outside,
    "undecided" otherwise.
    """
    names, _ = scored(scratch, cheap)
    others = ~np.eye(len(names), dtype=bool)
    first, second = (
        np.mean(overlaps(side, names), axis=2, where=others) for side in (scratch, cheap)
    )
    ends = stats.ttest_ind(second, first, equal_var=False).confidence_interval()
    found = pd.DataFrame(
        {"bias": second.mean(axis=0) - first.mean(axis=0), "low": ends.low, "high": ends.high},
        index=names,
    )
    within = (found["low"] >= -MOST_BIAS) & (found["high"] <= MOST_BIAS)
    beyond = (found["low"] > MOST_BIAS) | (found["high"] < -MOST_BIAS)
    return found.assign(verdict=np.select([within, beyond], ["within", "beyond"], "undecided"))


def holds(table: pd.DataFrame) -> bool:
    """Whether warm starts stay the default, by the rule of the module."""
    scratch, warm = (
        accuracies(table, way.name, way.seeds, TEST_IMAGES[0]) for way in (SCRATCH, WARM)
    )
    found = compare(scratch, warm)
    return bool(
        found["corrected_apart"] >= LEAST_CORRELATION
        and not found["lost"]
        and not (biases(scratch, warm)["verdict"] == "beyond").any()
    )


def seconds(table: pd.DataFrame) -> pd.Series:
    """Seconds of one core that all models of one seed are trained in, by way, mean over seeds."""
    once = table[table["test_images"] == TEST_IMAGES[0]]
    return once.groupby(["way", "seed"])["seconds"].sum().groupby("way").mean()


def has(table: pd.DataFrame, way: str, seeds: Sequence[int]) -> bool:
    """Whether a table, say of an interrupted run, has all those models."""
    return set(seeds) <= set(table.loc[table["way"] == way, "seed"])


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """One row for each comparison with scratch that the table has the models of.

    Columns: way, seeds, test_images; those of `compare`; core_seconds, see `seconds`.
    """
    scratch, cost = accuracies(table, SCRATCH.name, SCRATCH.seeds, TEST_IMAGES[0]), seconds(table)
    return pd.DataFrame(
        [
            {
                "way": way,
                "seeds": " ".join(map(str, seeds)),
                "test_images": count,
                **compare(scratch, accuracies(table, way, seeds, count)),
                "core_seconds": cost[way],
            }
            for way, seeds, count in COMPARED
            if has(table, way, seeds)
        ]
    )


def report(table: pd.DataFrame) -> str:
    """The summary, own gains and biases, and what the rule says, in words."""
    found = {
        way.name: accuracies(table, way.name, way.seeds, TEST_IMAGES[0])
        for way in WAYS
        if has(table, way.name, way.seeds)
    }
    gains = {way: own_gain_intervals(side) for way, side in found.items()}
    bias = {way: biases(found[SCRATCH.name], side) for way, side in list(found.items())[1:]}
    parts = {
        "Against scratch": summary(table).set_index(["way", "seeds", "test_images"]).T,
        "Seconds of one core for each seed": seconds(table).to_frame(),
        "Own gains": pd.concat(gains, axis=1),
        "Biases": pd.concat(bias, axis=1),
    }
    texts = [
        f"{title}\n{part.to_string(float_format='{:.3f}'.format)}\n"
        for title, part in parts.items()
    ]
    return "\n".join([*texts, f"Warm starts stay the default: {holds(table)}"])


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.warm_starts",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", nargs="?", help="with train/ and test/, a folder a class in each")
    folder = parser.parse_args().folder
    if folder:
        held_out = TEST_IMAGES[0]
        whole = data.load(
            "folder", root=folder, image_size=32, n_train=TRAINING_IMAGES + held_out, n_test=100
        )
        with Workers(2) as workers:
            study(
                part_for_choosing(whole, held_out),
                WAYS,
                CORRUPTIONS,
                TEST_IMAGES,
                TABLE,
                budget=BUDGET,
                store=Store(),
                workers=workers,
            )
    print(report(pd.read_csv(TABLE)))


if __name__ == "__main__":
    main()
