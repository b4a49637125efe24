"""The training loop, one for all recipes, and trained models that are found again in the store."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from robustlib import models
from robustlib.data import Dataset, Split
from robustlib.devices import pick_device, training_autocast
from robustlib.randomness import derive_seed
from robustlib.recipes import Augmented, Batch, Recipe
from robustlib.store import Store, code_digest


class TrainingDivergedError(RuntimeError):
    """The loss became infinite or NaN."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How long and how a model is trained; the same for every recipe of a study.

    SGD with Nesterov momentum and a cosine schedule after a short linear warm-up (this project's
    choice; the overlap paper divides the rate by ten twice).

    Attributes:
        epochs: passes over the training set, 1 or more.
        batch_size: images a step, 2 or more; the rest of an epoch that doesn't fill a batch is
            left out.
        learning_rate: its peak.
        momentum: of SGD.
        weight_decay: L2 penalty.
        warmup: share of the steps over which the rate rises.
    """

    epochs: int
    batch_size: int = 128
    learning_rate: float = 0.2
    momentum: float = 0.9
    weight_decay: float = 2e-3
    warmup: float = 0.2

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 2:
            raise ValueError(
                "epochs must be at least 1 and batch_size at least 2, "
                f"got {self.epochs} and {self.batch_size}."
            )


@dataclass(frozen=True)
class TrainedModel:
    """A trained classifier and where it came from.

    Attributes:
        recipe: name of its recipe.
        seed: training seed.
        architecture: name of its architecture.
        digest: its identity in the store; evaluations are stored under it.
        model: in eval mode, on the device asked for.
        history: one row an epoch: epoch, loss (mean over its batches), seconds.
        from_store: whether it was trained earlier.
        seconds: what training took when it was trained.
    """

    recipe: str
    seed: int
    architecture: str
    digest: str
    model: nn.Module = field(repr=False)
    history: list[dict[str, float]] = field(repr=False)
    from_store: bool
    seconds: float


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
) -> list[TrainedModel]:
    """Train every recipe with every seed, or fetch from the store what is there already.

    A model is a pure function of recipe, data, architecture, budget, seed and the code of the
    layers below; these make its key.

    Args:
        recipes: with unique names.
        dataset: only its training split matters.
        architecture: one of `robustlib.models.ARCHITECTURES`.
        budget: length and optimiser settings.
        seeds: training seeds; they set initial weights, order and all draws.
        store: where models are kept.
        device: "auto", "cpu" or "cuda".
        progress: show a progress bar on standard output.

    Raises:
        ValueError: repeated recipe names, or fewer training images than a batch.
        TrainingDivergedError: a non-finite loss. Models trained before it are in the store.
    """
    names = [recipe.name for recipe in recipes]
    if len(set(names)) != len(names):
        raise ValueError(f"recipe names must be unique, got {names}.")
    if len(dataset.train) < budget.batch_size:
        raise ValueError(
            f"{len(dataset.train)} training images don't fill one batch of {budget.batch_size}; "
            "lower batch_size or raise n_train."
        )
    place = pick_device(device)
    steps = (len(dataset.train) // budget.batch_size) * budget.epochs
    trained = []
    resident: Split | None = None
    with tqdm(
        total=steps * len(recipes) * len(seeds),
        unit="step",
        mininterval=1.0,
        file=sys.stdout,
        disable=not progress,
    ) as bar:
        for recipe in recipes:
            for seed in seeds:
                bar.set_description(f"{recipe.name}, seed {seed}", refresh=False)
                model = models.build(
                    architecture,
                    classes=len(dataset.classes),
                    image_size=dataset.image_size,
                    seed=derive_seed("weights", seed),
                )
                key = _model_key(recipe, dataset, architecture, budget, seed, place)

                def make(
                    model: nn.Module = model, recipe: Recipe = recipe, seed: int = seed
                ) -> tuple[dict[str, Tensor], dict[str, Any]]:
                    nonlocal resident
                    resident = resident or dataset.train.to(place)
                    start = time.perf_counter()
                    history = _fit(model, recipe, resident, len(dataset.classes), budget, seed, bar)
                    seconds = time.perf_counter() - start
                    return model.state_dict(), {"history": history, "seconds": seconds}

                artifact = store.get_or_make("models", key, make)
                if artifact.from_store:
                    bar.update(steps)
                model.load_state_dict(artifact.tensors)
                trained.append(
                    TrainedModel(
                        recipe=recipe.name,
                        seed=seed,
                        architecture=architecture,
                        digest=artifact.digest,
                        model=channels_last(model, place).eval(),
                        history=artifact.record["history"],
                        from_store=artifact.from_store,
                        seconds=artifact.record["seconds"],
                    )
                )
    return trained


def overview(trained: Sequence[TrainedModel]) -> pd.DataFrame:
    """One row a model: recipe, seed, architecture, parameters, epochs, training seconds, source.

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
                "final loss": item.history[-1]["loss"],
                "training seconds": item.seconds,
                "source": "store" if item.from_store else "trained",
            }
            for item in trained
        ]
    )


