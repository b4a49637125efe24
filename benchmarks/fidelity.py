"""Our corruptions beside outputs of the published code: `make fidelity REFERENCE=folder`.

The folder holds `corruptions_<px>.npz` for one image side or several, with `clean`, uint8
(n, px, px, 3), and for each of the nineteen corruptions its outputs at severity 1 to 5, uint8
(5, n, px, px, 3); and `corruption_stats.json`, which says how many images its statistics were
taken over (`images`) and how far they stray from draw to draw (`std_between_draws`).

Without randomness the mean difference of the pixels must stay within a limit. Random corruptions
are compared by four statistics of the change, computed here on the stored images for both sides,
ours averaged over several seeds. Tolerances are relative, plus an allowance for the single draw
that the folder holds: the 95 % interval of a draw, whose standard deviation is known from a few
draws only (Student's t). The published code turns floats into bytes by cutting off, not by
rounding, and so does this comparison.

The table goes to `results/fidelity.csv`, what it was made on to `results/fidelity.json`.
"""

from __future__ import annotations

import argparse
import json
import math
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional

from robustlib import corruptions
from robustlib.core import paths
from robustlib.study.results import provenance

LEVELS = 1.0  # mean difference of the pixels that passes, in 8-bit levels
TOLERANCE = 0.1
HIGH_FREQUENCY_TOLERANCE = 0.2
FROST_TOLERANCE = 0.25  # its pictures of ice are our own

# The 97.5 % quantile of Student's t for a standard deviation from so many draws.
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306}

# Name in the table -> name in the reference.
STATISTICS = {
    "change": "mean_absolute_change",
    "rmse": "rmse",
    "ssim": "ssim",
    "high_frequency": "high_frequency_ratio",
}


class BadReferenceError(ValueError):
    """The folder doesn't hold what a comparison needs."""


@dataclass(frozen=True)
class Reference:
    """What the reference holds for one image side.

    clean: uint8 (n, 3, px, px). outputs: for each corruption uint8 (5, n, 3, px, px).
    statistics: for each corruption and severity, as a string, the published numbers.
    n_statistics: how many images those were taken over.
    """

    clean: Tensor
    outputs: Mapping[str, Tensor]
    statistics: Mapping[str, Mapping[str, Any]]
    n_statistics: int

    def allowance(self, name: str, severity: int, statistic: str) -> float:
        """How far one draw of the stored images may stray: half its 95 % interval.

        The standard deviation, of the draws of all images, is enlarged to the stored ones.
        """
        published = self.statistics[name][str(severity)]
        std = published["std_between_draws"][statistic]
        return STUDENT[published["draws"]] * std * math.sqrt(self.n_statistics / len(self.clean))


def read(folder: str | Path) -> dict[int, Reference]:
    """The references in a folder, by image side.

    Raises:
        BadReferenceError: a file or an entry is missing, or an array has another shape.
    """
    folder = Path(folder)
    archives = {
        int(path.stem.removeprefix("corruptions_")): path
        for path in folder.glob("corruptions_*.npz")
        if path.stem.removeprefix("corruptions_").isdecimal()
    }
    if not archives:
        raise BadReferenceError(f"{folder} holds no corruptions_<px>.npz.")
    try:
        facts = json.loads((folder / "corruption_stats.json").read_text("utf-8"))
        return {side: _read_side(archives[side], side, facts) for side in sorted(archives)}
    except FileNotFoundError as error:
        raise BadReferenceError(f"{folder} holds no corruption_stats.json.") from error
    except KeyError as error:
        raise BadReferenceError(f"the reference in {folder} lacks {error}.") from error
    except json.JSONDecodeError as error:
        raise BadReferenceError(f"corruption_stats.json can't be read: {error}.") from error


