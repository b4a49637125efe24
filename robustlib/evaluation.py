"""Evaluation of models under perturbations into one long table, with per-image correctness."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from robustlib.data import Split
from robustlib.exchange import Stored
from robustlib.perturbations import Attack, Clean, Corruption, Perturbation
from robustlib.store import Store, code_digest
from robustlib.training import TrainedModel

COLUMNS = (
    "model",
    "recipe",
    "architecture",
    "training_seed",
    "perturbation",
    "family",
    "severity",
    "eps",
    "accuracy",
    "n",
)


@dataclass(frozen=True)
class Evaluation:
    """What models got right.

    Attributes:
        table: one row for each (model, perturbation) with the columns `COLUMNS`: model (recipe
            and seed), recipe, architecture, training_seed, perturbation, family, severity (0 where
            it doesn't apply), eps (0 likewise), accuracy (0 to 1), n (images).
        correct: bool (rows, n), whether each image was classified correctly; images in the order
            of the split. For attacks: correct both clean and attacked.
        computed: rows that were computed now; the others came from the store.
    """

    table: pd.DataFrame
    correct: np.ndarray = field(repr=False)
    computed: int

    def per_image(self, recipes: Sequence[str], perturbations: Sequence[str]) -> np.ndarray:
        """Correctness averaged over severities and training seeds, as the statistics need it.

        Returns float64 (recipes, perturbations, n) in [0, 1]. Its mean over the last axis is the
        accuracy A_m(c).

        Raises:
            ValueError: a pair that was not evaluated.
        """
        rows = self.table.reset_index(drop=True).groupby(["recipe", "perturbation"]).indices
        missing = [(r, p) for r in recipes for p in perturbations if (r, p) not in rows]
        if missing:
            raise ValueError(f"not evaluated (recipe, perturbation): {missing}.")
        return np.stack(
            [
                np.stack([self.correct[rows[recipe, name]].mean(axis=0) for name in perturbations])
                for recipe in recipes
            ]
        )


def evaluate(
    models: Sequence[TrainedModel],
    split: Split,
    perturbations: Iterable[Perturbation],
    *,
    store: Store,
    seed: int = 0,
    batch_size: int = 500,
    progress: bool = True,
) -> Evaluation:
    """Accuracy of every model under every perturbation (clean images are always included).

    Each corrupted set is made once and shown to all models. Results are kept in the store, one
    for each (model, perturbation, data, seed). Computes in float32.

    Args:
        models: from `robustlib.training.train`.
        split: the images, for example `dataset.test`.
        perturbations: what to evaluate under.
        store: where results are kept.
        seed: source of the perturbations' randomness.
        batch_size: images at a time; it doesn't change the perturbations.
        progress: show a progress bar on standard output.

    Raises:
        ValueError: no models, or an empty split.
    """
    if not models or not len(split):
        raise ValueError("nothing to evaluate: give at least one model and one image.")
    cells: list[Perturbation] = list(dict.fromkeys([Clean(), *perturbations]))
    data = split.digest()
    rows: list[dict[str, Any]] = []
    correct: list[np.ndarray] = []
    computed = 0
    with tqdm(
        total=len(cells) * len(models),
        unit="cell",
        mininterval=1.0,
        file=sys.stdout,
        disable=not progress,
    ) as bar:
        for perturbation in cells:
            bar.set_description(perturbation.name, refresh=False)
            shared_key = _key(perturbation, data, seed)
            keys = [{"model": trained.digest, **shared_key} for trained in models]
            found = [store.find("evaluations", key) for key in keys]
            missing = [index for index, artifact in enumerate(found) if artifact is None]
            fresh = _correctness(
                [models[index] for index in missing], split, perturbation, seed, batch_size
            )
            for index, values in zip(missing, fresh, strict=True):
                found[index] = store.put("evaluations", keys[index], {"correct": values}, {})
            computed += len(missing)
            for trained, artifact in zip(models, found, strict=True):
                assert artifact is not None
                right = artifact.tensors["correct"].numpy()
                rows.append(_row(trained, perturbation, right))
                correct.append(right)
            bar.update(len(models))
    return Evaluation(pd.DataFrame(rows, columns=list(COLUMNS)), np.stack(correct), computed)


def _row(trained: TrainedModel, perturbation: Perturbation, correct: np.ndarray) -> dict[str, Any]:
    return {
        "model": f"{trained.recipe}-{trained.seed}",
        "recipe": trained.recipe,
        "architecture": trained.architecture,
        "training_seed": trained.seed,
        "perturbation": perturbation.name,
        "family": perturbation.family,
        "severity": perturbation.severity,
        "eps": perturbation.eps if isinstance(perturbation, Attack) else 0.0,
        "accuracy": float(correct.mean()),
        "n": len(correct),
    }


def _key(perturbation: Perturbation, data: str, seed: int) -> dict[str, Any]:
    """What determines the evaluation of a model, apart from the model."""
    modules = ["evaluation", "randomness", "models"]
    settings = asdict(perturbation)  # type: ignore[call-overload]
    if isinstance(perturbation, Corruption):
        modules.append("corruptions")
    elif isinstance(perturbation, Attack):
        modules.append("attacks")
    elif isinstance(perturbation, Stored):
        modules += ["exchange", "data"]
        settings["folder"] = perturbation.digest()  # moving the files changes nothing
    return {
        "perturbation": type(perturbation).__name__,
        "settings": settings,
        "data": data,
        "seed": seed,
        "code": code_digest(*modules),
    }


def _correctness(
    models: Sequence[TrainedModel],
    split: Split,
    perturbation: Perturbation,
    seed: int,
    batch_size: int,
) -> list[Tensor]:
    """For each model bool (N,) on the CPU: which images it gets right."""
    results: list[list[Tensor]] = [[] for _ in models]
    if not models:
        return []
    device = next(models[0].model.parameters()).device
    for start in range(0, len(split), batch_size):
        part = slice(start, start + batch_size)
        images = split.float_images(part).to(device)
        labels, ids = split.labels[part].to(device), split.ids[part].to(device)
        shared = (
            None
            if perturbation.needs_model
            else perturbation.apply(images, labels, ids, None, seed)
        )
        for trained, result in zip(models, results, strict=True):
            seen = (
                perturbation.apply(images, labels, ids, trained.model, seed)
                if shared is None
                else shared
            )
            result.append(predict(trained.model, seen).eq(labels).cpu())
    return [torch.cat(result) for result in results]


def predict(model: nn.Module, images: Tensor) -> Tensor:
    """Predicted classes, int64 (N,), of float32 images (N, 3, H, W) in [0, 1]."""
    with torch.inference_mode():
        return model(images.contiguous(memory_format=torch.channels_last)).argmax(1)
