"""The usual slips, noticed on a few images in seconds: normalisation, order of classes, outputs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustlib.card.images import GIVE_CLASSES, CardImages
from robustlib.card.model import CardModel, Preparation
from robustlib.core.checks import check_whole
from robustlib.core.inference import device_of, evaluating
from robustlib.data import Split

USUAL = {
    "pixels in [0, 1] as they are": Preparation(),
    "ImageNet's mean and standard deviation": Preparation(
        (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    ),
    "a mean and standard deviation of 0.5": Preparation((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "pixels from 0 to 255": Preparation(std=(1 / 255, 1 / 255, 1 / 255)),
}
"""What networks usually want done to their images; this project's list."""

ALPHA = 0.05
"""Level of each test, divided by the number of alternatives that are tried."""
MARGIN = 0.03
"""Gain in accuracy below which another preparation is of no interest."""

_BATCH = 10  # of 224 px these stay in the cache of a CPU: twice as fast as 50
_SCREENED = 20  # images on which every preparation is tried; by likelihood these are enough
_NO_OUTPUT = -2  # of a class in another order; unlike the -1 of a prediction that isn't finite


@dataclass(frozen=True)
class Slip:
    """Something that looks wrong.

    Attributes:
        kind: "outputs", "not finite", "probabilities", "unsteady", "class order", "preparation"
            or "chance".
        found: what was seen, one or two sentences.
        advice: what to do about it, a sentence.
    """

    kind: str
    found: str
    advice: str


def slips(model: CardModel, images: CardImages, *, n: int = 200) -> list[Slip]:
    """What looks wrong in how a model and its images were put together; empty if nothing does.

    Of the preparations in `USUAL`, and the given one with red and blue exchanged, the one that
    makes the labels of the first twenty images most likely is tested on all of them. It is named
    if it makes more of these right than the given one: by `MARGIN`, and by
    McNemar's exact test at `ALPHA`, divided by the number of alternatives (Bonferroni); where the
    accuracy is near chance, it must also lead at least halfway from chance to 1. Another order of
    classes must pass the same test, lead as far, and take away half of the errors; one that was
    read off the images is tested on images that it wasn't read off. These bounds are this
    project's choice.

    Args:
        model: asked for `n` images and 100 more, and for another `n` if a preparation looks better.
        images: loaded for this model.
        n: how many of the images are looked at, the first ones; 200 tell a loss of 8 points.

    Returns the slips, causes first. Accuracy "near chance" is reported only if nothing else
    explains it: an untrained model is no slip.

    Raises:
        ValueError: no images.
    """
    split = images.split.first(check_whole(n, "n", low=1))
    if not len(split):
        raise ValueError("there are no images to look at; give at least one.")
    if len(images.classes) != model.outputs:
        counts = f"The model has {model.outputs} outputs, the images {len(images.classes)} classes."
        return [Slip("outputs", counts, f"To use them together, {GIVE_CLASSES}.")]
    with evaluating(model.classifier.model), torch.no_grad():
        logits = _ask(model, model.preparation, split)
        found = [*_outputs(logits), *_unsteady(model, split)]
        if not logits.isfinite().all(1).any():
            return found
        predicted, labels = _named(logits), split.labels.cpu().numpy()
        order = _class_order(predicted, labels, images.classes)
        if order is not None:
            found.append(_order_slip(order, predicted, labels, images.classes))
            labels = order.positions[labels]
        found += _preparation(model, split, logits, labels)
    if not any(slip.kind in ("class order", "preparation") for slip in found):
        found += _near_chance(predicted, labels, images.classes)
    return found


def _ask(model: CardModel, preparation: Preparation, split: Split) -> Tensor:
    """Logits (N, outputs), float32 on the CPU, of images that were prepared in this way."""
    device = device_of(model.network)
    parts = []
    for start in range(0, len(split), _BATCH):
        images = split.float_images(slice(start, start + _BATCH)).to(device)
        parts.append(model.network(preparation(images)).float().cpu())
    return torch.cat(parts)


def _named(logits: Tensor) -> np.ndarray:
    """int64 (N,): the class that each row names, -1 if one of its logits isn't finite."""
    return torch.where(logits.isfinite().all(1), logits.argmax(1), -1).numpy()


def are_probabilities(outputs: Tensor) -> bool:
    """Whether each row of (N, classes) is a distribution."""
    return bool((outputs >= 0).all() and ((outputs.sum(1) - 1).abs() < 1e-3).all())


def _outputs(logits: Tensor) -> Iterator[Slip]:
    wrong = int((~logits.isfinite().all(1)).sum())
    if wrong:
        yield Slip(
            "not finite",
            f"The outputs are NaN or infinite for {wrong} of {len(logits)} images.",
            "Check the weights and the normalisation; such images count as wrong.",
        )
    elif are_probabilities(logits):
        yield Slip(
            "probabilities",
            "The outputs are probabilities, not logits, which makes attacks look too weak.",
            "Take the softmax out of the network.",
        )


