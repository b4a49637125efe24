"""The training loop, one for all recipes, and trained models that are found again in the store."""

from __future__ import annotations

import copy
import itertools
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from robustlib import corruptions, models
from robustlib.core import tensorfile
from robustlib.core.checks import (
    check_name,
    check_nonempty,
    check_number,
    check_seed,
    check_whole,
    settle,
)
from robustlib.core.devices import pick_device, training_autocast, trains_in_bfloat16
from robustlib.core.identity import fingerprint
from robustlib.core.randomness import derive_seed
from robustlib.core.store import Artifact, Store, digest_of
from robustlib.data import Dataset, StreamedSplit
from robustlib.models import Classifier
from robustlib.recipes import Batch, Recipe
from robustlib.training.augmentation import AUGMENTATIONS
from robustlib.training.loading import Loader

SCHEDULES = ("cosine", "step")
_PULSE = 1.0  # seconds between looks at the loss, each of which waits for a GPU


class TrainingDivergedError(RuntimeError):
    """The loss became infinite or NaN."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How long and how a model is trained; the same for every recipe of a study.

    SGD with Nesterov momentum and a cosine schedule after a short linear warm-up (this project's
    choice). Laugros et al. 2021 take epochs=40, batch_size=256, learning_rate=0.1,
    weight_decay=1e-4, schedule="step" and, as far as known, warmup=0.

    Attributes:
        epochs: passes over the training set, 1 or more.
        batch_size: images a step, 2 or more; the rest of an epoch that doesn't fill a batch is
            left out.
        learning_rate: its peak.
        momentum: of SGD, 0 to 1.
        weight_decay: L2 penalty.
        warmup: share of the steps over which the rate rises, 0 to 1.
        schedule: "cosine", down to zero; or "step", divided by ten after half and after three
            quarters of the steps, as in Laugros et al. 2021.
        averaging: decay of an exponential moving average of the weights and batch-norm statistics,
            which replaces them at the end; 0 for none, below 1. It is at most (1 + k) / (10 + k)
            after k steps, so that the initial weights are forgotten.
        compile: pass the network through torch.compile, which needs a C++ compiler on a CPU and
            changes results by rounding.
        augmentation: random views of the images, before all that a recipe does: one of
            `robustlib.training.AUGMENTATIONS`, "none", "shift", "flip_and_shift" or
            "resized_crop".
    """

    epochs: int
    batch_size: int = 128
    learning_rate: float = 0.2
    momentum: float = 0.9
    weight_decay: float = 2e-3
    warmup: float = 0.2
    schedule: str = "cosine"
    averaging: float = 0.0
    compile: bool = False
    augmentation: str = "flip_and_shift"

    def __post_init__(self) -> None:
        check_name(self.schedule, SCHEDULES, "schedule")
        check_name(self.augmentation, AUGMENTATIONS, "augmentation")
        settle(
            self,
            epochs=check_whole(self.epochs, "epochs", low=1),
            batch_size=check_whole(self.batch_size, "batch_size", low=2),
            learning_rate=check_number(self.learning_rate, "learning_rate", low=0, above=True),
            momentum=check_number(self.momentum, "momentum", low=0, high=1),
            weight_decay=check_number(self.weight_decay, "weight_decay", low=0),
            warmup=check_number(self.warmup, "warmup", low=0, high=1),
            averaging=check_number(self.averaging, "averaging", low=0, high=1),
        )
        if self.averaging == 1:
            raise ValueError("averaging must be below 1: at 1 the weights never change.")

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of step 0 .. steps - 1."""
        rise = max(1, int(steps * self.warmup)) if self.warmup else 0
        if step < rise:
            return self.learning_rate * (step + 1) / rise
        if self.schedule == "step":
            return self.learning_rate * 0.1 ** ((2 * step >= steps) + (4 * step >= 3 * steps))
        progress = (step - rise) / max(1, steps - rise)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class TrainedModel(Classifier):
    """A trained classifier and where it came from.

    Attributes:
        recipe: name of its recipe.
        seed: training seed.
        architecture: name of its architecture.
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


