"""Trained models: what training gives, and what is known of it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from robustlib import models
from robustlib.core import tensorfile
from robustlib.core.devices import pick_device
from robustlib.core.store import Artifact, Store, digest_of
from robustlib.models import Classifier
from robustlib.training.loop import channels_last, epoch_key


@dataclass(frozen=True)
class TrainedModel(Classifier):
    """A trained classifier and where it came from.

    Attributes:
        recipe: name of its recipe.
        seed: training seed.
        architecture: name of its architecture.
        classes, image_size: number of its classes, and side of its images in pixels.
        model: in eval mode, on the device asked for.
        digest: under what it is stored, and its evaluations with it.
        weights: a hash of its weights and buffers.
        history: one row an epoch: epoch, steps, loss (mean over its batches), accuracy (of the
            training images as the loss saw them, against their clean labels), learning_rate (of
            its last step), images_per_second, seconds.
        from_store: whether it was trained earlier.
        seconds: what training took when it was trained, interruptions left out.
    """

    digest: str
    classes: int
    image_size: int
    weights: str = field(repr=False)
    history: list[dict[str, float]] = field(repr=False)
    from_store: bool
    seconds: float

    def identity(self) -> str:
        """`digest`.

        Raises:
            ValueError: the model's weights are no longer those that training gave.
        """
        if tensorfile.digest(self.model.state_dict()) != self.weights:
            raise ValueError(
                f"the weights of {self.name} have changed since it was trained, so its stored "
                "results don't hold; hand it over as a model of your own: "
                "robustlib.models.wrap(trained.model, name=...)."
            )
        return self.digest

    def is_in(self, store: Store) -> bool:
        """Whether its weights are in that store."""
        return self._file(store) is not None

    def stored_in(self, store: Store) -> StoredModel:
        """Where it is to be found in a store.

        Raises:
            ValueError: it isn't in that store.
        """
        path = self._file(store)
        if path is None:
            raise ValueError(
                f"{self.name} is not in the store {store.root}; use the one that it was trained "
                "with."
            )
        return StoredModel(path, self.architecture, self.classes, self.image_size)

    def _file(self, store: Store) -> Path | None:
        paths = (store.path(kind, self.digest) for kind in ("models", "epochs"))
        return next((path for path in paths if path.is_file()), None)


@dataclass(frozen=True)
class StoredModel:
    """A trained model by the file of its weights, to be opened by another process.

    Attributes:
        path: of the weights.
        architecture, classes, image_size: as in `TrainedModel`.
    """

    path: Path
    architecture: str
    classes: int
    image_size: int

    def open(self, device: str) -> nn.Module:
        """The model in eval mode on that device, "cpu" or "cuda"; kept for the next time."""
        return _open(self, device)


@lru_cache(maxsize=16)
def _open(stored: StoredModel, device: str) -> nn.Module:
    model = models.build(
        stored.architecture, classes=stored.classes, image_size=stored.image_size, seed=0
    )
    model.load_state_dict(tensorfile.read(stored.path)[0])
    return channels_last(model, pick_device(device)).eval()


def rebuilt(
    artifact: Artifact,
    recipe: str,
    seed: int,
    shape: dict[str, Any],
    device: torch.device,
    new: bool,
) -> TrainedModel:
    """The trained model that the store keeps as `artifact`.

    shape: its architecture, classes and image_size. new: whether it was trained just now.
    """
    model = models.build(**shape, seed=0)
    model.load_state_dict(artifact.tensors)
    return TrainedModel(
        recipe=recipe,
        seed=seed,
        **shape,
        digest=artifact.digest,
        weights=tensorfile.digest(artifact.tensors),
        model=channels_last(model, device).eval(),
        history=artifact.record["history"],
        from_store=not new,
        seconds=artifact.record["seconds"],
    )


def epochs_of(trained: TrainedModel, store: Store) -> list[TrainedModel]:
    """The model as it was after each epoch, trained with `keep_epochs=True`.

    Each has its own digest, and the recipe's name with the epoch, such as "fgsm, epoch 3", so
    that all can be evaluated together.

    Raises:
        ValueError: the epochs were not kept.
    """
    result = []
    for epoch in range(1, len(trained.history) + 1):
        artifact = store.find("epochs", epoch_key(trained.digest, epoch))
        if artifact is None:
            raise ValueError(
                f"the weights of {trained.recipe!r}, seed {trained.seed}, after epoch {epoch} are "
                "not in the store; train with keep_epochs=True."
            )
        model = copy.deepcopy(trained.model)
        model.load_state_dict(artifact.tensors)
        history = trained.history[:epoch]
        result.append(
            replace(
                trained,
                recipe=f"{trained.recipe}, epoch {epoch}",
                digest=artifact.digest,
                weights=tensorfile.digest(artifact.tensors),
                model=model,
                history=history,
                seconds=sum(row["seconds"] for row in history),
            )
        )
    return result


def overview(trained: Sequence[TrainedModel]) -> pd.DataFrame:
    """One row a model: recipe, seed, architecture, parameters, epochs, steps, last epoch, speed.

    `source` is "trained" for models that this call trained and "store" for those it found.
    """
    return pd.DataFrame(
        [
            {
                "recipe": item.recipe,
                "seed": item.seed,
                "architecture": item.architecture,
                "parameters": models.parameter_count(item.model),
                "epochs": len(item.history),
                "steps": int(sum(row["steps"] for row in item.history)),
                "final loss": item.history[-1]["loss"],
                "final accuracy": item.history[-1]["accuracy"],
                "images per second": item.history[-1]["images_per_second"],
                "training seconds": item.seconds,
                "source": "store" if item.from_store else "trained",
            }
            for item in trained
        ]
    )


def epochs_kept(store: Store, key: dict[str, Any], epochs: int) -> bool:
    """Whether the store has the weights after each of the first `epochs` epochs."""
    model = digest_of(key)
    digests = [digest_of(epoch_key(model, epoch)) for epoch in range(1, epochs + 1)]
    return all(store.path("epochs", digest).is_file() for digest in digests)
