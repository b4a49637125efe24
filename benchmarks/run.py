"""Speed, side by side with what you would use instead: the first half of `make bench`.

About two minutes; `benchmarks.corruptions` is the other half. What is compared runs in turns
(A B A B ...) after a warm-up; medians are shown. Close other programs first. The table goes to
`reports/bench.csv`, what it was measured on to `reports/bench.json`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import count, islice, product
from pathlib import Path

import pandas as pd
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from torchvision import transforms
from torchvision.datasets import ImageFolder
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from robustlib import corruptions, data, models
from robustlib.core import jobs, paths
from robustlib.core.devices import pick_device, training_autocast
from robustlib.core.randomness import derive_seed
from robustlib.core.store import Store
from robustlib.data import Dataset, Split
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
from robustlib.study.results import provenance
from robustlib.training import Budget, channels_last, train

ARCHITECTURE = "small_resnet"
SEVERITY = 3
FASTER, COST = "times faster", "times the cost"


def in_turns(tasks: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each task: all of them once to warm up, then in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for turn in range(repeats + 1):
        for name, task in tasks.items():
            start = time.perf_counter()
            task()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def row(
    measure: str, case: str, ours: float, instead: str, theirs: float, ratio: float, means: str
) -> dict[str, object]:
    return {
        "measure": measure,
        "case": case,
        "robustlib": ours,
        "compared with": instead,
        "other": theirs,
        "ratio": ratio,
        "ratio means": means,
    }


# Training


def usual_transform(side: int) -> transforms.Compose:
    return transforms.Compose(
        [
            transforms.RandomCrop(side, padding=side // 8),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
        ]
    )


class PicturesOfPapers(torch.utils.data.Dataset):
    """PIL images with a transform for each, as in torchvision's CIFAR10."""

    def __init__(self, split: Split) -> None:
        self.pixels = split.images.permute(0, 2, 3, 1).contiguous().numpy()
        self.labels = split.labels.tolist()
        self.transform = usual_transform(split.image_size)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.pixels[index])), self.labels[index]