def train(
    recipes: Sequence[Recipe],
    dataset: Dataset,
    *,
    architecture: str,
    budget: Budget,
    seeds: Sequence[int],
    store: Store,
    device: str = "auto",
    progress: bool = True,
    keep_epochs: bool = False,
    checkpoint_seconds: float = 60.0,
    workers: int | None = None,
) -> list[TrainedModel]:
    """Train every recipe with every seed, or fetch from the store what is there already.

    A model is a pure function of recipe, data, architecture, budget, seed and the code of the
    layers below; these make its key. Training that was interrupted, by whatever, goes on from its
    last checkpoint in the store, and ends with the same weights (to the bit on a CPU).

    Args:
        recipes: with unique names.
        dataset: only its training split matters.
        architecture: one of `robustlib.models.ARCHITECTURES`.
        budget: length and optimiser settings.
        seeds: training seeds; they set initial weights, order and all draws.
        store: where models and checkpoints are kept.
        device: "auto", "cpu" or "cuda".
        progress: show a progress bar on standard output.
        keep_epochs: keep the weights after each epoch in the store, too, for `epochs_of`.
        checkpoint_seconds: how often a checkpoint is written; it is deleted at the end.
        workers: processes that decode the files of a `StreamedSplit` (see `Loader`).

    Raises:
        ValueError: no recipes, repeated recipe names, or fewer training images than a batch.
        TrainingDivergedError: a non-finite loss. Models trained before it are in the store.
        StoreError: the store can't be written to, say on a full disk. What is stored is unharmed.
    """
    _check_recipes(recipes)
    checkpoint_seconds = check_number(checkpoint_seconds, "checkpoint_seconds", low=0)
    if workers is not None:
        workers = check_whole(workers, "workers", low=0)
    seeds = [check_seed(seed) for seed in seeds]
    check_nonempty(seeds, "seeds")
    per_epoch = len(dataset.train) // budget.batch_size
    if not per_epoch:
        raise ValueError(
            f"{len(dataset.train)} training images don't fill one batch of {budget.batch_size}; "
            "lower batch_size or raise n_train."
        )
    place = pick_device(device)
    data = _data_key(dataset)
    steps = per_epoch * budget.epochs
    left = steps * len(recipes) * len(seeds)
    loader: Loader | None = None
    trained = []
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(place.type, enabled=False),  # each step turns it on where it pays
        tqdm(
            total=left,
            unit="step",
            mininterval=1.0,
            file=sys.stdout,
            disable=not progress,
        ) as bar,
    ):
        for recipe, seed in itertools.product(recipes, seeds):
            bar.set_description(f"{recipe.name}, seed {seed}", refresh=False)
            model = models.build(
                architecture,
                classes=len(dataset.classes),
                image_size=dataset.image_size,
                seed=derive_seed("weights", seed),
            )
            key = _model_key(recipe, data, architecture, budget, seed, place)
            artifact = store.find("models", key)
            if keep_epochs and not _epochs_kept(store, key, budget.epochs):
                artifact = None
            if artifact is None:
                loader = loader or Loader(dataset.train, place, workers)
                run = _Run(model, recipe, len(dataset.classes), per_epoch, budget, seed, place)
                checkpoint = store.find("checkpoints", key)
                if checkpoint and keep_epochs:
                    kept = _epochs_kept(store, key, checkpoint.record["epoch"])
                    checkpoint = checkpoint if kept else None
                if checkpoint:
                    run.resume(checkpoint)
                    left -= run.steps_taken
                    bar.total = left
                _fit(run, loader, bar, store, key, keep_epochs, checkpoint_seconds)
                seconds = sum(row["seconds"] for row in run.history)
                record = {"history": run.history, "seconds": seconds}
                artifact = store.put("models", key, run.result(), record)
            else:
                left -= steps
                bar.total = left
            store.remove("checkpoints", key)
            model.load_state_dict(artifact.tensors)
            trained.append(
                TrainedModel(
                    recipe=recipe.name,
                    seed=seed,
                    architecture=architecture,
                    digest=artifact.digest,
                    weights=tensorfile.digest(artifact.tensors),
                    model=channels_last(model, place).eval(),
                    history=artifact.record["history"],
                    from_store=artifact.from_store,
                    seconds=artifact.record["seconds"],
                )
            )
    return trained


