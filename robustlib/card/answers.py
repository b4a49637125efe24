"""What a model answers under perturbations: class, confidence and proper scores of each image."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustlib.analysis.calibration import proper_scores
from robustlib.card.slips import are_probabilities
from robustlib.core.checks import check_seed, check_whole
from robustlib.core.identity import fingerprint
from robustlib.core.inference import device_of, evaluating
from robustlib.core.jobs import cores, threads
from robustlib.core.store import Store
from robustlib.data import Split
from robustlib.evaluation import Evaluation, tabulate
from robustlib.exchange import Stored
from robustlib.models import Classifier
from robustlib.perturbations import Perturbation

NOT_FINITE = -1
"""The predicted class where outputs aren't finite."""

_SCORES = ("predicted", "confidence", "nll", "brier")
_PIXELS = 500_000  # at a time: ten images of 224 px, which stay in the cache of a CPU
_BATCH = 250  # images at a time, at most


@dataclass(frozen=True)
class Answers:
    """What a model said of the same images under each of several perturbations.

    Attributes:
        cells: the perturbations.
        labels: int64 (n,).
        predicted: int64 (cells, n), `NOT_FINITE` where outputs aren't finite.
        confidence: float64 (cells, n), probability of the predicted class; there, 0.
        nll: float64 (cells, n), negative log-likelihood of the label in nats; there, infinite.
        brier: float64 (cells, n), Brier score, 0 to 2; there, 2.
        seconds: float64 (cells,), that it took, now or when it was put into the store.
    """

    cells: tuple[Perturbation, ...]
    labels: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray
    nll: np.ndarray
    brier: np.ndarray
    seconds: np.ndarray

    @property
    def correct(self) -> np.ndarray:
        """bool (cells, n), whether the predicted class is the label."""
        return self.predicted == self.labels

    def joined(self, other: Answers) -> Answers:
        """These and others, to the same images."""
        values = {
            name: np.concatenate([getattr(self, name), getattr(other, name)])
            for name in (*_SCORES, "seconds")
        }
        return Answers(self.cells + other.cells, self.labels, **values)

    def evaluation(self, classifier: Classifier) -> Evaluation:
        """The same as a table of accuracies with per-image correctness, for the analyses."""
        return tabulate(classifier, self.cells, self.correct)


def blocks(n: int) -> Iterator[tuple[int, int]]:
    """Begin and end of the blocks in which `n` images are asked for and stored.

    They end at 50, 100, 200, 500, 1000, 2000, 5000, ... so that more images later take up what
    there is of fewer.
    """
    ends = (
        size for k in itertools.count(1) for size in (5 * 10**k, 10 ** (k + 1), 2 * 10 ** (k + 1))
    )
    begin = 0
    while begin < n:
        end = min(next(ends), n)
        yield begin, end
        begin = end


