"""Our strong attacks beside the official AutoAttack: `make fidelity AUTOATTACK=folder`.

The folder is a checkout of https://github.com/fra31/auto-attack, of which nothing is copied or
installed. A standard and an M-TLAT model, those of notebook 03 at its default size, are taken from
the store or trained. On the first test images `strong` and each of its members run beside their
official counterparts (APGD on the cross-entropy, targeted APGD on the DLR loss, Square) with the
same radius, steps, target classes and queries. The last row of a model holds the whole official
standard version, with FAB, at its own budgets, beside `strong` with the same budgets.

The two sides draw other random numbers. Square shrinks its windows over the queries it has, as in
its paper; only in the official standard version it does so as if it had 10,000. The table goes to
`results/autoattack.csv`, what it was made on to `results/autoattack.json`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from robustlib import attacks, data
from robustlib.core import paths
from robustlib.core.inference import device_of, evaluating, right
from robustlib.core.store import Store
from robustlib.models import Classifier
from robustlib.recipes import Standard
from robustlib.recipes.suite import suite
from robustlib.study.declarations import declared
from robustlib.study.results import provenance
from robustlib.training import Budget, train

NOTEBOOK = "03_mtlat.ipynb"
EPS = 0.008
MATCHED = {"steps": 20, "classes": 3, "queries": 200}
STANDARD = {"steps": 100, "classes": 9, "queries": 5000}  # of the official standard version
OFFICIAL = {"apgd_ce": "apgd-ce", "apgd_dlr": "apgd-t", "square": "square"}
OPTIONS = {"apgd_ce": ("steps",), "apgd_dlr": ("steps", "classes"), "square": ("queries",)}


class BadCheckoutError(ValueError):
    """The folder isn't a usable checkout of the official AutoAttack."""


def official(folder: str | Path) -> type:
    """The class `AutoAttack` of a checkout.

    Raises:
        BadCheckoutError: the folder holds no such package, it can't be imported, or another
            package of the name was imported before.
    """
    folder = Path(folder).resolve()
    if not (folder / "autoattack" / "autoattack.py").is_file():
        raise BadCheckoutError(
            f"{folder} is no checkout of auto-attack: it holds no autoattack/autoattack.py. Clone "
            "https://github.com/fra31/auto-attack and name that folder."
        )
    sys.path.insert(0, str(folder))
    try:
        module = importlib.import_module("autoattack")
        found = module.AutoAttack
    except (ImportError, AttributeError, SyntaxError) as error:
        raise BadCheckoutError(f"autoattack in {folder} can't be imported: {error}.") from error
    finally:
        sys.path.remove(str(folder))
    if not Path(str(module.__file__)).resolve().is_relative_to(folder):
        raise BadCheckoutError(
            f"a package autoattack from {module.__file__} is in the way of the one in {folder}."
        )
    return found


def models(device: str = "auto") -> tuple[list[Classifier], data.Dataset]:
    """The standard and the M-TLAT model of notebook 03, and its data set."""
    path = paths.project_root() / "notebooks" / NOTEBOOK
    given: dict[str, Any] = {name: item.default for name, item in declared(path).items()}
    dataset = data.load(given["dataset"], n_train=given["n_train"], n_test=given["n_test"])
    mtlat = suite(given["hyperparameters"])["mtlat_weight"]
    shared = {"batch_size": given["batch_size"], "augmentation": given["augmentation"]}
    fixed: dict[str, Any] = {
        "architecture": given["architecture"],
        "seeds": given["seeds"][:1],
        "store": Store(),
        "device": device,
    }
    budget = Budget(epochs=given["epochs"], **shared)
    start = train([Standard()], dataset, budget=budget, **fixed)
    budget = budget.finetuning(given["finetune_epochs"])
    trained = train([Standard(), mtlat], dataset, budget=budget, start=start, **fixed)
    return list(trained), dataset


