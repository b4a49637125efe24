"""Attacks beside foolbox, on one thread: the last part of `make bench`.

A standard and an M-TLAT model are trained for a few epochs on shapes10. Each attack runs beside
foolbox's with the same radius and steps on the test images that the model gets right, in turns
after a warm-up; medians of processor time. foolbox's MI-FGSM signs the gradient before it is
accumulated, and its CW searches its constant in 3 runs of 100 steps, ours in one. The official
AutoAttack stands beside `strong` in `make fidelity AUTOATTACK=folder`. The table goes to
`reports/bench-attacks.csv`, what it was measured on to `reports/bench-attacks.json`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import foolbox
import pandas as pd
import torch
from torch import Tensor, nn

from robustlib import attacks, data
from robustlib.core import paths
from robustlib.core.inference import device_of, evaluating, right
from robustlib.core.jobs import threads
from robustlib.core.store import Store
from robustlib.models import Classifier
from robustlib.recipes import MTLAT, Standard
from robustlib.study.results import provenance
from robustlib.training import Budget, train

EPS, EPS_L2, STEPS = 0.008, 0.25, 20

OURS: Mapping[str, dict[str, Any]] = {
    "fgsm": {"eps": EPS},
    "pgd": {"eps": EPS, "steps": STEPS, "restarts": 1},
    "mi_fgsm": {"eps": EPS, "steps": STEPS},
    "cw": {"eps": EPS_L2, "steps": 100},
    "ddn": {"eps": EPS_L2, "steps": 100},
}


def theirs() -> dict[str, Any]:
    """foolbox's attacks with the steps of `OURS`."""
    given = foolbox.attacks
    return {
        "fgsm": given.LinfFastGradientAttack(),
        "pgd": given.LinfPGD(rel_stepsize=2.5 / STEPS, steps=STEPS),
        "mi_fgsm": given.LinfMomentumIterativeFastGradientMethod(
            rel_stepsize=1 / STEPS, steps=STEPS, random_start=False
        ),
        "cw": given.L2CarliniWagnerAttack(binary_search_steps=3, steps=100, initial_const=1.0),
        "ddn": given.DDNAttack(steps=100),
    }


def compare(
    classifiers: Sequence[Classifier], images: Tensor, labels: Tensor, *, repeats: int = 2
) -> pd.DataFrame:
    """A row for each model and attack.

    Columns: model; attack; eps; ours and foolbox, the accuracy under attack; seconds and
    foolbox_seconds; ratio, how many times faster ours is. images: float32 (N, 3, H, W) in [0, 1];
    labels: int64 (N,).
    """
    rows = []
    for classifier in classifiers:
        network, device = classifier.model, device_of(classifier.model)
        with evaluating(network), torch.no_grad():
            clean = right(network(images.to(device)), labels.to(device))
        shown, classes = images.to(device)[clean], labels.to(device)[clean]
        for name, method in theirs().items():
            given = OURS[name]
            task = (network, shown, classes, given["eps"])
            robust, seconds = in_turns(
                [partial(ours, *task, name), partial(by_foolbox, *task, method, name)], repeats
            )
            accuracy = [float(r.sum()) / len(images) for r in robust]
            rows.append(
                {
                    "model": classifier.name,
                    "attack": name,
                    "eps": given["eps"],
                    "ours": accuracy[0],
                    "foolbox": accuracy[1],
                    "seconds": seconds[0],
                    "foolbox_seconds": seconds[1],
                    "ratio": seconds[1] / seconds[0],
                }
            )
    return pd.DataFrame(rows)


def ours(network: nn.Module, images: Tensor, labels: Tensor, eps: float, name: str) -> Tensor:
    """bool (N,): right, clean and under our attack `name` with the options of `OURS`."""
    options = {**OURS[name], "eps": eps}
    return attacks.run(network, images, labels, name, **options).robust_correct


def by_foolbox(
    network: nn.Module, images: Tensor, labels: Tensor, eps: float, method: Any, name: str
) -> Tensor:
    """bool (N,): right, or beaten by a perturbation beyond `eps` only, in the norm of `name`."""
    wrapped = foolbox.PyTorchModel(network, bounds=(0, 1), device=images.device)
    radius = {} if attacks.info(name).minimal else {"epsilon": eps}
    size, found = attacks.BATCH_SIZE, []
    with evaluating(network):
        for x, y in zip(images.split(size), labels.split(size), strict=True):
            moved = method.run(wrapped, x, y, **radius)
            within = attacks.norms(moved - x, attacks.info(name).norm) <= eps + 1e-6
            with torch.no_grad():
                found.append(right(network(moved), y) | ~within)
    return torch.cat(found)


def in_turns(
    tasks: Sequence[Callable[[], Tensor]], repeats: int
) -> tuple[list[Tensor], list[float]]:
    """Results, and median seconds of the processor, of each task; after one turn to warm up."""
    seconds: list[list[float]] = [[] for _ in tasks]
    for turn in range(repeats + 1):
        results = []
        for task, spent in zip(tasks, seconds, strict=True):
            start = time.process_time()
            results.append(task())
            if turn:
                spent.append(time.process_time() - start)
    return results, [statistics.median(values) for values in seconds]


def models(images: int, epochs: int) -> tuple[list[Classifier], data.Dataset]:
    """A standard and an M-TLAT model, trained on `images` of shapes10, and the data set."""
    dataset = data.load("shapes10", n_train=images)
    with tempfile.TemporaryDirectory() as folder:
        trained = train(
            [Standard(), MTLAT()],
            dataset,
            architecture="small_resnet",
            budget=Budget(epochs=epochs),
            seeds=[0],
            store=Store(folder),
            device="cpu",
            progress=False,
        )
    return list(trained), dataset


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--images", type=int, default=100, help="test images that are attacked")
    parser.add_argument("--epochs", type=int, default=5, help="of training on 4,000 images")
    given = parser.parse_args()
    print("training two models to attack ...", flush=True)
    trained, dataset = models(4000, given.epochs)
    part = dataset.test.first(given.images)
    print("measuring attacks ...", flush=True)
    with threads(1):
        table = compare(trained, part.float_images(), part.labels)
    path = paths.reports_dir("bench-attacks").with_suffix(".csv")
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(path, index=False, float_format="%.4g")
    facts = {**provenance(), "threads": "1", "images": str(given.images)}
    path.with_suffix(".json").write_text(json.dumps(facts, indent=2) + "\n")
    print()
    print(table.to_string(index=False, float_format="{:.3g}".format))
    print()
    print("\n".join(f"{key}: {value}" for key, value in facts.items()))


if __name__ == "__main__":
    main()
