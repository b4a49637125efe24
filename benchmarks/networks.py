"""Which small network, and which budget: accuracy for the time of training on one core.

    python -m benchmarks.networks        about half an hour on one thread

Candidates are trained on the first 8,000 training images of shapes10 and scored on the other 2,000;
the test images have no say. The committed table is of version 2 of shapes10. The rule, written down
before the results: of all candidates whose standard model is trained in at most `LIMIT` seconds of
one core, take those within a point of the best accuracy, and of these the cheapest. The chosen one
is then trained with other recipes, to see which of them need more than this budget: from random
weights FGSM does. The learning rates of the later candidates follow from the results of the earlier
ones; with one training seed, differences of a point or two mean little. The table is
`benchmarks/networks.csv`: delete it to begin anew.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn

from robustlib import corruptions, data, models
from robustlib.core.checks import check_whole
from robustlib.core.inference import evaluating, right
from robustlib.core.jobs import threads
from robustlib.core.store import Store
from robustlib.data import Dataset, Split
from robustlib.recipes import FGSM, MTLAT, TLAT, Augmented, Recipe, Standard
from robustlib.training import Budget, train

LIMIT = 45.0
WITHIN = 0.01
TABLE = Path(__file__).with_name("networks.csv")
CORRUPTIONS = ("gaussian_noise", "gaussian_blur", "contrast", "rotation")
OTHERS: tuple[Recipe, ...] = (MTLAT(), FGSM(), Augmented(CORRUPTIONS), TLAT())


@dataclass(frozen=True)
class Candidate:
    """A network, by the widths of its blocks, and how it is trained."""

    widths: tuple[int, ...]
    epochs: int = 8
    batch_size: int = 128
    learning_rate: float = 0.2
    weight_decay: float = 2e-3
    warmup: float = 0.2

    def budget(self) -> Budget:
        settings = asdict(self)
        del settings["widths"]
        return Budget(**settings)

    def settings(self) -> dict[str, object]:
        """What the table shows of it."""
        return {**asdict(self), "widths": " ".join(map(str, self.widths))}


CANDIDATES = (
    Candidate((16, 48, 96)),
    Candidate((16, 64, 128)),
    Candidate((16, 64, 128), weight_decay=5e-4),
    Candidate((16, 64, 128), weight_decay=5e-4, learning_rate=0.4),
    Candidate((16, 64, 128), weight_decay=5e-4, batch_size=64),
    Candidate((16, 64, 128), weight_decay=5e-4, batch_size=64, learning_rate=0.1),
    Candidate((16, 64, 128), learning_rate=0.1),
    Candidate((16, 48, 96), weight_decay=5e-4, batch_size=64, learning_rate=0.1),
    Candidate((16, 64, 128), weight_decay=5e-4, batch_size=64, learning_rate=0.05),
    Candidate((32, 64, 128), weight_decay=5e-4, batch_size=64, learning_rate=0.1, epochs=6),
)


def part_for_choosing(dataset: Dataset, held_out: int) -> Dataset:
    """The training images alone, the last `held_out` of them as test images.

    Raises:
        ValueError: none is held out, or none left for training.
    """
    split = dataset.train
    held_out = check_whole(held_out, "held_out", low=1, high=len(split) - 1)
    kept = split.first(len(split) - held_out)
    held = slice(len(kept), None)
    test = Split(split.images[held], split.labels[held], split.ids[held])
    return Dataset.build(f"{dataset.name}, training part", dataset.classes, kept, test)


def trial(candidate: Candidate, recipe: Recipe, seed: int, part: Dataset) -> dict[str, object]:
    """One row of the table: a model trained on `part.train`, scored on `part.test`."""
    name = f"residual network {candidate.widths}"
    models.ARCHITECTURES[name] = partial(models.residual_network, widths=candidate.widths)
    try:
        with tempfile.TemporaryDirectory() as folder:
            started = time.process_time()
            (trained,) = train(
                [recipe],
                part,
                architecture=name,
                budget=candidate.budget(),
                seeds=[seed],
                store=Store(folder),
                device="cpu",
                progress=False,
            )
            seconds = time.process_time() - started
    finally:
        del models.ARCHITECTURES[name]
    images = part.test.float_images()
    scores = {"accuracy": accuracy(trained.model, images, part.test.labels)}
    for corruption in CORRUPTIONS:
        corrupted = corruptions.corrupt(images, corruption, 3, ids=part.test.ids)
        scores[corruption] = accuracy(trained.model, corrupted, part.test.labels)
    return {
        **candidate.settings(),
        "parameters": models.parameter_count(trained.model),
        "recipe": recipe.name,
        "seed": seed,
        **scores,
        "core_seconds": seconds,
        "images_per_second": len(part.train) * candidate.epochs / seconds,
    }


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of the images (N, 3, H, W) that are classified as `labels` (N,) say."""
    with evaluating(model), torch.inference_mode(), threads(1):
        found = [
            right(model(part), part_labels)
            for part, part_labels in zip(images.split(500), labels.split(500), strict=True)
        ]
    return torch.cat(found).float().mean().item()


def chosen(trials: pd.DataFrame) -> dict[str, object]:
    """The settings of the candidate that the rule takes, from a table of trials.

    Raises:
        ValueError: none is trained within the limit.
    """
    names = list(Candidate(()).settings())
    standard = trials[trials["recipe"] == "standard"]
    means = standard.groupby(names, as_index=False)[["accuracy", "core_seconds"]].mean()
    fast = means[means["core_seconds"] <= LIMIT]
    if fast.empty:
        raise ValueError(f"no candidate is trained within {LIMIT:g} seconds.")
    good = fast[fast["accuracy"] >= fast["accuracy"].max() - WITHIN]
    return good.loc[good["core_seconds"].idxmin(), names].to_dict()


def missing_trials(
    candidate: Candidate, recipe: Recipe, seeds: Sequence[int], part: Dataset, table: Path
) -> pd.DataFrame:
    """All trials in the CSV file `table`, after those of this recipe that it lacked."""
    trials = pd.read_csv(table, dtype={"widths": str}) if table.is_file() else pd.DataFrame()
    for seed in seeds:
        wanted = pd.Series({**candidate.settings(), "recipe": recipe.name, "seed": seed})
        if trials.empty or not trials[wanted.index].eq(wanted).all(axis=1).any():
            row = pd.DataFrame([trial(candidate, recipe, seed, part)])
            trials = pd.concat([trials, row], ignore_index=True)
            trials.to_csv(table, index=False, float_format="%.4g")
            print(row.to_string(index=False, header=len(trials) == 1), flush=True)
    return trials


def study(
    part: Dataset, candidates: Sequence[Candidate], seeds: Sequence[int], table: Path
) -> Candidate:
    """The candidate chosen. Trials are written to the CSV file `table`, and read if they are there.

    Raises:
        ValueError: none is trained within the limit.
    """
    for candidate in candidates:
        trials = missing_trials(candidate, Standard(), seeds, part, table)
    settings = chosen(trials)
    best = next(candidate for candidate in candidates if candidate.settings() == settings)
    for recipe in OTHERS:
        missing_trials(best, recipe, seeds, part, table)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.networks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seeds", type=int, default=1, help="training seeds of each model")
    seeds = range(parser.parse_args().seeds)
    part = part_for_choosing(data.load("shapes10"), held_out=2000)
    print(f"chosen: {study(part, CANDIDATES, seeds, TABLE)}")


if __name__ == "__main__":
    main()
