"""Does a model's robustness to attacks look real, or do the attacks fail for lack of a gradient?

Checks in the spirit of Carlini et al. 2019, *On Evaluating Adversarial Robustness* (arXiv
1902.06705, section 5) and Athalye et al. 2018 (arXiv 1802.00420). They are necessary conditions:
a model that passes them all may still fall to an attack made for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustlib import attacks
from robustlib.core.checks import (
    check_ids,
    check_images,
    check_labels,
    check_logits,
    check_number,
    check_whole,
)
from robustlib.core.inference import device_of, evaluating
from robustlib.core.jobs import Workers
from robustlib.core.randomness import Stream
from robustlib.core.store import Store
from robustlib.data import Split, StreamedSplit
from robustlib.evaluation.accuracy import evaluate, predict
from robustlib.models import Classifier
from robustlib.perturbations import Attack

MASKED = "looks masked"
NOT_MASKED = "no sign of masking"

# Every image can be made grey within 0.5. Balls inside it help PGD, which may miss from afar.
_LARGE = (0.125, 0.25, 0.5)
_SHARE = 0.9  # of the images whose loss must rise faster along the gradient
_KEPT = 0.75  # of the accuracy that PGD leaves, what the strong attacks must leave, too


def sanity_table(
    models: Sequence[Classifier],
    split: Split | StreamedSplit,
    *,
    eps: float,
    store: Store,
    seed: int = 0,
    slack: float = 0.02,
    progress: bool = True,
    workers: Workers | None = None,
) -> pd.DataFrame:
    """Checks of each model whose failure means that its robustness looks masked.

    Every accuracy counts images that are right both clean and attacked. "Gradient attacks" is the
    worst case for each image of FGSM and of PGD with 20 and with 100 steps; "strong attacks" that
    of the parts of `strong`, with 50 steps, 3 classes and 500 queries. The budgets and bounds are
    this project's choice.

    Args:
        models: from `robustlib.training.train` or `robustlib.models.wrap`. The examples that
            transfer to a model come from the first other one; a single model goes without that
            check.
        split: the images; 200 take about a minute for a small network on two CPU cores.
        eps: Linf radius at which the robustness is judged, in (0, 0.5).
        store: where the results of the attacks are kept.
        seed: source of all randomness.
        slack: what values may be off by, for chance, 0 or more.
        progress: show a progress bar on standard output.
        workers: where the attacks run, as in `robustlib.evaluation.evaluate`.

    Returns a frame with one row for each (model, check) and the columns model; check; value, which
    was measured; expected, "<=" or ">="; reference, which the value is compared with; and passed,
    whether it compares so up to `slack`.

    Raises:
        ValueError: no models or images, or a bad radius.
    """
    eps = check_number(eps, "eps", low=0, high=0.49, above=True, unit="pixels in [0, 1]")
    cells = sanity_attacks(eps)
    slack = check_number(slack, "slack", low=0, high=1)
    result = evaluate(
        models, split, cells, store=store, seed=seed, progress=progress, workers=workers
    )
    correct = result.correct.reshape(len(cells) + 1, len(models), len(split))
    transferred = _transferred([trained.model for trained in models], split, eps, seed)
    rows = []
    for i, trained in enumerate(models):
        clean, fgsm, pgd, long, rays, square, apgd_ce, apgd_dlr, *large = correct[:, i]
        white, strong = fgsm & pgd & long, apgd_ce & apgd_dlr & square
        least = white.mean()
        checks = [
            ("iterated beats single-step", pgd.mean(), "<=", fgsm.mean()),
            ("more steps don't help the defender", long.mean(), "<=", pgd.mean()),
            ("accuracy reaches 0 at a large radius", np.mean(white & np.all(large, 0)), "<=", 0.0),
            ("decision-based attack isn't stronger", rays.mean(), ">=", least),
            ("score-based attack isn't stronger", square.mean(), ">=", least),
            ("strong attacks leave most of it", strong.mean(), ">=", _KEPT * least),
        ]
        if len(models) > 1:
            checks.append(("transferred attack isn't stronger", transferred[i], ">=", least))
        halfway = (clean.mean() + least) / 2
        noisy = _under_noise(trained.model, split, eps, seed)
        rising = _rising(trained.model, split, eps, seed)
        checks += [
            ("noise is much weaker", noisy, ">=", halfway),
            ("loss rises along the gradient", rising, ">=", _SHARE),
        ]
        for check, value, relation, reference in checks:
            excess = value - reference if relation == "<=" else reference - value
            rows.append(
                {
                    "model": trained.name,
                    "check": check,
                    "value": float(value),
                    "expected": relation,
                    "reference": float(reference),
                    "passed": bool(excess <= slack),
                }
            )
    return pd.DataFrame(rows)


def sanity_attacks(eps: float) -> list[Attack]:
    """The attacks whose results `sanity_table` compares, at a radius in (0, 0.5)."""
    eps = check_number(eps, "eps", low=0, high=0.49, above=True, unit="pixels in [0, 1]")
    return [
        Attack("fgsm", eps),
        Attack("pgd", eps, steps=20, restarts=1),
        Attack("pgd", eps, steps=100, restarts=1),
        Attack("rays", eps, queries=400),
        Attack("square", eps, queries=500),
        Attack("apgd_ce", eps, steps=50),
        Attack("apgd_dlr", eps, steps=50, classes=3),
        *(Attack("pgd", radius, steps=20, restarts=1) for radius in _LARGE if radius != eps),
    ]


def masking_verdict(table: pd.DataFrame) -> pd.DataFrame:
    """For each model of a `sanity_table`, whether its robustness looks masked.

    Returns a frame indexed by model with the columns verdict, `MASKED` if a check failed or else
    `NOT_MASKED`, and failed, the checks that did.
    """
    failed = {
        model: ", ".join(rows.loc[~rows["passed"], "check"])
        for model, rows in table.groupby("model", sort=False)
    }
    return pd.DataFrame(
        {
            "verdict": [MASKED if checks else NOT_MASKED for checks in failed.values()],
            "failed": list(failed.values()),
        },
        index=pd.Index(list(failed), name="model"),
    )


def loss_along_gradient(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    points: int = 11,
    seed: int = 0,
    ids: Tensor | None = None,
) -> pd.DataFrame:
    """Mean loss at x + t eps s, for s the sign of the loss's gradient at x and random signs.

    Args:
        model: maps float32 (N, 3, H, W) in [0, 1] to logits (N, classes); used in eval mode.
        images: float32 (N, 3, H, W) in [0, 1].
        labels: int64 (N,).
        eps: Linf radius.
        points: values of t, evenly from -1 to 1, 2 or more.
        seed: source of the random signs.
        ids: int64 (N,), identities of the images; default: their positions.

    Returns a frame with the columns direction ("gradient" or "random"), t, and loss, the mean
    cross-entropy over the images. Moved images are clipped to [0, 1].

    Raises:
        ValueError: bad images or labels, or too few points.
    """
    images, points = check_images(images), check_whole(points, "points", low=2)
    if not len(images):
        raise ValueError("give at least one image.")
    eps = check_number(eps, "eps", low=0, above=True, unit="pixels in [0, 1]")
    ids = check_ids(ids, len(images))
    labels = check_labels(labels, len(images)).to(images.device)
    steps = np.linspace(-1, 1, points).tolist()
    with evaluating(model):
        frames = [
            pd.DataFrame(
                {
                    "direction": name,
                    "t": steps,
                    "loss": [
                        _loss(model, (images + t * eps * signs).clamp(0, 1), labels).mean().item()
                        for t in steps
                    ],
                }
            )
            for name, signs in _directions(model, images, labels, ids, seed).items()
        ]
    return pd.concat(frames, ignore_index=True)


def _directions(
    model: nn.Module, images: Tensor, labels: Tensor, ids: Tensor, seed: int
) -> dict[str, Tensor]:
    with torch.inference_mode(False), torch.enable_grad():
        x = images.detach().clone().requires_grad_()
        logits = check_logits(model(x.clone()), len(x), labels)
        (gradient,) = torch.autograd.grad(F.cross_entropy(logits, labels, reduction="sum"), x)
    drawn = Stream(seed, ids.to(images.device), "sanity direction").sign(images.shape[1:])
    return {"gradient": gradient.sign(), "random": drawn}


@torch.no_grad()
def _loss(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each image, in double precision: confident models lose little."""
    return F.cross_entropy(model(images.clone()).double(), labels, reduction="none")