def _unsteady(model: CardModel, split: Split) -> Iterator[Slip]:
    few = split.first(8)
    first, again = (_ask(model, model.preparation, few) for _ in range(2))
    alone = _ask(model, model.preparation, few.first(1))
    for other, how in ((again, "in a second pass"), (alone, "without others in the batch")):
        if (first[: len(other)] - other).abs().max() > 0.01 * first.abs().max():  # false for NaN
            yield Slip(
                "unsteady",
                f"The same images get other outputs {how}, as if the network were training.",
                "Save it in eval mode (network.eval() before tracing), or take the randomness out.",
            )
            return


# --- Normalisation and order of channels ---------------------------------------------------------


def _preparation(
    model: CardModel, split: Split, logits: Tensor, labels: np.ndarray
) -> Iterator[Slip]:
    given = model.preparation
    usual = {name: replace(one, bgr=given.bgr) for name, one in USUAL.items()}
    others = {name: one for name, one in usual.items() if one != given}
    channels = "red, green and blue" if given.bgr else "blue, green and red"
    others[f"{channels} in this order"] = replace(given, bgr=not given.bgr)
    right = _named(logits) == labels
    few = split.first(_SCREENED)
    likely = {
        name: _log_likelihood(_ask(model, one, few), labels[: len(few)])
        for name, one in others.items()
    }
    name = max(likely, key=lambda other: likely[other])
    if likely[name] < _log_likelihood(logits[: len(few)], labels[: len(few)]):
        return
    better = _named(_ask(model, others[name], split)) == labels
    p = _p_value(right, better) * len(others)
    good = _is_good(better.mean(), _chance(labels)) or _above_chance(right, labels)
    if better.mean() - right.mean() >= MARGIN and p < ALPHA and good:
        yield Slip(
            "preparation",
            f"{_percent(right)} of {len(split)} images are right, but {_percent(better)} with "
            f"{name} (McNemar's test, p = {p:.1g} after Bonferroni).",
            _advice(others[name], given),
        )


def _log_likelihood(logits: Tensor, labels: np.ndarray) -> float:
    """Mean log-probability of the labels that have an output; -inf if it isn't finite."""
    known = np.flatnonzero(labels >= 0)
    probabilities = logits.log_softmax(1)[known, labels[known]]
    return float(probabilities.mean().nan_to_num(-np.inf, neginf=-np.inf))


def _advice(better: Preparation, given: Preparation) -> str:
    if better.bgr != given.bgr:
        return f"Give bgr={better.bgr}, and the rest as before."
    if better == Preparation(bgr=better.bgr):
        return "Leave out mean and std."
    mean, std = (tuple(float(f"{x:.6g}") for x in t) for t in (better.mean, better.std))
    return f"Give mean={mean} and std={std}."


def _percent(right: np.ndarray) -> str:
    return f"{100 * right.mean():.1f} %"


def _p_value(first: np.ndarray, second: np.ndarray) -> float:
    """McNemar's exact test, two-sided, of two bool (N,) on the same images."""
    from statsmodels.stats.contingency_tables import mcnemar  # type: ignore[import-untyped]

    table = [[np.sum(a & b) for b in (second, ~second)] for a in (first, ~first)]
    return min(1.0, float(mcnemar(table, exact=True).pvalue))


# --- Order of classes ----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Order:
    """Another order of classes: which output each seems to be, and what it makes right."""

    words: str
    positions: np.ndarray  # int64 (classes,), or _NO_OUTPUT
    right: np.ndarray  # bool (n,), with the classes as given, of the images that it is tested on
    better: np.ndarray  # bool (n,), in this order

    def is_far_better(self, tries: int, chance: float) -> bool:
        before, after = self.right.mean(), self.better.mean()
        if after - before < (1 - before) / 2 or not _is_good(after, chance):
            return False
        return _p_value(self.right, self.better) * tries < ALPHA


