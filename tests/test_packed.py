"""Per-image results in a file."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from robustlib.core import tensorfile
from robustlib.evaluation import COLUMNS, Evaluation, packed


@pytest.fixture
def evaluation() -> Evaluation:
    correct = np.random.default_rng(0).random((4, 21)) < 0.7
    rows = [
        ("a-0", "a", "net", 0, "clean", "clean", 0, 0.0, "", ""),
        ("a-0", "a", "net", 0, "NA", "noise", 3, 0.0, "", "swap=True, x='1,5'"),
        ("a-1", "a", "net", 1, "pgd", "adversarial", 0, 2 / 255, "Linf", ""),
        ("b, c-0", "b, c", "net", 0, "cw", "adversarial", 0, math.inf, "L2", ""),
    ]
    names = [column for column in COLUMNS if column not in ("accuracy", "n")]
    table = pd.DataFrame(rows, columns=names).assign(accuracy=correct.mean(axis=1), n=21)
    return Evaluation(table[list(COLUMNS)], correct, computed=4)


def test_everything_comes_back(evaluation: Evaluation, tmp_path: Path) -> None:
    packed.write(tmp_path / "results.safetensors", evaluation)
    found = packed.read(tmp_path / "results.safetensors")
    np.testing.assert_array_equal(found.correct, evaluation.correct)
    assert found.correct.dtype == bool
    pd.testing.assert_frame_equal(found.table, evaluation.table)
    assert found.computed == 0


def test_a_bit_an_image(tmp_path: Path) -> None:
    correct = np.ones((1, 80_000), bool)
    table = pd.DataFrame([dict.fromkeys(COLUMNS, "")]).assign(accuracy=1.0, n=80_000)
    packed.write(tmp_path / "large", Evaluation(table, correct, computed=0))
    assert (tmp_path / "large").stat().st_size < 11_000


def test_other_files_are_refused(evaluation: Evaluation, tmp_path: Path) -> None:
    path = tmp_path / "file"
    with pytest.raises(FileNotFoundError):
        packed.read(path)
    tensorfile.write(path, {"weights": torch.zeros(3)}, {})
    with pytest.raises(tensorfile.DamagedFileError, match="doesn't hold the results"):
        packed.read(path)
    packed.write(path, evaluation)
    content = bytearray(path.read_bytes())
    content[-1] ^= 128
    path.write_bytes(content)
    with pytest.raises(tensorfile.DamagedFileError, match="checksum"):
        packed.read(path)
