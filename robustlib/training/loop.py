"""The training loop, one for all recipes, and trained models that are found again in the store."""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from robustlib.core.checks import (
    check_name,
    check_number,
    check_whole,
    settle,
)
from robustlib.core.devices import training_autocast
from robustlib.core.jobs import Tell
from robustlib.core.randomness import derive_seed
from robustlib.core.store import Artifact, Store, digest_of
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

    def finetuning(self, epochs: int) -> Budget:
        """The same for going on from a trained model: `epochs` epochs at half the rate.

        This project's choice.
        """
        return replace(self, epochs=epochs, learning_rate=self.learning_rate / 2)

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of step 0 .. steps - 1."""
        rise = max(1, int(steps * self.warmup)) if self.warmup else 0
        if step < rise:
            return self.learning_rate * (step + 1) / rise
        if self.schedule == "step":
            return self.learning_rate * 0.1 ** ((2 * step >= steps) + (4 * step >= 3 * steps))
        progress = (step - rise) / max(1, steps - rise)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


class Run:
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
        self.trainable = [p for p in self.model.parameters() if p.requires_grad]
        self.weights = self.model.state_dict()
        self.average = copy.deepcopy(self.weights) if budget.averaging else None
        self.epoch = self.step = 0
        self.seconds = 0.0  # of this epoch
        self.losses = torch.zeros(per_epoch, device=device)  # of this epoch
        self.right = torch.zeros(per_epoch, device=device)
        self.history: list[dict[str, float]] = []

    @property
    def steps_taken(self) -> int:
        """Since the beginning of training."""
        return self.epoch * self.per_epoch + self.step

    def take_step(self, images: Tensor, labels: Tensor, ids: Tensor) -> None:
        """images: uint8 (N, 3, H, W)."""
        seed = derive_seed("batch", self.seed, self.epoch, self.step)
        views = AUGMENTATIONS[self.budget.augmentation](images, seed=seed)
        pixels = views.to(torch.float32, copy=True).div_(255.0)
        batch = Batch(pixels, labels, ids, self.classes, seed)
        for group in self.optimiser.param_groups:
            group["lr"] = self.budget.rate(self.steps_taken, self.steps)
        with training_autocast(self.device):
            loss, logits = self.recipe.loss(self.network, batch)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward(inputs=self.trainable)  # not for the images, which TLAT has a gradient of
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
        """Enter the epoch into the history, and begin the next."""
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
        """What `resume` takes: tensors, and a JSON-compatible record."""
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


def fit(
    run: Run,
    loader: Loader,
    tell: Tell,
    store: Store,
    key: dict[str, Any],
    keep_epochs: bool,
    checkpoint_seconds: float,
) -> None:
    """Take the steps that are left, telling of the images done.

    key: that of the model in the store, under which checkpoints lie, too.
    """
    batch = run.budget.batch_size
    looked = saved = time.perf_counter()
    while run.epoch < run.budget.epochs:
        indices = order(len(loader), run.seed, run.epoch)
        batches = indices.split(batch)[run.step : run.per_epoch]
        started = time.perf_counter() - run.seconds
        for images, labels, ids in loader.batches(batches):
            run.take_step(images, labels, ids)
            now = time.perf_counter()
            run.seconds = now - started
            tell(run.steps_taken * batch)
            if now - looked >= _PULSE:
                run.check_finite()
                looked = now
            if now - saved >= checkpoint_seconds:
                run.check_finite()
                store.put("checkpoints", key, *run.checkpoint())
                saved = time.perf_counter()
        run.check_finite()
        run.seconds = time.perf_counter() - started
        run.end_epoch()
        if keep_epochs:
            at_epoch = epoch_key(digest_of(key), run.epoch)
            store.put("epochs", at_epoch, run.result(), {"history": run.history})


def epoch_key(model: str, epoch: int) -> dict[str, Any]:
    """The key of a model's weights after an epoch; model: the digest of its own key."""
    return {"model": model, "epoch": epoch}


def order(images: int, seed: int, epoch: int) -> Tensor:
    """The order of an epoch: int64 (images,), a permutation."""
    generator = torch.Generator().manual_seed(derive_seed("order", seed, epoch))
    return torch.randperm(images, generator=generator)


def channels_last(model: nn.Module, device: torch.device) -> nn.Module:
    """`model` on `device`, its weights laid out channels last, which convolutions prefer."""
    return model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def compiled(model: nn.Module) -> nn.Module:
    """`model` through torch.compile, in a form whose graph several backward passes can use."""
    import torch._functorch.config as functorch  # its attributes are made at import

    functorch.donated_buffer = False  # else the attack of TLAT, which keeps the graph, raises
    return torch.compile(model)  # type: ignore[return-value]
