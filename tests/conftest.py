"""Shared: a tiny learnable data set, a store in a temporary folder, and the end of processes."""

from __future__ import annotations

import time
from pathlib import Path

import psutil
import pytest
import torch

from robustlib.core.store import Store
from robustlib.data import Dataset, Split


def tiny_split(count: int, seed: int) -> Split:
    """Noisy 16 px images of three classes, told apart by their brightest channel."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    images = torch.randint(0, 150, (count, 3, 16, 16), generator=generator)
    images[torch.arange(count), labels] += 100
    return Split(images.to(torch.uint8), labels, torch.arange(count))


@pytest.fixture(scope="session")
def tiny() -> Dataset:
    return Dataset.build("tiny", ("red", "green", "blue"), tiny_split(96, 1), tiny_split(60, 2))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def gone(pid: int) -> bool:
    """Whether the process ends, if need be within some seconds; nobody may have waited for it."""
    for _ in range(200):
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.1)
    return False