def _read_side(path: Path, side: int, facts: Mapping[str, Any]) -> Reference:
    def pixels(key: str, shape: tuple[int, ...]) -> Tensor:
        array = archive[key]
        if array.dtype != np.uint8 or array.shape != shape:
            raise BadReferenceError(
                f"{key} in {path.name} must be uint8 of {shape}, got {array.dtype} of "
                f"{array.shape}."
            )
        return torch.from_numpy(array).movedim(-1, -3).contiguous()

    if not zipfile.is_zipfile(path):
        raise BadReferenceError(f"{path.name} can't be read: it is no .npz archive.")
    statistics = facts["statistics"][str(side)]
    with np.load(path) as archive:
        n = len(archive["clean"])
        clean = pixels("clean", (n, side, side, 3))
        names = corruptions.names("imagenet_c")
        outputs = {name: pixels(name, (5, n, side, side, 3)) for name in names}
    for name in names:
        for severity in range(1, 6):
            stds = statistics[name][str(severity)]["std_between_draws"]
            for statistic in STATISTICS.values():
                stds[statistic]
            draws = statistics[name][str(severity)]["draws"]
            if corruptions.info(name).random and draws not in STUDENT:
                raise BadReferenceError(f"{name} needs statistics of 2 to 9 draws, has {draws}.")
    return Reference(clean, outputs, statistics, facts["images"][str(side)]["n"])


def to_levels(images: Tensor) -> Tensor:
    """8-bit levels of images in [0, 1], cut off; the thousandth saves k / 255 from rounding."""
    return (images * 255 + 1e-3).floor_()


def mean_absolute_change(clean: Tensor, corrupted: Tensor) -> float:
    """Mean of |corrupted - clean| / 255; both (n, 3, H, W), 0 to 255."""
    return float((corrupted.double() - clean).abs_().mean()) / 255


def rmse(clean: Tensor, corrupted: Tensor) -> float:
    """Root of the mean of ((corrupted - clean) / 255)^2; both (n, 3, H, W), 0 to 255."""
    return math.sqrt(float((corrupted.double() - clean).square_().mean())) / 255


def ssim(clean: Tensor, corrupted: Tensor) -> float:
    """Structural similarity (Wang et al. 2004), its mean over positions, channels and images.

    As in skimage by default: uniform 7 x 7 windows that lie inside the image, sample
    covariance, constants (0.01 * 255)^2 and (0.03 * 255)^2. Both (n, 3, H, W), 0 to 255, H and W
    at least 7.
    """

    def window_mean(values: Tensor) -> Tensor:
        return functional.avg_pool2d(values, 7, stride=1)

    x, y = clean.double(), corrupted.double()
    mean_x, mean_y = window_mean(x), window_mean(y)
    sample = 49 / 48
    var_x = sample * (window_mean(x * x) - mean_x * mean_x)
    var_y = sample * (window_mean(y * y) - mean_y * mean_y)
    covariance = sample * (window_mean(x * y) - mean_x * mean_y)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    similarity /= (mean_x * mean_x + mean_y * mean_y + c1) * (var_x + var_y + c2)
    return float(similarity.mean())


def high_frequency_ratio(clean: Tensor, corrupted: Tensor) -> float:
    """`high_frequency` of the corrupted images over that of the clean ones."""
    return high_frequency(corrupted) / high_frequency(clean)


def high_frequency(images: Tensor) -> float:
    """Variance of the 4-neighbour Laplacian of the luma, its mean over images.

    images: (n, 3, H, W), 0 to 255. Luma is (0.299 R + 0.587 G + 0.114 B) / 255; pixels at the
    border are left out.
    """
    red, green, blue = images.double().unbind(1)
    luma = (0.299 * red + 0.587 * green + 0.114 * blue) / 255
    laplacian = -4 * luma[:, 1:-1, 1:-1]
    laplacian += luma[:, :-2, 1:-1] + luma[:, 2:, 1:-1] + luma[:, 1:-1, :-2] + luma[:, 1:-1, 2:]
    return float(laplacian.var((1, 2), correction=0).mean())


MEASURES = {
    "change": mean_absolute_change,
    "rmse": rmse,
    "ssim": ssim,
    "high_frequency": high_frequency_ratio,
}


def measure(clean: Tensor, corrupted: Tensor) -> dict[str, float]:
    """The four statistics of corrupted images; both (n, 3, H, W), 0 to 255."""
    return {name: function(clean, corrupted) for name, function in MEASURES.items()}


def seeds_for(side: int) -> range:
    """The seeds that ours is averaged over: more for small images."""
    return range(8 if side <= 64 else 5)


