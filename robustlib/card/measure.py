"""All that a card is computed from: answers, attacks and checks, with one bar and the time left."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from robustlib.analysis import wilson_interval
from robustlib.card.answers import Answers, ask, part_of
from robustlib.card.images import CardImages
from robustlib.card.model import CardModel
from robustlib.card.protocol import SMALL, Protocol, passes
from robustlib.card.slips import Slip
from robustlib.core.checks import check_number
from robustlib.core.inference import device_of
from robustlib.core.jobs import cores
from robustlib.core.store import Store
from robustlib.data import Split
from robustlib.evaluation import Evaluation, evaluate, sanity_attacks, sanity_table, tabulate
from robustlib.perturbations import Attack, Clean, Perturbation

Say = Callable[[str], None]


@dataclass(frozen=True)
class Measured:
    """What was measured of a model on images.

    Attributes:
        model, images: as they were loaded.
        protocol: what was measured; under a budget, the part of it that fitted.
        n: how many of the images, the first ones.
        slips: what looks wrong in how they were put together, as far as that was asked.
        answers: on clean images, then under each of `protocol.cells`.
        attacked: clean and under each attack, on the first `protocol.attacked` images; None
            without attacks.
        sanity: of `robustlib.evaluation.sanity_table`; None without checks.
        budget: minutes that were allowed, or None.
    """

    model: CardModel
    images: CardImages
    protocol: Protocol
    n: int
    slips: tuple[Slip, ...]
    answers: Answers = field(repr=False)
    attacked: Evaluation | None = field(repr=False)
    sanity: pd.DataFrame | None = field(repr=False)
    budget: float | None = None

    @property
    def evaluation(self) -> Evaluation:
        """Accuracies on clean and corrupted images, as the analyses take them."""
        return self.answers.evaluation(self.model.classifier)

    @property
    def split(self) -> Split:
        """The images that were measured on."""
        return self.images.split.first(self.n)


def measure(
    model: CardModel,
    images: CardImages,
    protocol: Protocol,
    *,
    store: Store,
    budget: float | None = None,
    found: Sequence[Slip] = (),
    say: Say = lambda sentence: None,
    progress: bool = True,
) -> Measured:
    """Measure a model; what is in the store isn't measured again, so a stopped card goes on.

    Args:
        model: as from `load_model` or `card_model`.
        images: as from `load_images` for this model.
        protocol: what to measure.
        store: where all is kept.
        budget: minutes, or None for all images. What fits is decided after the first 50 images,
            by `Protocol.fitted`; the last block of images may take somewhat longer.
        found: what `robustlib.card.slips` found, which takes seconds: ask it before.
        say: called with each sentence that is worth telling while it runs.
        progress: show a bar with the time left on standard output.

    Raises:
        ValueError: images of another size than the protocol's, a budget that isn't positive, or
            the model fails on the images.
    """
    split, classifier = images.split, model.classifier
    if split.image_size != protocol.image_size:
        raise ValueError(
            f"the protocol is for images of {protocol.image_size} px, these have "
            f"{split.image_size} px; make both the same."
        )
    if budget is not None:
        budget = check_number(budget, "budget", low=0, above=True, unit="minutes")
    n = len(split)
    few = split.first(min(50, n))
    usual: dict[str, Any] = {"store": store, "seed": protocol.seed}
    if budget is not None:
        shown = [Clean(), *_at_middle_severity(protocol)]
        first = ask(classifier, few, shown, **usual)
        at_once = cores() if device_of(classifier.model).type == "cpu" else 1
        seconds = first.seconds / len(few) / at_once
        protocol, n = protocol.fitted(
            budget, n, answer=seconds[1:].mean(), forward=float(seconds[0])
        )
        say(_in_budget(budget, protocol, n, len(split)))
    split = split.first(n)
    check_count = min(protocol.checked or 0, n)
    protocol = replace(protocol, attacked=min(protocol.attacked, n), checked=check_count)
    attacks = protocol.attack_cells()
    checks = sanity_attacks(protocol.radius) if check_count else []
    total = n * (1 + len(protocol.cells)) + protocol.attacked * sum(map(passes, attacks))
    total += check_count * sum(map(passes, checks))
    bar = tqdm(
        total=total,
        desc="clean",
        unit="pass",
        unit_scale=True,
        mininterval=1.0,
        file=sys.stdout,
        disable=not progress,
    )
    with bar:
        clean = ask(classifier, split, [Clean()], tell=bar.update, **usual)
        say(f"Clean: {_share(clean.correct[0])}.")
        bar.set_description("corruptions")
        first = ask(classifier, few, protocol.cells, **usual)
        say(f"Corrupted: {100 * first.correct.mean():.0f} % on the first {len(few)} images.")
        answers = ask(classifier, split, protocol.cells, tell=bar.update, **usual)
        attacked = None
        if protocol.attacked:
            part = split.first(protocol.attacked)
            attacked = _attack(model, part, attacks, protocol, store, bar)
            least = attacked.correct.all(axis=0).mean()
            share = f"{100 * least:.0f} % of {protocol.attacked} images"
            say(f"Attacked: {share} withstand all attacks.")
        sanity = None
        if check_count:
            bar.set_description("checks of gradients")
            part = split.first(check_count)
            sanity = sanity_table(
                [classifier],
                part,
                eps=protocol.radius,
                slack=max(0.02, 2 / len(part)),  # two images are chance
                progress=False,
                **usual,
            )
            bar.update(check_count * sum(map(passes, checks)))
    return Measured(
        model, images, protocol, n, tuple(found), clean.joined(answers), attacked, sanity, budget
    )


def _at_middle_severity(protocol: Protocol) -> list[Perturbation]:
    middle = protocol.severities[len(protocol.severities) // 2]
    return [cell for cell in protocol.cells if cell.severity == middle]


def _attack(
    model: CardModel,
    split: Split,
    attacks: list[Attack],
    protocol: Protocol,
    store: Store,
    bar: tqdm[Any],
) -> Evaluation:
    """Evaluated in small parts, so that the bar moves and a stopped card loses little."""
    size = 10 if split.image_size > SMALL else 100
    rows: list[list[np.ndarray]] = [[] for _ in range(1 + len(attacks))]
    for begin in range(0, len(split), size):
        part = part_of(split, begin, begin + size)
        for place, attack in enumerate(attacks):
            bar.set_description(attack.label)
            found = evaluate(
                [model.classifier], part, [attack], store=store, seed=protocol.seed, progress=False
            )
            bar.update(len(part) * passes(attack))
            rows[1 + place].append(found.correct[1])
        rows[0].append(found.correct[0])
    correct = np.stack([np.concatenate(row) for row in rows])
    return tabulate(model.classifier, [Clean(), *attacks], correct)


def _share(right: np.ndarray) -> str:
    low, high = (100 * float(end) for end in wilson_interval(right.mean(), len(right)))
    return f"{100 * right.mean():.1f} % of {len(right)} images are right ({low:.1f} to {high:.1f})"


def _in_budget(minutes: float, protocol: Protocol, n: int, images: int) -> str:
    severities = ", ".join(map(str, protocol.severities))
    return (
        f"{minutes:g} minutes are enough for {n} of {images} images at severity {severities}, "
        f"{protocol.attacked} of them attacked, {protocol.checked} checked for masked gradients."
    )
