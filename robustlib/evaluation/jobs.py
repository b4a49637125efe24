"""Evaluation as jobs: which images each model gets right under each perturbation, into the store.

A job is one attack on one model, or one perturbation for a few models (of images in files, a few
perturbations), so that an image is decoded and corrupted once and shown to all of them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from robustlib.attacks import BATCH_SIZE
from robustlib.core.inference import device_of, evaluating, right
from robustlib.core.jobs import Tell, Watch, Workers, cores, threads_for
from robustlib.core.store import Store
from robustlib.data import Split, StreamedSplit
from robustlib.data.shared import AnySplit, opened, share
from robustlib.models import Classifier
from robustlib.perturbations import Attack, Perturbation
from robustlib.training import StoredModel, TrainedModel, resident

_MODELS = 16  # at most, in a job
_PERTURBATIONS = 8  # at most, in a job on images that are decoded each time
_VALUES = 2**26  # of images handed to an attack, at most: 256 MB

Keys = tuple[dict[str, Any], ...]
"""Of results in the store, one for each model."""
Cell = tuple[Perturbation, int, dict[str, Any]]
"""A perturbation, the position of a model, and the key of its result in the store."""


@dataclass(frozen=True)
class _EvaluationJob:
    """All that it takes to evaluate some models somewhere else."""

    split: AnySplit
    perturbations: tuple[Perturbation, ...]
    models: tuple[nn.Module | StoredModel, ...]
    device: str
    keys: tuple[Keys, ...]  # by perturbation
    seed: int
    batch_size: int
    store: Path


def place_of(model: Classifier, store: Store, workers: Workers) -> str:
    """Type of the device that `model` is evaluated on."""
    if workers.scheduler and _movable(model, store):
        return workers.hardware("auto")[0].type
    return device_of(model.model).type


def compute(
    cells: Sequence[Cell],
    models: Sequence[Classifier],
    split: Split | StreamedSplit,
    *,
    seed: int,
    batch_size: int,
    store: Store,
    workers: Workers,
    progress: bool,
) -> None:
    """Compute what belongs under the keys of `cells`, and put it into the store.

    A trained model that is in the store is evaluated by the workers, any other model here.
    """
    with tqdm(
        total=len(cells) * len(split),
        unit="image",
        unit_scale=True,
        mininterval=1.0,
        file=sys.stdout,
        disable=not (progress and cells),
    ) as bar:
        for part, movable, device in _groups(cells, models, store, workers):
            able = workers if movable else Workers(1)
            chosen = {i: models[i] for i in sorted({index for _, index, _ in part})}
            threads = _threads(chosen.values(), movable, device)
            planned = list(_jobs(part, isinstance(split, StreamedSplit)))
            away = able.elsewhere(len(planned), threads)
            images = share(split, store) if away else split
            used = {i: m.stored_in(store) if away else m.model for i, m in chosen.items()}  # type: ignore[attr-defined]
            jobs = [
                _EvaluationJob(
                    images,
                    perturbations,
                    tuple(used[index] for index in indices),
                    device,
                    keys,
                    seed,
                    batch_size,
                    store.root,
                )
                for perturbations, indices, keys in planned
            ]
            watch = _shown_by(bar, len(jobs))
            able.run(_evaluate_one, jobs, store=store, threads=threads, watch=watch)


def _shown_by(bar: tqdm, jobs: int) -> Watch:
    before = int(bar.n)

    def watch(done: int, finished: int) -> None:
        bar.set_description(f"evaluated {finished} of {jobs} sets", refresh=False)
        bar.update(before + done - bar.n)

    return watch


def _movable(model: Classifier, store: Store) -> bool:
    return isinstance(model, TrainedModel) and model.is_in(store)


def _groups(
    cells: Sequence[Cell], models: Sequence[Classifier], store: Store, workers: Workers
) -> Iterator[tuple[list[Cell], bool, str]]:
    """Cells whose jobs are alike: whether they can run anywhere, on how large a network, where."""
    alike: dict[tuple[bool, str, str], list[Cell]] = {}
    for cell in cells:
        model = models[cell[1]]
        movable = _movable(model, store)
        far = movable and workers.scheduler
        device = cell[2]["device"] if far else str(device_of(model.model))
        alike.setdefault((movable, device, model.architecture), []).append(cell)
    for (movable, device, _), part in alike.items():
        yield part, movable, device


def _threads(models: Iterable[Classifier], movable: bool, device: str) -> int | None:
    """For models of one architecture; None on a GPU."""
    model = next(iter(models))
    if device != "cpu":
        return None
    if not movable:  # nothing runs beside it
        return cores()
    assert isinstance(model, TrainedModel)
    return threads_for(model.model, model.image_size)


def _jobs(
    cells: Sequence[Cell], streamed: bool
) -> Iterator[tuple[tuple[Perturbation, ...], tuple[int, ...], tuple[Keys, ...]]]:
    """The perturbations of each job, the positions of its models, and its keys."""
    by_perturbation: dict[Perturbation, list[tuple[int, dict[str, Any]]]] = {}
    for perturbation, index, key in cells:
        by_perturbation.setdefault(perturbation, []).append((index, key))
    alike: dict[tuple[tuple[int, ...], bool], list[tuple[Perturbation, Keys]]] = {}
    for perturbation, members in by_perturbation.items():
        attack = isinstance(perturbation, Attack)
        at_once = 1 if attack else _MODELS
        for start in range(0, len(members), at_once):
            indices, keys = zip(*members[start : start + at_once], strict=True)
            alike.setdefault((indices, attack), []).append((perturbation, keys))
    for (indices, attack), rows in alike.items():
        at_once = _PERTURBATIONS if streamed and not attack else 1
        for start in range(0, len(rows), at_once):
            perturbations, keys_of = zip(*rows[start : start + at_once], strict=True)
            yield perturbations, indices, keys_of


def _evaluate_one(job: _EvaluationJob, tell: Tell) -> None:
    store = Store(job.store)
    models = [m.open(job.device) if isinstance(m, StoredModel) else m for m in job.models]
    with ExitStack() as stack:
        for model in models:
            stack.enter_context(evaluating(model))
        results = _outcomes(
            models,
            opened(job.split),
            job.perturbations,
            job.seed,
            job.batch_size,
            torch.device(job.device),
            tell,
        )
    for keys, by_model in zip(job.keys, results, strict=True):
        for key, values in zip(keys, by_model, strict=True):
            store.put("evaluations", key, values, {})


def _outcomes(
    models: Sequence[nn.Module],
    split: Split | StreamedSplit,
    perturbations: Sequence[Perturbation],
    seed: int,
    batch_size: int,
    device: torch.device,
    tell: Tell,
) -> list[list[dict[str, Tensor]]]:
    """For each perturbation and model what the store keeps, (N,) on the CPU.

    "correct", bool, which images it gets right; for an attack also "clean_correct", "norm" and
    "steps", as in `robustlib.attacks.AttackResult`. device: where the models lie.
    """
    results: list[list[list[dict[str, Tensor]]]] = [[[] for _ in models] for _ in perturbations]
    held = resident(split, device) if isinstance(split, Split) else split
    at_once = batch_size
    if isinstance(perturbations[0], Attack):  # which has batches of its own, filled up from these
        at_once = max(batch_size, _VALUES // (3 * split.image_size**2))
    done = 0
    for start in range(0, len(split), at_once):
        part = slice(start, start + at_once)
        images = held.float_images(part).to(device)
        labels, ids = held.labels[part].to(device), held.ids[part].to(device)
        for perturbation, by_model in zip(perturbations, results, strict=True):
            seen: Tensor | None = None  # what all models are shown
            for model, result in zip(models, by_model, strict=True):
                if isinstance(perturbation, Attack):
                    found = attacked(model, perturbation, images, labels, ids, seed, batch_size)
                    result.append(found)
                else:
                    if seen is None or perturbation.needs_model:
                        asked = model if perturbation.needs_model else None
                        seen = perturbation.apply(images.clone(), labels, ids, asked, seed)
                    result.append(shown(model, seen, labels))
                done += len(labels)
                tell(done)
    return [
        [{name: torch.cat([b[name] for b in result]).cpu() for name in result[0]} for result in row]
        for row in results
    ]


def attacked(
    model: nn.Module,
    attack: Attack,
    images: Tensor,
    labels: Tensor,
    ids: Tensor,
    seed: int,
    batch_size: int,
) -> dict[str, Tensor]:
    """The results of an attack on images, each (N,)."""
    size = min(batch_size, BATCH_SIZE)
    result = attack.run(images, labels, ids, model, seed, batch_size=size)
    return {
        "correct": result.robust_correct,
        "clean_correct": result.clean_correct,
        "norm": result.norm,
        "steps": result.steps,
    }


def shown(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Which images of a batch the model gets right, (N,)."""
    return {"correct": right(logits(model, images), labels)}


def logits(model: nn.Module, images: Tensor) -> Tensor:
    """Those of `model` for float32 images (N, 3, H, W), in whatever mode it is."""
    # The clone is the model's to write to.
    with torch.no_grad():
        return model(images.clone(memory_format=torch.channels_last))
