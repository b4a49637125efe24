"""A split that processes share: stored once, and mapped into memory by each."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from robustlib.core import tensorfile
from robustlib.core.store import Store, digest_of
from robustlib.data.base import Split
from robustlib.data.streamed import StreamedSplit


@dataclass(frozen=True)
class SharedSplit:
    """Where a `Split` lies in a store; small enough to be sent around."""

    path: Path

    def open(self) -> Split:
        """The split, its pixels mapped from the file rather than copied; without file names."""
        return _mapped(self.path)


AnySplit = Split | StreamedSplit | SharedSplit


def share(split: Split | StreamedSplit, store: Store) -> AnySplit:
    """Put a split into a store for jobs to open; a streamed one is in its files already."""
    if type(split) is not Split:
        return split
    key = {"split": split.digest()}
    path = store.path("data", digest_of(key))
    if not path.is_file():
        store.put("data", key, split.tensors(), {})
    return SharedSplit(path)


def opened(split: AnySplit) -> Split | StreamedSplit:
    """The split itself, whichever form a job got it in."""
    return split.open() if isinstance(split, SharedSplit) else split


@lru_cache(maxsize=4)
def _mapped(path: Path) -> Split:
    tensors, _ = tensorfile.read(path)
    return Split(tensors["images"], tensors["labels"], tensors["ids"])
