"""Evaluation of models under perturbations into one long table, with per-image correctness."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from robustlib import attacks
from robustlib.checks import check_nonempty
from robustlib.data import Split, StreamedSplit
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
    "norm",
)
DETAILS = ("clean_correct", "robust_correct", "norm", "steps")


@dataclass(frozen=True)
class Evaluation:
    """What models got right.

    Attributes:
        table: one row for each (model, perturbation) with the columns `COLUMNS`: model (recipe
            and seed), recipe, architecture, training_seed, perturbation, family, severity (0 where
            it doesn't apply), eps (0 likewise; infinite for any radius), accuracy (0 to 1), n
            (images), norm (what eps is measured in, "Linf" or "L2"; "" where it doesn't apply).
        correct: bool (rows, n), whether each image was classified correctly; images in the order
            of the split. For attacks: correct both clean and attacked.
        computed: rows that were computed now; the others came from the store.
        attacked: for the rows of attacks, by position, what `details` returns.
    """

    table: pd.DataFrame
    correct: np.ndarray = field(repr=False)
    computed: int
    attacked: Mapping[int, pd.DataFrame] = field(default_factory=dict, repr=False)

    def details(self, model: str, attack: str) -> pd.DataFrame:
        """What an attack did to each image, one row an image, for each radius in turn.

        Args:
            model: as in the table's column model, such as "mtlat-0".
            attack: as in its column perturbation.

        Returns a frame with the columns eps; image, the position in the split; and, as in
        `robustlib.attacks.AttackResult`, clean_correct, robust_correct, norm and steps.

        Raises:
            ValueError: the model was not evaluated under that attack.
        """
        rows = (self.table["model"] == model) & (self.table["perturbation"] == attack)
        found = [
            self.attacked[row].assign(eps=self.table["eps"].iloc[row])
            for row in np.flatnonzero(rows).tolist()
            if row in self.attacked
        ]
        if not found:
            known = sorted({self.table["perturbation"].iloc[row] for row in self.attacked})
            raise ValueError(
                f"model {model!r} was not evaluated under an attack {attack!r}; models: "
                f"{', '.join(self.table['model'].unique())}; attacks: {', '.join(known) or 'none'}."
            )
        columns = ["eps", "image", *DETAILS]
        return pd.concat(found, ignore_index=True)[columns]

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
    split: Split | StreamedSplit,
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
    attacked: dict[int, pd.DataFrame] = {}
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
            fresh = _outcomes(
                [models[index] for index in missing], split, perturbation, seed, batch_size
            )
            for index, values in zip(missing, fresh, strict=True):
                found[index] = store.put("evaluations", keys[index], values, {})
            computed += len(missing)
            for trained, artifact in zip(models, found, strict=True):
                assert artifact is not None
                right = artifact.tensors["correct"].numpy()
                if isinstance(perturbation, Attack):
                    attacked[len(rows)] = _details(artifact.tensors)
                rows.append(_row(trained, perturbation, right))
                correct.append(right)
            bar.update(len(models))
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    return Evaluation(table, np.stack(correct), computed, attacked)


def accuracy_against_radius(
    models: Sequence[TrainedModel],
    split: Split | StreamedSplit,
    names: Sequence[str],
    radii: Sequence[float],
    *,
    store: Store,
    seed: int = 0,
    batch_size: int = 500,
    progress: bool = True,
) -> pd.DataFrame:
    """Accuracy under attacks at each of several radii.

    An attack within a radius is run at each. A minimal attack is run once, for the norms of its
    perturbations give the accuracy at any radius. A curve that doesn't fall, or that stays above
    zero at large radii, is a sign of a failing attack.

    Args:
        models: from `robustlib.training.train`.
        split: the images.
        names: attacks.
        radii: positive, each in the norm of the attack; different attacks may need different ones.
        store: where results are kept.
        seed: as in `evaluate`, like the next.
        batch_size: images at a time.
        progress: show a progress bar on standard output.

    Returns a frame with one row for each (model, attack, radius), radius 0 included, which is the
    clean accuracy, and the columns model, recipe, training_seed, attack, norm, eps, accuracy, n.

    Raises:
        ValueError: no models, images, attacks or radii, or a bad radius.
        UnknownNameError: unknown attack.
    """
    check_nonempty(names, "names")
    check_nonempty(radii, "radii")
    for name in names:
        for eps in radii:
            Attack(name, eps)
    cells = [
        Attack(name, eps)
        for name in names
        for eps in ((None,) if attacks.info(name).minimal else radii)
    ]
    result = evaluate(
        models, split, cells, store=store, seed=seed, batch_size=batch_size, progress=progress
    )
    rows = []
    for trained in models:
        model = f"{trained.recipe}-{trained.seed}"
        about = {"model": model, "recipe": trained.recipe, "training_seed": trained.seed}
        for name in names:
            details = result.details(model, name)
            clean = details[details["eps"] == details["eps"].iloc[0]]["clean_correct"]
            about |= {"attack": name, "norm": attacks.info(name).norm}
            rows.append({**about, "eps": 0.0, "accuracy": clean.mean(), "n": len(split)})
            for eps in radii:
                if attacks.info(name).minimal:
                    beaten = ~details["robust_correct"] & (details["norm"] <= eps)
                    right = details["clean_correct"] & ~beaten
                else:
                    right = details[details["eps"] == eps]["robust_correct"]
                rows.append({**about, "eps": eps, "accuracy": right.mean(), "n": len(split)})
    return pd.DataFrame(rows)


def _details(tensors: Mapping[str, Tensor]) -> pd.DataFrame:
    """The per-image results of an attack, from what the store keeps."""
    values = {**tensors, "robust_correct": tensors["correct"]}
    frame = pd.DataFrame({name: values[name].numpy() for name in DETAILS})
    return frame.assign(image=range(len(frame)))


def _row(trained: TrainedModel, perturbation: Perturbation, correct: np.ndarray) -> dict[str, Any]:
    return {
        "model": f"{trained.recipe}-{trained.seed}",
        "recipe": trained.recipe,
        "architecture": trained.architecture,
        "training_seed": trained.seed,
        "perturbation": perturbation.name,
        "family": perturbation.family,
        "severity": perturbation.severity,
        "eps": _radius(perturbation),
        "accuracy": float(correct.mean()),
        "n": len(correct),
        "norm": perturbation.norm if isinstance(perturbation, Attack) else "",
    }


def _radius(perturbation: Perturbation) -> float:
    if not isinstance(perturbation, Attack):
        return 0.0
    return math.inf if perturbation.eps is None else perturbation.eps


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


def _outcomes(
    models: Sequence[TrainedModel],
    split: Split | StreamedSplit,
    perturbation: Perturbation,
    seed: int,
    batch_size: int,
) -> list[dict[str, Tensor]]:
    """For each model what the store keeps, (N,) on the CPU.

    "correct", bool, which images it gets right; for an attack also "clean_correct", "norm" and
    "steps", as in `robustlib.attacks.AttackResult`.
    """
    results: list[list[dict[str, Tensor]]] = [[] for _ in models]
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
            if isinstance(perturbation, Attack):
                attacked = perturbation.run(images, labels, ids, trained.model, seed)
                outcome = {
                    "correct": attacked.robust_correct,
                    "clean_correct": attacked.clean_correct,
                    "norm": attacked.norm,
                    "steps": attacked.steps,
                }
            else:
                seen = (
                    perturbation.apply(images, labels, ids, trained.model, seed)
                    if shared is None
                    else shared
                )
                outcome = {"correct": predict(trained.model, seen).eq(labels)}
            result.append(outcome)
    return [
        {name: torch.cat([batch[name] for batch in result]).cpu() for name in result[0]}
        for result in results
    ]


def predict(model: nn.Module, images: Tensor) -> Tensor:
    """Predicted classes, int64 (N,), of float32 images (N, 3, H, W) in [0, 1]."""
    with torch.inference_mode():
        return model(images.contiguous(memory_format=torch.channels_last)).argmax(1)