def ask(
    classifier: Classifier,
    split: Split,
    cells: Sequence[Perturbation],
    *,
    store: Store,
    seed: int = 0,
    tell: Callable[[int], object] = lambda images: None,
) -> Answers:
    """What `classifier` says of the images of `split` under each of `cells`.

    On a CPU several perturbations are applied at a time, each on a thread. Every block of images
    under a perturbation is kept in the store, so that a stopped run goes on.

    Args:
        classifier: left as it is; in eval mode and float32.
        split: the images.
        cells: perturbations that need no model.
        store: where answers are kept.
        seed: source of the perturbations' randomness.
        tell: called with the images that were just answered, from the store or not.

    Raises:
        ValueError: no images, or a perturbation that needs a model.
    """
    seed = check_seed(seed)
    check_whole(len(split), "number of images", low=1)
    if attacks := [cell.name for cell in cells if cell.needs_model]:
        raise ValueError(f"{attacks[0]} needs the model; attacks go through `evaluate`.")
    model = classifier.model
    place = device_of(model)
    about = {"model": classifier.identity(), "device": place.type, "seed": seed}
    about["code"] = fingerprint(_answer, Split.float_images)
    parts: list[list[dict[str, Any]]] = [[] for _ in cells]
    for begin, end in blocks(len(split)):
        part = part_of(split, begin, end)
        own = about | {"data": part.digest()}
        bound = [cell.for_split(part) if isinstance(cell, Stored) else cell for cell in cells]
        keys = [own | {"perturbation": cell.key()} for cell in bound]
        found = {i: store.find("answers", key) for i, key in enumerate(keys)}
        tell(sum(found_one is not None for found_one in found.values()) * len(part))
        missing = [i for i, artifact in found.items() if artifact is None]
        with evaluating(model), threads(1 if place.type == "cpu" else None):
            for i, values, seconds in _answers(model, part, bound, missing, seed, tell):
                found[i] = store.put("answers", keys[i], values, {"seconds": seconds})
        for i, artifact in found.items():
            assert artifact is not None
            parts[i].append({**artifact.tensors, "seconds": artifact.record["seconds"]})
    joined = {
        name: np.stack([torch.cat([p[name] for p in row]).numpy() for row in parts])
        for name in _SCORES
    }
    took = np.array([sum(p["seconds"] for p in row) for row in parts])
    return Answers(tuple(cells), split.labels.cpu().numpy(), **joined, seconds=took)


def part_of(split: Split, begin: int, end: int) -> Split:
    """The images of a split from position `begin` to before `end`."""
    tensors = {name: value[begin:end] for name, value in split.tensors().items()}
    return replace(split, **tensors, files=split.files[begin:end])


def _answers(
    model: nn.Module,
    split: Split,
    cells: Sequence[Perturbation],
    missing: Sequence[int],
    seed: int,
    tell: Callable[[int], object],
) -> Iterator[tuple[int, dict[str, Tensor], float]]:
    """For each missing cell its position, what `Answers` holds by image, and the seconds."""
    cpu = device_of(model).type == "cpu"
    size = min(_BATCH, max(1, _PIXELS // split.image_size**2))
    batches = [slice(begin, begin + size) for begin in range(0, len(split), size)]
    with ThreadPoolExecutor(cores() if cpu else 1) as pool:
        jobs = [
            (i, [pool.submit(_answer, model, split, cells[i], seed, batch) for batch in batches])
            for i in missing
        ]
        try:
            for i, parts in jobs:
                values: dict[str, list[Tensor]] = {name: [] for name in _SCORES}
                seconds = 0.0
                for job in parts:
                    scores, took = job.result()
                    seconds += took
                    for name, value in scores.items():
                        values[name].append(value)
                    tell(len(scores["predicted"]))
                yield i, {name: torch.cat(value) for name, value in values.items()}, seconds
        finally:  # of an interrupted run, too
            pool.shutdown(cancel_futures=True)


def _answer(
    model: nn.Module, split: Split, cell: Perturbation, seed: int, index: slice
) -> tuple[dict[str, Tensor], float]:
    """What `Answers` holds of some of the images, and the seconds that it took."""
    began = time.perf_counter()
    place = device_of(model)
    images = split.float_images(index).to(place)
    labels, ids = split.labels[index].to(place), split.ids[index].to(place)
    shown = cell.apply(images, labels, ids, None, seed)
    with torch.no_grad():
        outputs = model(shown).double()
    finite = outputs.isfinite().all(1)
    probabilities = outputs if are_probabilities(outputs) else outputs.softmax(1)
    confidence, predicted = probabilities.max(1)
    nll, brier = proper_scores(probabilities, labels)
    scores = {
        "predicted": predicted.where(finite, NOT_FINITE),
        "confidence": confidence.where(finite, 0.0),
        "nll": nll.where(finite, torch.inf),
        "brier": brier.where(finite, 2.0),
    }
    return {name: value.cpu() for name, value in scores.items()}, time.perf_counter() - began