def folder_of_papers(split: Split, root: Path) -> ImageFolder:
    """The same images as JPEG files, a folder a class, read by torchvision's ImageFolder."""
    for i, (image, label) in enumerate(zip(split.images, split.labels.tolist(), strict=True)):
        folder = root / str(label)
        folder.mkdir(exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{i}.jpg", quality=95)
    return ImageFolder(root, usual_transform(split.image_size))


@dataclass(frozen=True)
class UsualLoop:
    """The loop that paper repositories have: float32, contiguous, DataLoader, an epoch a call.

    Its loader processes stay from one epoch to the next.
    """

    pictures: torch.utils.data.Dataset
    dataset: Dataset
    budget: Budget
    processes: int
    threads: int

    @cached_property
    def loader(self) -> DataLoader:
        return DataLoader(
            self.pictures,
            batch_size=self.budget.batch_size,
            shuffle=True,
            num_workers=self.processes,
            drop_last=True,
            pin_memory=pick_device().type == "cuda",
            persistent_workers=self.processes > 0,
        )

    def __call__(self) -> None:
        device = pick_device()
        with jobs.threads(self.threads):
            model = new_model(self.dataset).to(device).train()
            optimiser = new_optimiser(model, self.budget)
            criterion = nn.CrossEntropyLoss()
            running = 0.0
            for images, labels in self.loader:
                images = images.to(device, non_blocking=True)
                labels = labels.to(device, non_blocking=True)
                loss = criterion(model(images), labels)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                running += loss.item()

    def __str__(self) -> str:
        return f"{self.processes} loader processes, {self.threads} threads"


def best_settings(
    pictures: torch.utils.data.Dataset, dataset: Dataset, budget: Budget, workers: int
) -> UsualLoop:
    """The fastest of several numbers of loader processes and threads, on part of an epoch."""
    part = Subset(pictures, range(max(budget.batch_size, len(dataset.train) // 3)))
    settings = list(product(sorted({0, min(1, workers), workers}), sorted({1, jobs.cores()})))
    tasks = {str(i): UsualLoop(part, dataset, budget, *pair) for i, pair in enumerate(settings)}
    seconds = in_turns(tasks, 1)
    fastest = min(seconds, key=lambda name: seconds[name])
    return UsualLoop(pictures, dataset, budget, *settings[int(fastest)])


def new_model(dataset: Dataset) -> nn.Module:
    return models.build(
        ARCHITECTURE, classes=len(dataset.classes), image_size=dataset.image_size, seed=0
    )


def new_optimiser(model: nn.Module, budget: Budget, fused: bool = False) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        model.parameters(),
        lr=budget.learning_rate,
        momentum=budget.momentum,
        weight_decay=budget.weight_decay,
        nesterov=True,
        fused=fused,
    )


def training_throughput(
    dataset: Dataset, *, batch_size: int = 128, workers: int = 2, repeats: int = 3
) -> pd.DataFrame:
    """Images a second over all cores, from new models to trained ones, storing them included.

    Ours trains as many models at once as there are cores, each on one thread (on a GPU: one), for
    one epoch. It has the images in memory, where `robustlib.data` decodes a folder once for all
    epochs. The usual loop takes the best of its settings, with up to `workers` loader processes.
    """
    budget = Budget(epochs=1, batch_size=batch_size)
    at_once = jobs.cores() if pick_device().type == "cpu" else 1
    seeds = count()  # a seed met before would come from the store
    with (
        tempfile.TemporaryDirectory() as store,
        tempfile.TemporaryDirectory() as folder,
        jobs.Workers() as pool,
    ):

        def epochs() -> None:
            train(
                [Standard()],
                dataset,
                architecture=ARCHITECTURE,
                budget=budget,
                seeds=list(islice(seeds, at_once)),
                store=Store(store),
                progress=False,
                workers=pool,
            )

        usual = {
            "CIFAR10": PicturesOfPapers(dataset.train),
            "ImageFolder": folder_of_papers(dataset.train, Path(folder)),
        }
        tasks = {
            name: best_settings(pictures, dataset, budget, workers)
            for name, pictures in usual.items()
        }
        seconds = in_turns({"ours": epochs, **tasks}, repeats)
    images = len(dataset.train) // batch_size * batch_size
    ours = at_once * images / seconds["ours"]
    speed = {name: images / seconds[name] for name in usual}
    case = f"{ARCHITECTURE}, {precision()}, {at_once} at once"
    return pd.DataFrame(
        [
            row(
                "training, images/s",
                case,
                ours,
                f"usual loop, {name}, float32, {tasks[name]}",
                speed[name],
                ours / speed[name],
                FASTER,
            )
            for name in usual
        ]
    )


def precision() -> str:
    device = pick_device()
    with training_autocast(device):
        return "bfloat16" if torch.is_autocast_enabled(device.type) else "float32"


# Recipes

RECIPES: tuple[Recipe, ...] = (
    Standard(),
    Augmented(corruptions.names("study")),
    Mixup(),
    LabelSmoothing(),
    FGSM(),
    PGD(),
    TLAT(),
    MTLAT(),
    AugMix(),
)


def recipe_costs(
    dataset: Dataset, *, batch_size: int = 128, steps: int = 5, repeats: int = 5
) -> pd.DataFrame:
    """Milliseconds of a training step of each recipe, beside a standard step; on one thread."""
    device = pick_device()
    split = dataset.train.to(device).first(batch_size)
    images = split.float_images().contiguous(memory_format=torch.channels_last)
    budget = Budget(epochs=1)

    def stepper(recipe: Recipe) -> Callable[[], None]:
        model = channels_last(new_model(dataset), device).train()
        parameters = list(model.parameters())
        optimiser = new_optimiser(model, budget, fused=True)
        taken = 0

        def take_steps() -> None:
            nonlocal taken
            for _ in range(steps):
                taken += 1
                seed = derive_seed("bench", taken)
                batch = Batch(images.clone(), split.labels, split.ids, len(dataset.classes), seed)
                with training_autocast(device):
                    loss, _ = recipe.loss(model, batch)
                optimiser.zero_grad(set_to_none=True)
                loss.backward(inputs=parameters)
                optimiser.step()

        return take_steps

    with jobs.threads(1):
        seconds = in_turns({recipe.name: stepper(recipe) for recipe in RECIPES}, repeats)
    cost = {name: 1000 * value / steps for name, value in seconds.items()}
    standard = cost["standard"]
    return pd.DataFrame(
        [
            row("step on one thread, ms", name, value, "standard", standard, value / standard, COST)
            for name, value in cost.items()
        ]
    )


# Corruptions: torchvision's nearest equivalent, for one image (3, H, W) and our parameters.
# Its JPEG takes bytes, the others float32.

ONE_IMAGE: dict[str, Callable[..., Tensor]] = {
    "gaussian_noise": lambda image, sigma: F.gaussian_noise(image, sigma=sigma),
    "gaussian_blur": lambda image, sigma_px: F.gaussian_blur(
        image, [2 * int(4 * sigma_px + 0.5) + 1] * 2, [sigma_px] * 2
    ),
    "jpeg_compression": lambda image, quality: F.jpeg(image, quality),
    "rotation": lambda image, degrees: F.rotate(image, degrees, InterpolationMode.BILINEAR),
    "brightness": lambda image, value_shift: F.adjust_brightness(image, 1 + 2 * value_shift),
    "contrast": lambda image, factor: F.adjust_contrast(image, factor),
    "hue": lambda image, turn: F.adjust_hue(image, turn),
}


def corruption_costs(dataset: Dataset, *, n: int = 256, repeats: int = 7) -> pd.DataFrame:
    """Milliseconds for `n` images on one CPU thread, beside torchvision in a Python loop."""
    split = dataset.train.first(n)
    images = split.float_images()
    rows = []
    with jobs.threads(1):
        for name, corrupt_one in ONE_IMAGE.items():
            parameters = corruptions.info(name).parameters(dataset.image_size)[SEVERITY - 1]
            singles = list(split.images if name == "jpeg_compression" else images)
            batch = partial(corruptions.corrupt, images, name, SEVERITY)
            loop = partial(one_by_one, partial(corrupt_one, **parameters), singles)
            seconds = in_turns({"ours": batch, "theirs": loop}, repeats)
            ours, theirs = 1000 * seconds["ours"], 1000 * seconds["theirs"]
            measure = f"{len(split)} images of {dataset.image_size} px, ms"
            rows.append(
                row(measure, name, ours, "torchvision, in a loop", theirs, theirs / ours, FASTER)
            )
    return pd.DataFrame(rows)


def one_by_one(function: Callable[[Tensor], Tensor], images: Sequence[Tensor]) -> list[Tensor]:
    return [function(image) for image in images]


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--images", type=int, default=5000, help="training images of an epoch")
    images = parser.parse_args().images
    dataset = data.load("shapes10", n_train=images)
    parts = []
    for part in (training_throughput, recipe_costs, corruption_costs):
        print(f"measuring {part.__name__.replace('_', ' ')} ...", flush=True)
        parts.append(part(dataset))
    table = pd.concat(parts, ignore_index=True)
    facts = {**provenance(), "threads": str(torch.get_num_threads())}
    path = paths.reports_dir("bench").with_suffix(".csv")
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(path, index=False, float_format="%.4g")
    path.with_suffix(".json").write_text(json.dumps(facts, indent=2) + "\n")
    print()
    print(table.to_string(index=False, float_format="{:.3g}".format))
    print()
    print("\n".join(f"{key}: {value}" for key, value in facts.items()))


if __name__ == "__main__":
    main()