def _model_key(
    recipe: Recipe,
    dataset: Dataset,
    architecture: str,
    budget: Budget,
    seed: int,
    device: torch.device,
) -> dict[str, Any]:
    modules = ["models", "recipes", "training", "randomness", "devices"]
    if isinstance(recipe, Augmented):
        modules.append("corruptions")
    return {
        "recipe": type(recipe).__name__,
        "hyperparameters": asdict(recipe),  # type: ignore[call-overload]
        "data": [list(dataset.classes), dataset.train.digest()],
        "architecture": architecture,
        "budget": asdict(budget),
        "seed": seed,
        "device": device.type,
        "code": code_digest(*modules),
        "torch": torch.__version__.split("+")[0],
    }


def _fit(
    model: nn.Module,
    recipe: Recipe,
    split: Split,
    classes: int,
    budget: Budget,
    seed: int,
    bar: tqdm,
) -> list[dict[str, float]]:
    device = split.images.device
    channels_last(model, device).train()
    optimiser = torch.optim.SGD(
        model.parameters(),
        lr=budget.learning_rate,
        momentum=budget.momentum,
        weight_decay=budget.weight_decay,
        nesterov=True,
    )
    per_epoch = len(split) // budget.batch_size
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: _rate(step, per_epoch * budget.epochs, budget.warmup)
    )
    history = []
    for epoch in range(budget.epochs):
        start = time.perf_counter()
        order_seed = derive_seed("order", seed, epoch)
        order = torch.randperm(len(split), generator=torch.Generator().manual_seed(order_seed))
        losses = torch.zeros(per_epoch, device=device)
        for step, index in enumerate(order.split(budget.batch_size)[:per_epoch]):
            batch_seed = derive_seed("batch", seed, epoch, step)
            index = index.to(device)
            batch = Batch(
                images=flip_and_shift(split.float_images(index), seed=batch_seed),
                labels=split.labels[index],
                ids=split.ids[index],
                classes=classes,
                seed=batch_seed,
            )
            with training_autocast(device):
                loss = recipe.loss(model, batch)
            if not math.isfinite(loss.item()):
                raise TrainingDivergedError(
                    f"recipe {recipe.name!r}, seed {seed}: the loss is {loss.item()} at epoch "
                    f"{epoch}, step {step}; lower the learning rate."
                )
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
            losses[step] = loss.detach()
            bar.update()
        history.append(
            {
                "epoch": float(epoch + 1),
                "loss": losses.mean().item(),
                "seconds": time.perf_counter() - start,
            }
        )
        bar.set_postfix(loss=f"{history[-1]['loss']:.3f}", refresh=False)
    return history


def channels_last(model: nn.Module, device: torch.device) -> nn.Module:
    """`model` on `device`, its weights laid out channels last, which convolutions prefer."""
    return model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _rate(step: int, steps: int, warmup: float) -> float:
    rise = max(1, int(steps * warmup))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def flip_and_shift(images: Tensor, *, seed: int) -> Tensor:
    """The base augmentation of every recipe: random horizontal flips and shifts.

    Each image is mirrored with probability 1/2 and moved by up to an eighth of its side on both
    axes, edges reflected (He et al. 2016 pad with zeros; reflection is this project's choice).

    Args:
        images: float32 (N, 3, H, W).
        seed: source of the draws.

    Returns float32 (N, 3, H, W), channels last.
    """
    count, _, height, width = images.shape
    generator = torch.Generator().manual_seed(derive_seed("flip_and_shift", seed))
    rows = _source_index(count, height, False, generator).to(images.device)
    columns = _source_index(count, width, True, generator).to(images.device)
    picture = torch.arange(count, device=images.device)[:, None, None]
    moved = images.permute(0, 2, 3, 1)[picture, rows[:, :, None], columns[:, None, :]]
    return moved.permute(0, 3, 1, 2)


def _source_index(count: int, side: int, flip: bool, generator: torch.Generator) -> Tensor:
    reach = side // 8
    shift = torch.randint(-reach, reach + 1, (count, 1), generator=generator)
    index = torch.arange(side) + shift
    index = side - 1 - (side - 1 - index.abs()).abs()  # reflected at both edges
    if flip:
        flipped = torch.randint(2, (count, 1), generator=generator).bool()
        index = torch.where(flipped, side - 1 - index, index)
    return index
