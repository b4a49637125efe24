"""Nothing in a training step makes the host wait for a GPU, as far as can be told without one.

Tensors on the device "meta" have no values, so that whatever would have to look at some fails. A
copy from the host waits unless it is asked not to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from robustlib import models
from robustlib.recipes import (
    FGSM,
    MTLAT,
    PGD,
    TLAT,
    Augmented,
    AugMix,
    Batch,
    LabelSmoothing,
    Mixup,
    Recipe,
    Standard,
)
from robustlib.training import Budget, loop
from robustlib.training.augmentation import AUGMENTATIONS

GPU = torch.device("meta")

RECIPES = [
    Standard(),
    Augmented(("gaussian_noise", "gaussian_blur", "contrast", "rotation")),
    Mixup(),
    LabelSmoothing(),
    FGSM(),
    PGD(steps=2),
    TLAT(radius="batch", target="least_likely", batch_norm="eval"),
    MTLAT(),
    MTLAT(corruptions=("contrast",), label_weight="radius", name="mtlat, contrast"),
    AugMix(),
]


class _Copies(TorchDispatchMode):
    """Refuses copies between devices that the host waits for."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func.name() in ("aten::_to_copy", "aten::copy_"):
            source = args[0] if func.name() == "aten::_to_copy" else args[1]
            waits = not (kwargs.get("non_blocking") or (len(args) > 2 and args[2]))
            if source.device != result.device and waits:
                raise RuntimeError(f"{func.name()} from {source.device} waits")
        return result


@contextmanager
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch, _Copies():
        patch.setattr(torch, "autocast", lambda *a, **k: nullcontext())  # it doesn't know "meta"
        yield


def step(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    model = models.build("small_resnet", classes=3, image_size=16, seed=0).to(GPU).train()
    images = torch.empty(8, 3, 16, 16, device=GPU)
    labels = torch.empty(8, dtype=torch.int64, device=GPU)
    batch = Batch(images, labels, labels, classes=3, seed=1)
    with no_waiting(monkeypatch):
        loss, _ = recipe.loss(model, batch)
        loss.backward()


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_no_recipe_waits(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    step(recipe, monkeypatch)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_no_augmentation_waits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.empty(8, 3, 16, 16, dtype=torch.uint8, device=GPU)
    with no_waiting(monkeypatch):
        assert AUGMENTATIONS[name](images, seed=1).device == GPU


def test_no_step_of_training_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = torch.optim.SGD

    def unfused(*args: Any, fused: bool, **settings: Any) -> torch.optim.SGD:
        return plain(*args, foreach=False, **settings)

    monkeypatch.setattr(torch.optim, "SGD", unfused)  # the fused one doesn't know "meta"
    monkeypatch.setattr(loop, "training_autocast", lambda device: nullcontext())
    model = models.build("small_resnet", classes=3, image_size=16, seed=0)
    training = loop.Run(model, MTLAT(), 3, 2, Budget(epochs=1, averaging=0.9), 0, GPU)
    images = torch.empty(8, 3, 16, 16, dtype=torch.uint8, device=GPU)
    labels = torch.empty(8, dtype=torch.int64, device=GPU)
    with no_waiting(monkeypatch):
        for _ in range(2):
            training.take_step(images, labels, labels)
    assert training.steps_taken == 2


@pytest.mark.parametrize(
    "look",
    [
        lambda images: images.sum().item(),
        lambda images: images[images > 0.5],
        lambda images: images.cpu(),
        lambda images: torch.zeros(8).to(images.device),
        lambda images: images.copy_(torch.zeros(8, 3, 16, 16)),
        lambda images: bool(images.max() > 1),
    ],
)
def test_a_recipe_that_waits_is_found(
    look: Callable[[Tensor], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Waiting(Standard):
        def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
            look(batch.images)
            return super().loss(model, batch)

    with pytest.raises((RuntimeError, NotImplementedError), match=r"meta|waits"):
        step(Waiting(), monkeypatch)