def _batches(
    model: nn.Module, split: Split | StreamedSplit
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    device = device_of(model)
    for start in range(0, len(split), 500):
        part = slice(start, start + 500)
        yield (
            split.float_images(part).to(device),
            split.labels[part].to(device),
            split.ids[part].to(device),
        )


def _rising(model: nn.Module, split: Split | StreamedSplit, eps: float, seed: int) -> float:
    """Share of images whose loss rises along the gradient, and more than along random signs."""
    rising = 0
    with evaluating(model):
        for images, labels, ids in _batches(model, split):
            ends = {
                name: _loss(model, (images + eps * signs).clamp(0, 1), labels)
                for name, signs in _directions(model, images, labels, ids, seed).items()
            }
            least = torch.maximum(_loss(model, images, labels), ends["random"])
            rising += int((ends["gradient"] > least).sum())
    return rising / len(split)


def _under_noise(model: nn.Module, split: Split | StreamedSplit, eps: float, seed: int) -> float:
    """Accuracy, right both clean and under uniform noise on [-eps, eps]."""
    right = 0
    for images, labels, ids in _batches(model, split):
        noise = Stream(seed, ids, "sanity noise").uniform(images.shape[1:], -eps, eps)
        right += _right_both(model, images, (images + noise).clamp(0, 1), labels)
    return right / len(split)


def _transferred(
    models: Sequence[nn.Module], split: Split | StreamedSplit, eps: float, seed: int
) -> list[float]:
    """Accuracy of each model, right both clean and on PGD examples made for another one.

    That is the first one, and for the first the second. Nothing for a single model.
    """
    right = [0] * len(models)
    shown_to = {0: range(1, len(models)), 1: range(1)} if len(models) > 1 else {}
    for surrogate, others in shown_to.items():
        for images, labels, ids in _batches(models[surrogate], split):
            given = {"eps": eps, "seed": seed, "ids": ids, "restarts": 1, "stop": False}
            moved = attacks.attack(models[surrogate], images, labels, "pgd", **given)
            for i in others:
                device = device_of(models[i])
                batch = (tensor.to(device) for tensor in (images, moved, labels))
                right[i] += _right_both(models[i], *batch)
    return [count / len(split) for count in right]


def _right_both(model: nn.Module, images: Tensor, moved: Tensor, labels: Tensor) -> int:
    return int((predict(model, images).eq(labels) & predict(model, moved).eq(labels)).sum())