def compare(
    auto_attack: type,
    classifiers: Sequence[Classifier],
    images: Tensor,
    labels: Tensor,
    *,
    eps: float = EPS,
    matched: dict[str, int] = MATCHED,
    standard: dict[str, int] = STANDARD,
    seed: int = 0,
) -> pd.DataFrame:
    """A row for each model and attack; see the module's docstring.

    Args:
        auto_attack: from `official`.
        classifiers: the models.
        images: float32 (N, 3, H, W) in [0, 1], at least one.
        labels: int64 (N,).
        eps: Linf radius.
        matched: steps, classes and queries of both sides.
        standard: those of `strong` beside the official standard version, which has its own.
        seed: of both sides.

    Returns a frame with the columns model; attack; official, the attacks of the other side; steps,
    classes and queries, 0 where an attack has none; clean, ours and theirs, the accuracy clean and
    under attack; points, ours minus theirs in percent; agreed, the share of images on which both
    agree; seconds and official_seconds.
    """
    rows = []
    for classifier in classifiers:
        network, device = classifier.model, device_of(classifier.model)
        batch = images.to(device), labels.to(device)
        plan = [(name, [OFFICIAL[name]], matched) for name in OFFICIAL]
        plan += [("strong", list(OFFICIAL.values()), matched), ("strong", [], standard)]
        for name, names, budgets in plan:
            print(f"{classifier.name}: {name}, {budgets} ...", flush=True)
            wanted = OPTIONS.get(name, tuple(budgets))
            used = {option: budgets[option] for option in wanted}
            ours, seconds = _timed(
                partial(attacks.run, network, *batch, name, eps=eps, seed=seed, **used)
            )
            theirs, their_seconds = _timed(
                partial(
                    run_official,
                    auto_attack,
                    network,
                    *batch,
                    names,
                    eps=eps,
                    seed=seed,
                    budgets=budgets,
                )
            )
            robust = ours.robust_correct.cpu(), theirs.cpu()
            accuracies = [float(correct.double().mean()) for correct in robust]
            rows.append(
                {
                    "model": classifier.name,
                    "attack": name,
                    "official": " + ".join(names) or "standard version",
                    **{option: used.get(option, 0) for option in budgets},
                    "clean": float(ours.clean_correct.double().mean()),
                    "ours": accuracies[0],
                    "theirs": accuracies[1],
                    "points": 100 * (accuracies[0] - accuracies[1]),
                    "agreed": float((robust[0] == robust[1]).double().mean()),
                    "seconds": seconds,
                    "official_seconds": their_seconds,
                }
            )
    return pd.DataFrame(rows)


def run_official(
    auto_attack: type,
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    names: Sequence[str],
    *,
    eps: float,
    seed: int,
    budgets: dict[str, int],
) -> Tensor:
    """bool (N,): right clean and after the official attacks, one after another.

    names: as AutoAttack calls them, run with `budgets`; none for its standard version, which has
    budgets of its own.
    """
    given: dict[str, Any] = {"norm": "Linf", "eps": eps, "seed": seed, "verbose": False}
    if names:
        given |= {"version": "custom", "attacks_to_run": list(names)}
    attack = auto_attack(network, device=str(images.device), **given)
    if names:
        attack.apgd.n_restarts = 1
        attack.apgd.n_iter = attack.apgd_targeted.n_iter = budgets["steps"]
        attack.apgd_targeted.n_target_classes = budgets["classes"]
        attack.square.n_queries = budgets["queries"]
        attack.square.rescale_schedule = True
    with evaluating(network), torch.no_grad():
        shown = attack.run_standard_evaluation(images, labels, bs=attacks.BATCH_SIZE)
        if (shown - images).abs().max() > eps + 1e-5:
            raise AssertionError("the official attack left the ball: the comparison isn't one.")
        return right(network(images), labels) & right(network(shown), labels)


def _timed(task: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    return task(), time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="make fidelity",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", help="checkout of the official AutoAttack")
    parser.add_argument("--images", type=int, default=200, help="test images that are attacked")
    given = parser.parse_args()
    if given.images < 1:
        parser.error(f"--images must be at least 1, got {given.images}")
    try:
        auto_attack = official(given.folder)
    except BadCheckoutError as error:
        parser.error(str(error))
    trained, dataset = models()
    part = dataset.test.first(given.images)
    table = compare(auto_attack, trained, part.float_images(), part.labels)
    facts = {**provenance(), "threads": str(torch.get_num_threads()), "images": len(part)}
    path = paths.results_dir("autoattack").with_suffix(".csv")
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(path, index=False, float_format="%.4g")
    path.with_suffix(".json").write_text(json.dumps({**facts, "eps": EPS}, indent=2) + "\n")
    print()
    print(table.to_string(index=False, float_format="{:.3g}".format))


if __name__ == "__main__":
    main()