def compare(references: Mapping[int, Reference]) -> pd.DataFrame:
    """A row for each image side, corruption and severity; see the module's docstring.

    Columns: size; corruption; severity; kind ("pixels" or "statistics"); pixel_difference and
    limit in 8-bit levels; for each statistic ours, `_reference` and `_tolerance`; share, the
    largest difference over what is allowed; passed, whether it is at most 1.
    """
    rows: list[dict[str, object]] = []
    for side, reference in references.items():
        print(f"comparing at {side} px ...", flush=True)
        for name in corruptions.names("imagenet_c"):
            rows += compare_one(side, reference, name)
    return pd.DataFrame(rows)


def compare_one(side: int, reference: Reference, name: str) -> Iterator[dict[str, object]]:
    """The rows of one corruption, as in `compare`."""
    images = reference.clean.float() / 255
    random = corruptions.info(name).random
    for severity in range(1, 6):
        expected = reference.outputs[name][severity - 1]
        seeds = seeds_for(side) if random else range(1)
        ours = [to_levels(corruptions.corrupt(images, name, severity, seed)) for seed in seeds]
        row: dict[str, object] = {
            "size": side,
            "corruption": name,
            "severity": severity,
            "kind": "statistics" if random else "pixels",
        }
        if random:
            measured = pd.DataFrame([measure(reference.clean, one) for one in ours]).mean()
            target = measure(reference.clean, expected)
            shares = []
            for short, full in STATISTICS.items():
                tolerance = relative_tolerance(name, short) * abs(target[short])
                tolerance += reference.allowance(name, severity, full)
                row[short] = measured[short]
                row[f"{short}_reference"] = target[short]
                row[f"{short}_tolerance"] = tolerance
                shares.append(abs(measured[short] - target[short]) / tolerance)
        else:
            difference = float((ours[0] - expected).abs().double().mean())
            row |= {"pixel_difference": difference, "limit": LEVELS}
            shares = [difference / LEVELS]
        yield row | {"share": max(shares), "passed": bool(max(shares) <= 1)}


def relative_tolerance(name: str, statistic: str) -> float:
    """The share of the reference's value that ours may be off."""
    if statistic != "high_frequency":
        return TOLERANCE
    return FROST_TOLERANCE if name == "frost" else HIGH_FREQUENCY_TOLERANCE


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """For each side and corruption the worst of five severities, 1 being just allowed."""
    used = pd.DataFrame({"pixels": table.get("pixel_difference", np.nan)})
    used["pixels"] /= table.get("limit", np.nan)
    for name in STATISTICS:
        if name in table:
            off = (table[name] - table[f"{name}_reference"]).abs()
            used[name] = off / table[f"{name}_tolerance"]
    keys = [table["size"], table["corruption"]]
    worst = used.groupby(keys, sort=False).max()
    worst["passed"] = table.groupby(keys, sort=False)["passed"].agg("sum").astype(str) + " of 5"
    return worst.reset_index()


def verdict(table: pd.DataFrame) -> str:
    """One line: how many rows pass, and which don't."""
    line = f"{int(table['passed'].sum())} of {len(table)} pass"
    failed = table[~table["passed"]]
    parts = []
    for (side, name), rows in failed.groupby(["size", "corruption"], sort=False):
        severities = ", ".join(str(severity) for severity in rows["severity"])
        parts.append(f"{name} at {side} px, severity {severities}")
    return f"{line}; not: {'; '.join(parts)}" if parts else line


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="make fidelity",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("reference", help="folder with outputs of the published code")
    try:
        references = read(parser.parse_args().reference)
    except BadReferenceError as error:
        parser.error(str(error))
    table = compare(references)
    facts = {
        **provenance(),
        "images": {str(side): len(reference.clean) for side, reference in references.items()},
        "seeds": {str(side): len(seeds_for(side)) for side in references},
    }
    path = paths.results_dir("fidelity").with_suffix(".csv")
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(path, index=False, float_format="%.6g")
    path.with_suffix(".json").write_text(json.dumps(facts, indent=2) + "\n")
    print("\nshare of the tolerance used, worst of five severities (more than 1 fails)\n")
    print(summary(table).to_string(index=False, float_format="{:.2f}".format, na_rep=""))
    print()
    print(verdict(table))


if __name__ == "__main__":
    main()
