"""Training as jobs: every recipe with every seed, wherever `robustlib.core.jobs` has them run."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from robustlib import corruptions, models
from robustlib.core import tensorfile
from robustlib.core.checks import check_nonempty, check_number, check_seed, check_whole
from robustlib.core.devices import pick_device
from robustlib.core.identity import fingerprint
from robustlib.core.jobs import Tell, Workers, cores, threads_for
from robustlib.core.randomness import derive_seed
from robustlib.core.store import Store, digest_of
from robustlib.data import Dataset, StreamedSplit
from robustlib.data.shared import AnySplit, opened, share
from robustlib.recipes import Recipe
from robustlib.training.augmentation import AUGMENTATIONS
from robustlib.training.loading import Loader
from robustlib.training.loop import Budget, Run, TrainingDivergedError, fit, order
from robustlib.training.trained import TrainedModel, epochs_kept, rebuilt


def train(
    recipes: Sequence[Recipe],
    dataset: Dataset,
    *,
    architecture: str,
    budget: Budget,
    seeds: Sequence[int],
    store: Store,
    device: str = "auto",
    start: TrainedModel | Sequence[TrainedModel] = (),
    progress: bool = True,
    keep_epochs: bool = False,
    checkpoint_seconds: float = 30.0,
    workers: Workers | None = None,
    decoders: int | None = None,
) -> list[TrainedModel]:
    """Train every recipe with every seed, or fetch from the store what is there already.

    A model is a pure function of recipe, data, architecture, budget, seed, the model it starts
    from, and the code of the layers below; these make its key. So it is the same to the bit
    (on a CPU), however many workers there are and whichever of them dies. Training that was
    interrupted, by whatever, goes on from its last checkpoint in the store. Two processes with one
    store train no model twice.

    Args:
        recipes: with unique names.
        dataset: only its training split matters.
        architecture: one of `robustlib.models.ARCHITECTURES`.
        budget: length and optimiser settings.
        seeds: training seeds; they set initial weights, order and all draws.
        store: where models and checkpoints are kept.
        device: "auto", "cpu" or "cuda".
        start: a trained model whose weights to start from instead of random ones (a warm start),
            or one for each seed, told apart by their seeds.
        progress: show a progress bar on standard output.
        keep_epochs: keep the weights after each epoch in the store, too, for `epochs_of`.
        checkpoint_seconds: how often a checkpoint is written; it is deleted at the end.
        workers: where the models are trained, each on one thread unless its network is large (see
            `robustlib.core.jobs.threads_for`); default: here, one after the other.
        decoders: processes that decode the files of a `StreamedSplit` for each model in training
            (see `Loader`).

    Raises:
        ValueError: no recipes, repeated recipe names, fewer training images than a batch, or no
            fitting model to start from.
        TrainingDivergedError: a non-finite loss. The other models are trained first.
        StoreError: the store can't be written to, say on a full disk. What is stored is unharmed.
        WorkerError: see `robustlib.core.jobs.Workers`.
    """
    workers = workers or Workers(1)
    _check_recipes(recipes)
    checkpoint_seconds = check_number(checkpoint_seconds, "checkpoint_seconds", low=0)
    if decoders is not None:
        decoders = check_whole(decoders, "decoders", low=0)
    seeds = [check_seed(seed) for seed in seeds]
    check_nonempty(seeds, "seeds")
    per_epoch = len(dataset.train) // budget.batch_size
    if not per_epoch:
        raise ValueError(
            f"{len(dataset.train)} training images don't fill one batch of {budget.batch_size}; "
            "lower batch_size or raise n_train."
        )
    shape: dict[str, Any] = {
        "architecture": architecture,
        "classes": len(dataset.classes),
        "image_size": dataset.image_size,
    }
    network = models.build(**shape, seed=0)
    starts = _starts(start, seeds, shape)
    place, bfloat16 = workers.hardware(device)
    data = _data_key(dataset)
    plans = [
        _Plan(recipe, seed, _model_key(recipe, data, architecture, budget, seed, place, bfloat16))
        for recipe, seed in itertools.product(recipes, seeds)
    ]
    for plan in plans:
        if plan.seed in starts:
            plan.key["start"] = starts[plan.seed].identity()
    missing = {
        digest_of(plan.key): plan
        for plan in plans
        if not _is_there(store, plan.key, budget.epochs if keep_epochs else 0)
    }
    if missing:
        threads = threads_for(network, dataset.image_size) if place.type == "cpu" else None
        split: AnySplit = dataset.train
        if workers.elsewhere(len(missing), threads):
            split = share(dataset.train, store)
            decoders = max(1, cores() // len(missing)) if decoders is None else decoders
        jobs = [
            _TrainingJob(
                plan.recipe,
                split,
                shape,
                budget,
                plan.seed,
                starts[plan.seed].stored_in(store).path if plan.seed in starts else None,
                device,
                plan.key,
                store.root,
                keep_epochs,
                checkpoint_seconds,
                decoders,
            )
            for plan in missing.values()
        ]
        images = per_epoch * budget.batch_size * budget.epochs * len(jobs)
        with tqdm(
            total=images,
            unit="image",
            unit_scale=True,
            mininterval=1.0,
            file=sys.stdout,
            disable=not progress,
        ) as bar:

            def watch(done: int, finished: int) -> None:
                bar.set_description(f"trained {finished} of {len(jobs)} models", refresh=False)
                bar.update(done - bar.n)

            watch(0, 0)
            outcomes = workers.run(_train_one, jobs, store=store, threads=threads, watch=watch)
        for error in filter(None, outcomes):
            raise error
    home = pick_device("auto" if workers.scheduler else device)
    trained = []
    for plan in plans:
        artifact = store.find("models", plan.key)
        assert artifact is not None
        new = missing.pop(artifact.digest, None) is not None
        trained.append(rebuilt(artifact, plan.recipe.name, plan.seed, shape, home, new))
    return trained


@dataclass(frozen=True)
class _Plan:
    recipe: Recipe
    seed: int
    key: dict[str, Any]


@dataclass(frozen=True)
class _TrainingJob:
    """All that it takes to train one model somewhere else."""

    recipe: Recipe
    split: AnySplit
    shape: dict[str, Any]
    budget: Budget
    seed: int
    start: Path | None
    device: str
    key: dict[str, Any]
    store: Path
    keep_epochs: bool
    checkpoint_seconds: float
    decoders: int | None


def _train_one(job: _TrainingJob, tell: Tell) -> TrainingDivergedError | None:
    """Train a model into the store, unless another process does so meanwhile.

    An error of divergence is returned, not raised, so that other models are trained first.
    """
    store, budget = Store(job.store), job.budget
    place = pick_device(job.device)
    with (
        store.claimed("models", job.key),
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(place.type, enabled=False),  # each step turns it on where it pays
    ):
        if not _is_there(store, job.key, budget.epochs if job.keep_epochs else 0):
            loader = Loader(opened(job.split), place, job.decoders)
            model = models.build(**job.shape, seed=derive_seed("weights", job.seed))
            if job.start:
                model.load_state_dict(tensorfile.read(job.start)[0])
            run = Run(
                model,
                job.recipe,
                job.shape["classes"],
                len(loader) // budget.batch_size,
                budget,
                job.seed,
                place,
            )
            checkpoint = store.find("checkpoints", job.key)
            if checkpoint and not (
                job.keep_epochs and not epochs_kept(store, job.key, checkpoint.record["epoch"])
            ):
                run.resume(checkpoint)
            try:
                fit(run, loader, tell, store, job.key, job.keep_epochs, job.checkpoint_seconds)
            except TrainingDivergedError as error:
                return error
            record = {
                "history": run.history,
                "seconds": sum(row["seconds"] for row in run.history),
            }
            store.put("models", job.key, run.result(), record)
        store.remove("checkpoints", job.key)
    return None


def _is_there(store: Store, key: dict[str, Any], epochs: int) -> bool:
    """Whether the model is in the store, and its weights after each of `epochs` epochs."""
    return epochs_kept(store, key, epochs) and store.find("models", key) is not None


def _starts(
    start: TrainedModel | Sequence[TrainedModel], seeds: Sequence[int], shape: dict[str, Any]
) -> dict[int, TrainedModel]:
    """The model that each seed starts from; none if `start` is empty."""
    if isinstance(start, TrainedModel):
        found = dict.fromkeys(seeds, start)
    else:
        found = {model.seed: model for model in start}
    if not found:
        return {}
    for seed in seeds:
        if seed not in found:
            raise ValueError(
                f"start holds no model of seed {seed}, only of {', '.join(map(str, found))}: give "
                "one for each seed, or a single model for all."
            )
        for name, value in shape.items():
            if getattr(found[seed], name) != value:
                raise ValueError(
                    f"a model to start from has {name} {getattr(found[seed], name)}, where "
                    f"{value} is to be trained."
                )
    return found


def _check_recipes(recipes: Sequence[Recipe]) -> None:
    for recipe in recipes:
        if not callable(getattr(recipe, "loss", None)):
            raise ValueError(
                f"{recipe!r} is no recipe; make one with robustlib.recipes.build(name) or "
                "one of the classes in robustlib.recipes."
            )
    names = [recipe.name for recipe in recipes]
    if not names or len(set(names)) != len(names):
        raise ValueError(f"recipe names must be unique, and at least one, got {names}.")


def _data_key(dataset: Dataset) -> list[Any]:
    key: list[Any] = [list(dataset.classes), dataset.train.digest()]
    if isinstance(dataset.train, StreamedSplit):  # the digest is that of the files
        key.append(fingerprint(StreamedSplit.__getitem__))
    return key


def _model_key(
    recipe: Recipe,
    data: list[Any],
    architecture: str,
    budget: Budget,
    seed: int,
    device: torch.device,
    bfloat16: bool,
) -> dict[str, Any]:
    named = getattr(recipe, "corruptions", None)
    used = [corruptions.info(name) for name in named or ()]
    # A recipe that doesn't say which corruptions it draws from depends on all.
    settings: Any = recipe
    if hasattr(recipe, "__dict__"):
        settings = {
            key: value  # what starts with "_" is a recipe's note to itself
            for key, value in vars(recipe).items()
            if key != "name" and not key.startswith("_")
        }
    code = fingerprint(type(recipe), settings, *used, registries=named is None)
    return {
        "recipe": code,
        "data": data,
        "architecture": architecture,
        "budget": asdict(budget),
        "seed": seed,
        "device": device.type,
        "bfloat16": bfloat16,
        "code": fingerprint(
            *(Run, order, models.build, models.ARCHITECTURES[architecture]),
            AUGMENTATIONS[budget.augmentation],
        ),
    }