def epochs_of(trained: TrainedModel, store: Store) -> list[TrainedModel]:
    """The model as it was after each epoch, trained with `keep_epochs=True`.

    Each has its own digest, and the recipe's name with the epoch, such as "fgsm, epoch 3", so
    that all can be evaluated together.

    Raises:
        ValueError: the epochs were not kept.
    """
    result = []
    for epoch in range(1, len(trained.history) + 1):
        artifact = store.find("epochs", _epoch_key(trained.digest, epoch))
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
        "bfloat16": trains_in_bfloat16(device),
        "code": fingerprint(
            *(_Run, _order, models.build, models.ARCHITECTURES[architecture]),
            AUGMENTATIONS[budget.augmentation],
        ),
    }


def _epoch_key(model: str, epoch: int) -> dict[str, Any]:
    return {"model": model, "epoch": epoch}


def _epochs_kept(store: Store, key: dict[str, Any], epochs: int) -> bool:
    model = digest_of(key)
    digests = [digest_of(_epoch_key(model, epoch)) for epoch in range(1, epochs + 1)]
    return all(store.path("epochs", digest).is_file() for digest in digests)


class _Run:
    """One model in training: everything that a checkpoint keeps, and the step.

    What happens at a step depends on this state and on (seed, epoch, step) only.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        classes: int,
        per_epoch: int,
        budget: Budget,
        seed: int,
        device: torch.device,
    ) -> None:
        self.recipe, self.budget, self.seed = recipe, budget, seed
        self.classes, self.device = classes, device
        self.per_epoch, self.steps = per_epoch, per_epoch * budget.epochs
        self.model = channels_last(model, device).train()
        self.network = compiled(self.model) if budget.compile else self.model
        self.optimiser = torch.optim.SGD(
            self.model.parameters(),
            lr=budget.learning_rate,
            momentum=budget.momentum,
            weight_decay=budget.weight_decay,
            nesterov=budget.momentum > 0,
            fused=True,
        )
        self.weights = self.model.state_dict()
        self.average = copy.deepcopy(self.weights) if budget.averaging else None
        self.epoch = self.step = 0
        self.seconds = 0.0  # of this epoch
        self.losses = torch.zeros(per_epoch, device=device)  # of this epoch
        self.right = torch.zeros(per_epoch, device=device)
        self.history: list[dict[str, float]] = []

    @property
    def steps_taken(self) -> int:
        return self.epoch * self.per_epoch + self.step

    def take_step(self, images: Tensor, labels: Tensor, ids: Tensor) -> None:
        """images: uint8 (N, 3, H, W)."""
        seed = derive_seed("batch", self.seed, self.epoch, self.step)
        views = AUGMENTATIONS[self.budget.augmentation](images, seed=seed)
        pixels = views.to(torch.float32) / 255.0
        batch = Batch(pixels, labels, ids, self.classes, seed)
        for group in self.optimiser.param_groups:
            group["lr"] = self.budget.rate(self.steps_taken, self.steps)
        with training_autocast(self.device):
            loss, logits = self.recipe.loss(self.network, batch)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        self.losses[self.step] = loss.detach()
        self.right[self.step] = logits.detach().argmax(1).eq(labels).sum()
        self.step += 1
        if self.average is not None:
            self._update_average(self.average)

    def _update_average(self, average: dict[str, Tensor]) -> None:
        taken = self.steps_taken
        decay = min(self.budget.averaging, (1 + taken) / (10 + taken))
        for name, value in self.weights.items():
            if value.is_floating_point():
                average[name].lerp_(value, 1 - decay)
            else:
                average[name].copy_(value)

    def check_finite(self) -> None:
        """Raise for the first loss of this epoch that isn't finite. Waits for the device."""
        bad = (~self.losses[: self.step].isfinite()).nonzero()
        if len(bad):
            step = int(bad[0])
            raise TrainingDivergedError(
                f"recipe {self.recipe.name!r}, seed {self.seed}: the loss is "
                f"{self.losses[step].item()} at epoch {self.epoch}, step {step}; "
                "lower the learning rate."
            )

    def so_far(self) -> dict[str, float]:
        """Loss, accuracy and speed over this epoch so far."""
        images = max(1, self.step * self.budget.batch_size)
        return {
            "loss": self.losses[: self.step].mean().item(),
            "accuracy": self.right[: self.step].sum().item() / images,
            "images_per_second": images / max(self.seconds, 1e-9),
        }

    def end_epoch(self) -> None:
        self.history.append(
            {
                "epoch": float(self.epoch + 1),
                "steps": float(self.per_epoch),
                **self.so_far(),
                "learning_rate": self.budget.rate(self.steps_taken - 1, self.steps),
                "seconds": self.seconds,
            }
        )
        self.epoch, self.step, self.seconds = self.epoch + 1, 0, 0.0

    def result(self) -> dict[str, Tensor]:
        """The weights that training gives at this point."""
        return self.weights if self.average is None else self.average

    def checkpoint(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors = {"losses": self.losses, "right": self.right}
        tensors |= {f"weights/{name}": value for name, value in self.weights.items()}
        tensors |= {f"average/{name}": value for name, value in (self.average or {}).items()}
        for name, parameter in self.model.named_parameters():
            momentum = self.optimiser.state[parameter].get("momentum_buffer")
            if momentum is not None:
                tensors[f"momentum/{name}"] = momentum
        record = {name: getattr(self, name) for name in ("epoch", "step", "seconds", "history")}
        return tensors, record

    def resume(self, artifact: Artifact) -> None:
        """Go on from what `checkpoint` returned."""
        stored = artifact.tensors
        self.losses.copy_(stored["losses"])
        self.right.copy_(stored["right"])
        for name, value in self.weights.items():
            value.copy_(stored[f"weights/{name}"])
        for name, value in (self.average or {}).items():
            value.copy_(stored[f"average/{name}"])
        for name, parameter in self.model.named_parameters():
            if f"momentum/{name}" in stored:
                momentum = torch.empty_like(parameter).copy_(stored[f"momentum/{name}"])
                self.optimiser.state[parameter]["momentum_buffer"] = momentum
        for name, value in artifact.record.items():
            setattr(self, name, value)


def _fit(
    run: _Run,
    loader: Loader,
    bar: tqdm,
    store: Store,
    key: dict[str, Any],
    keep_epochs: bool,
    checkpoint_seconds: float,
) -> None:
    """Take the steps that are left."""
    shown = saved = time.perf_counter()
    while run.epoch < run.budget.epochs:
        order = _order(len(loader), run.seed, run.epoch)
        batches = order.split(run.budget.batch_size)[run.step : run.per_epoch]
        started = time.perf_counter() - run.seconds
        for images, labels, ids in loader.batches(batches):
            run.take_step(images, labels, ids)
            now = time.perf_counter()
            run.seconds = now - started
            bar.update()
            if now - shown >= _PULSE:
                run.check_finite()
                bar.set_postfix(_postfix(run.so_far()), refresh=False)
                shown = now
            if now - saved >= checkpoint_seconds:
                run.check_finite()
                store.put("checkpoints", key, *run.checkpoint())
                saved = time.perf_counter()
        run.check_finite()
        run.seconds = time.perf_counter() - started
        run.end_epoch()
        bar.set_postfix(_postfix(run.history[-1]), refresh=False)
        if keep_epochs:
            epoch_key = _epoch_key(digest_of(key), run.epoch)
            store.put("epochs", epoch_key, run.result(), {"history": run.history})


def _order(images: int, seed: int, epoch: int) -> Tensor:
    generator = torch.Generator().manual_seed(derive_seed("order", seed, epoch))
    return torch.randperm(images, generator=generator)


def _postfix(row: dict[str, float]) -> dict[str, str]:
    return {
        "loss": f"{row['loss']:.3f}",
        "accuracy": f"{row['accuracy']:.3f}",
        "images/s": f"{row['images_per_second']:.0f}",
    }


def channels_last(model: nn.Module, device: torch.device) -> nn.Module:
    """`model` on `device`, its weights laid out channels last, which convolutions prefer."""
    return model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def compiled(model: nn.Module) -> nn.Module:
    """`model` through torch.compile, in a form whose graph several backward passes can use."""
    import torch._functorch.config as functorch  # its attributes are made at import

    functorch.donated_buffer = False  # else the attack of TLAT, which keeps the graph, raises
    return torch.compile(model)  # type: ignore[return-value]
