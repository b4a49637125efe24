"""Training images in a given order, on the device: resident there, in memory, or from files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from robustlib.core.devices import sent
from robustlib.core.jobs import cores
from robustlib.data import Split, StreamedSplit

_SHARE_OF_FREE_MEMORY = 0.5  # of a GPU; the rest is for the network


class Loader:
    """Batches of a split, in whatever order each epoch asks for.

    On a CPU the split is used where it lies. On a GPU it is moved there once if it takes at most
    half of the free memory, and by batch otherwise. The files of a `StreamedSplit` are decoded by
    the worker processes of a DataLoader, which stay for all epochs.

    Args:
        split: the images.
        device: where batches are wanted.
        decoders: processes that decode files; None for one a core, up to 16; 0 for none.
    """

    def __init__(
        self, split: Split | StreamedSplit, device: torch.device, decoders: int | None = None
    ) -> None:
        self.device = device
        self._split = split
        self._order = _Order()
        self._files: DataLoader | None = None
        if isinstance(split, StreamedSplit):
            decoders = min(16, cores()) if decoders is None else decoders
            self._files = DataLoader(
                split,  # type: ignore[arg-type]  # it has __getitem__ and __len__
                batch_sampler=self._order,
                num_workers=decoders,
                persistent_workers=decoders > 0,
                pin_memory=device.type == "cuda",
            )
        else:
            self._split = resident(split, device)

    def __len__(self) -> int:
        return len(self._split)

    def batches(self, order: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """One batch for each entry of `order`, int64 (n,), indices into the split.

        Each is uint8 images (n, 3, H, W), labels (n,) and ids (n,), on the device.
        """
        split = self._split
        indices = [sent(index, split.labels.device) for index in order]
        if isinstance(split, StreamedSplit):
            assert self._files is not None
            self._order.batches = [index.tolist() for index in order]
            pictures: Iterator[Tensor] = iter(self._files)
        else:
            pictures = (split.images[index] for index in indices)
        for index, images in zip(indices, pictures, strict=True):
            yield self._put(images), self._put(split.labels[index]), self._put(split.ids[index])

    def _put(self, values: Tensor) -> Tensor:
        there = values.device.type == self.device.type
        return values if there else sent(values, self.device)


def resident(split: Split, device: torch.device) -> Split:
    """`split` on a GPU, as bytes, if it takes at most half of its free memory; else as it is."""
    if device.type != "cuda":
        return split
    free, _ = torch.cuda.mem_get_info(device)
    return split.to(device) if split.images.numel() <= _SHARE_OF_FREE_MEMORY * free else split


class _Order:
    """A batch sampler whose batches are replaced before each epoch."""

    batches: Sequence[list[int]] = ()

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)
