"""Per-image results in a file, a bit each, for anyone to recompute tables and intervals from."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from robustlib.core import tensorfile
from robustlib.evaluation.accuracy import COLUMNS, Evaluation

_DERIVED = ["accuracy", "n"]
_TEXTS = ("model", "recipe", "architecture", "perturbation", "family", "norm", "options")


def write(path: Path, evaluation: Evaluation) -> None:
    """Write the table and the correctness of an evaluation to a safetensors file, as a whole.

    Takes rows x images / 8 bytes, and some for the table. What attacks did to each image
    (`Evaluation.details`) is left out.

    Raises:
        OSError: the file can't be written.
    """
    bits = torch.from_numpy(np.packbits(evaluation.correct, axis=1))
    table = evaluation.table.drop(columns=_DERIVED).to_csv(index=False)
    texts = {"table": table, "n": str(evaluation.correct.shape[1])}
    tensorfile.write(path, {"correct": bits}, texts)


def read(path: Path) -> Evaluation:
    """The evaluation in a file that `write` made; none of its rows counts as computed now.

    Raises:
        FileNotFoundError: there is no such file.
        robustlib.core.tensorfile.DamagedFileError: it isn't such a file, or not as it was written.
    """
    tensors, texts = tensorfile.read(path)
    if set(tensors) != {"correct"} or not {"table", "n"} <= set(texts):
        raise tensorfile.DamagedFileError(f"{path.name} doesn't hold the results of an evaluation.")
    n = int(texts["n"])
    correct = np.unpackbits(tensors["correct"].numpy(), axis=1, count=n).astype(bool)
    text = dict.fromkeys(_TEXTS, str)
    table = pd.read_csv(io.StringIO(texts["table"]), dtype=text, keep_default_na=False)
    table = table.assign(accuracy=correct.mean(axis=1), n=n)
    return Evaluation(table[list(COLUMNS)], correct, computed=0)