def _by_numbers(name: str) -> list[str | int]:
    """A key that puts "10" behind "9"."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


_SORTED: dict[str, Callable[[str], Any]] = {
    "sorted as numbers (1, 2, 10) instead of as text (1, 10, 2)": _by_numbers,
    "sorted as text (1, 10, 2) instead of as numbers (1, 2, 10)": str,
    "sorted without regard to capitals": str.casefold,
}


def _class_order(
    predicted: np.ndarray, labels: np.ndarray, classes: tuple[str, ...]
) -> _Order | None:
    """The order of classes that explains the predictions far better, if there is one."""
    chance = _chance(labels)
    usual = _usual_orders(predicted, labels, classes)
    best = max(usual, key=lambda order: order.better.mean(), default=None)
    if best is not None and best.is_far_better(len(usual), chance):
        return best
    assigned = _assigned_order(predicted, labels, len(classes))
    return assigned if len(assigned.right) and assigned.is_far_better(1, chance) else None


def _usual_orders(
    predicted: np.ndarray, labels: np.ndarray, classes: tuple[str, ...]
) -> list[_Order]:
    """The other orders that people have: sorted in another way, or shifted by one."""
    given = np.arange(len(classes))
    found = {
        words: np.argsort(sorted(given, key=lambda i: key(classes[i])))
        for words, key in _SORTED.items()
    }
    found["each moved to the next output"] = np.append(given[1:], _NO_OUTPUT)
    found["each moved to the output before"] = np.append(_NO_OUTPUT, given[:-1])
    return [
        _Order(words, positions, predicted == labels, predicted == positions[labels])
        for words, positions in found.items()
        if (positions != given).any()
    ]


def _assigned_order(predicted: np.ndarray, labels: np.ndarray, count: int) -> _Order:
    """The order under which most of the predictions are right, tested on the other images.

    Each half of the images of a class is judged by the assignment that the other halves give, so
    that classes with a single image don't count.
    """
    rank = np.zeros(len(labels), dtype=np.int64)  # of each image within its class
    for label in np.unique(labels):
        rank[labels == label] = np.arange(np.sum(labels == label))
    better = np.zeros(len(labels), dtype=bool)
    for half in (rank % 2 == 0, rank % 2 == 1):
        others = _assignment(predicted[~half], labels[~half], count)
        better[half] = predicted[half] == others[labels[half]]
    tested = np.bincount(labels, minlength=count)[labels] > 1
    positions = _assignment(predicted, labels, count)
    right = predicted == labels
    return _Order("in another order", positions, right[tested], better[tested])


def _assignment(predicted: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    """int64 (count,): for each class another output, so that most predictions are right."""
    from scipy.optimize import linear_sum_assignment

    finite = predicted >= 0
    predicted, labels = predicted[finite], labels[finite]
    rows, row = np.unique(labels, return_inverse=True)
    columns, column = np.unique(predicted, return_inverse=True)
    counts = np.zeros((len(rows), len(columns)), dtype=np.int64)
    np.add.at(counts, (row, column), 1)
    chosen = linear_sum_assignment(counts, maximize=True)
    found = np.full(count, _NO_OUTPUT)
    seen = counts[chosen] > 0
    found[rows[chosen[0][seen]]] = columns[chosen[1][seen]]
    return found


def _order_slip(
    order: _Order, predicted: np.ndarray, labels: np.ndarray, classes: tuple[str, ...]
) -> Slip:
    hits = np.bincount(labels[predicted == order.positions[labels]], minlength=len(classes))
    moved = [c for c in np.argsort(-hits, kind="stable") if hits[c] and order.positions[c] != c]
    examples = ", ".join(
        f"{classes[order.positions[c]]!r} for {hits[c]} of {np.sum(labels == c)} images of "
        f"{classes[c]!r}"
        for c in moved[:3]
    )
    return Slip(
        "class order",
        f"{_percent(order.right)} of {len(order.right)} images are right, but "
        f"{_percent(order.better)} with the classes {order.words}: the model names {examples}.",
        f"If the network was trained in that order, {GIVE_CLASSES}.",
    )


# --- Chance --------------------------------------------------------------------------------------


def _chance(labels: np.ndarray) -> float:
    """Accuracy of naming always the commonest class."""
    return float(np.unique(labels, return_counts=True)[1].max() / len(labels))


def _is_good(accuracy: float, chance: float) -> bool:
    """Whether it is at least halfway from chance to 1: more than an untrained network has."""
    return bool(accuracy >= (1 + chance) / 2)


def _above_chance(right: np.ndarray, labels: np.ndarray) -> bool:
    """Whether an accuracy is surely (binomial test) or far above chance; else it is near it."""
    from scipy.stats import binomtest

    n, chance = len(right), _chance(labels)
    test = binomtest(int(right.sum()), n, chance, alternative="greater")
    return bool(test.pvalue < ALPHA or _is_good(right.mean(), chance))


def _near_chance(
    predicted: np.ndarray, labels: np.ndarray, classes: tuple[str, ...]
) -> Iterator[Slip]:
    right = predicted == labels
    if _above_chance(right, labels):
        return
    found = (
        f"Accuracy is near chance: {_percent(right)} of {len(right)} images are right, where "
        f"naming always the same class makes {100 * _chance(labels):.1f} % right."
    )
    outputs, counts = np.unique(predicted[predicted >= 0], return_counts=True)
    if counts.max() >= 0.9 * len(predicted):
        name = classes[outputs[counts.argmax()]]
        found += f" The model names {name!r} for {counts.max()} of them."
    present, images = np.unique(labels, return_counts=True)
    if len(outputs) >= len(present) / 2 and np.sum(images == 1) > len(present) / 2:
        found += (
            f" It names {len(outputs)} different classes, so they may be in another order, which "
            "takes two or more images of each to tell."
        )
    yield Slip(
        "chance",
        found,
        "If the model is trained, check its weights, the order of classes, mean and std.",
    )
