"""The budget of the run of record: which weight decay, for CIFAR-10 as files.

    python -m benchmarks.record data/cifar10-jpeg        about half an hour on one thread

Candidates are trained on the first 40,000 training images, 4,000 a class, and scored on the other
10,000; the test images have no say. The rule, written down before the results: the best mean
accuracy over the seeds. The table is `benchmarks/record.csv`: delete it to begin anew.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from benchmarks.networks import Candidate, missing_trials, part_for_choosing
from robustlib import data
from robustlib.data import Dataset
from robustlib.recipes import Standard

TABLE = Path(__file__).with_name("record.csv")
CANDIDATES = tuple(
    Candidate((16, 64, 128), epochs=20, weight_decay=decay) for decay in (5e-4, 1e-3, 2e-3)
)


def best(trials: pd.DataFrame) -> dict[str, object]:
    """The settings of the candidate with the best mean accuracy, from a table of trials."""
    names = list(Candidate(()).settings())
    means = trials.groupby(names, as_index=False)["accuracy"].mean()
    return {str(k): v for k, v in means.loc[means["accuracy"].idxmax(), names].items()}


def study(
    part: Dataset, candidates: Sequence[Candidate], seeds: Sequence[int], table: Path
) -> dict[str, object]:
    """The settings chosen. Trials are written to the CSV file `table`, and read if there."""
    for candidate in candidates:
        trials = missing_trials(candidate, Standard(), seeds, part, table)
    return best(trials)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.record",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", help="with train/ and test/, a folder a class in each")
    parser.add_argument("--seeds", type=int, default=1, help="training seeds of each model")
    arguments = parser.parse_args()
    whole = data.load("folder", root=arguments.folder, image_size=32)
    part = part_for_choosing(whole, held_out=10_000)
    print(f"chosen: {study(part, CANDIDATES, range(arguments.seeds), TABLE)}")


if __name__ == "__main__":
    main()
