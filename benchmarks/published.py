"""The table of published accuracies, from two public repositories.

    python -m benchmarks.published ROBUSTBENCH KIREEV

ROBUSTBENCH is a checkout of https://github.com/RobustBench/robustbench, KIREEV one of
https://github.com/tml-epfl/adv-training-corruptions. Accuracies are averaged over severities 1 to
5; the table goes to `data/published.csv`. `data/README.md` tells what it holds.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pandas as pd

from robustlib.analysis.published import COLUMNS, FILE
from robustlib.core import paths

DATA = ("cifar10", "cifar100", "imagenet")
KIREEV = "Kireev2021Effectiveness"  # RobustBench's name of Kireev et al. 2022


class BadCheckoutError(ValueError):
    """A folder doesn't hold what it should."""


def robustbench(folder: Path) -> pd.DataFrame:
    """The models of a RobustBench checkout; see `build` for the columns."""
    parts = []
    for data in DATA:
        place = folder / "model_info" / data / "corruptions"
        table = pd.read_csv(_file(place / "unaggregated_results.csv"), header=[0, 1], index_col=0)
        means = table.T.groupby(level=0).mean().T
        for file in sorted(place.glob("*.json")):
            about = json.loads(file.read_text("utf-8"))
            model = file.stem
            # The table spells some names without the underscore.
            row = means.loc[model if model in means.index else model.replace("_", "")]
            stated = float(about["corruptions_acc"]) / 100
            if abs(row.mean() - stated) > 0.0005:
                raise BadCheckoutError(
                    f"{data}, {model}: the mean over corruptions is {row.mean():.4f}, but {file} "
                    f"states {stated:.4f}."
                )
            clean = pd.Series({"clean": float(about["clean_acc"]) / 100})
            parts.append(_rows("RobustBench", data, model.split("_")[0], model, [clean, row]))
    return pd.concat(parts)


def kireev(folder: Path) -> pd.DataFrame:
    """The models of a checkout of Kireev et al. 2022; see `build` for the columns."""
    parts = []
    for data in ("cifar10", "imagenet100"):
        files = sorted((folder / "full_evaluation_results" / data).glob(f"*-{data}.csv"))
        if not files:
            raise BadCheckoutError(f"{folder} has no full_evaluation_results/{data}/*-{data}.csv.")
        for file in files:
            model = file.stem.removesuffix(f"-{data}").replace(":", "/")
            row = pd.read_csv(file, index_col=0).drop("average")[list("12345")].mean(axis=1)
            parts.append(_rows("Kireev2022", data, KIREEV, model, [row]))
    return pd.concat(parts)


def build(robustbench_folder: Path, kireev_folder: Path) -> pd.DataFrame:
    """The table: source, data, paper, model, corruption, accuracy (0 to 1), sorted by these."""
    table = pd.concat([robustbench(robustbench_folder), kireev(kireev_folder)])
    return table.sort_values(list(COLUMNS[:-1])).reset_index(drop=True)


def _rows(source: str, data: str, paper: str, model: str, values: list[pd.Series]) -> pd.DataFrame:
    accuracy = pd.concat(values).round(5).rename_axis("corruption").rename("accuracy")
    about = {"source": source, "data": data, "paper": paper, "model": model}
    return accuracy.reset_index().assign(**about)[list(COLUMNS)]


def _file(path: Path) -> Path:
    if not path.is_file():
        raise BadCheckoutError(f"there is no {path}; name a checkout of the repository.")
    return path


def main() -> None:
    """Write `data/published.csv`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("robustbench", type=Path, help="checkout of RobustBench/robustbench")
    parser.add_argument("kireev", type=Path, help="checkout of tml-epfl/adv-training-corruptions")
    args = parser.parse_args()
    build(args.robustbench, args.kireev).to_csv(paths.project_root() / FILE, index=False)


if __name__ == "__main__":
    main()
