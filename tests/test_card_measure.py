"""Answers, protocol and measurement of a card."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustlib.card import CardImages, Slip, card_model
from robustlib.card.answers import NOT_FINITE, ask, blocks
from robustlib.card.comparison import compare
from robustlib.card.measure import Measured, measure
from robustlib.card.protocol import Protocol, passes
from robustlib.core.store import Store
from robustlib.data import Dataset
from robustlib.evaluation import evaluate
from robustlib.models import Classifier, wrap
from robustlib.perturbations import Attack, Clean, Corruption

CELLS = [Clean(), Corruption("gaussian_noise", 3), Corruption("fog", 5)]
SMALLEST = Protocol(
    16,
    corruptions=("gaussian_noise", "fog"),
    severities=(1, 5),
    attacks=("fgsm", "pgd"),
    attacked=20,
    checked=0,
    eps=0.1,
)


_IDENTITY = nn.Identity()


class Brightest(nn.Module):
    """Names the channel that is brightest on average, after some function of the logits."""

    def __init__(self, last: Callable[[Tensor], Tensor], scale: float) -> None:
        super().__init__()
        self.last, self.scale = last, scale

    def forward(self, images: Tensor) -> Tensor:
        return self.last(self.scale * images.mean((2, 3)))


def brightest(last: Callable[[Tensor], Tensor] = _IDENTITY, scale: float = 20) -> Classifier:
    return wrap(Brightest(last, scale).eval(), name="brightest")


@pytest.fixture
def images(tiny: Dataset) -> CardImages:
    assert not isinstance(tiny.test, str)
    return CardImages(tiny.test, tiny.classes)  # type: ignore[arg-type]


def measured(images: CardImages, store: Store, scale: float = 20, **more: object) -> Measured:
    model = card_model(brightest(scale=scale), image_size=16)
    return measure(model, images, SMALLEST, store=store, progress=False, **more)  # type: ignore[arg-type]


# --- Answers -------------------------------------------------------------------------------------


def test_more_images_later_take_up_the_blocks_of_fewer() -> None:
    assert list(blocks(120)) == [(0, 50), (50, 100), (100, 120)]
    assert list(blocks(1000))[:5] == [(0, 50), (50, 100), (100, 200), (200, 500), (500, 1000)]
    assert list(blocks(7)) == [(0, 7)]


def test_answers_are_what_an_evaluation_finds(images: CardImages, store: Store) -> None:
    model = brightest()
    found = ask(model, images.split, CELLS, store=store)
    expected = evaluate([model], images.split, CELLS, store=store, progress=False)
    assert np.array_equal(found.correct, expected.correct)
    assert found.evaluation(model).table.equals(expected.table)
    logits = model.model(images.split.float_images()).double()
    probabilities = logits.softmax(1)
    assert found.confidence[0] == pytest.approx(probabilities.max(1).values.numpy())
    truth = torch.nn.functional.cross_entropy(logits, images.split.labels, reduction="none")
    assert found.nll[0] == pytest.approx(truth.numpy())


def test_an_answer_is_given_once(images: CardImages, store: Store) -> None:
    model, told = brightest(), []
    few = ask(model, images.split.first(50), CELLS, store=store, tell=told.append)
    assert sum(told) == 150
    kept = len(list((store.root / "answers").iterdir()))
    every = ask(model, images.split, CELLS, store=store)
    assert len(list((store.root / "answers").iterdir())) == 2 * kept
    assert np.array_equal(every.predicted[:, :50], few.predicted)
    other = ask(brightest(scale=5), images.split, CELLS, store=store)
    assert not np.array_equal(other.confidence, every.confidence)


def test_outputs_that_are_not_finite_are_wrong(images: CardImages, store: Store) -> None:
    found = ask(brightest(torch.log1p, scale=-2e30), images.split, [Clean()], store=store)
    assert (found.predicted == NOT_FINITE).all()
    assert not found.correct.any()
    assert np.isinf(found.nll).all()
    assert (found.brier == 2).all()
    assert (found.confidence == 0).all()


def test_probabilities_are_taken_as_such(images: CardImages, store: Store) -> None:
    raw = ask(brightest(), images.split, CELLS, store=store)
    soft = ask(brightest(nn.Softmax(1)), images.split, CELLS, store=store)
    assert soft.confidence == pytest.approx(raw.confidence, abs=1e-6)
    assert soft.brier == pytest.approx(raw.brier, abs=1e-5)


def test_attacks_are_no_question(images: CardImages, store: Store) -> None:
    with pytest.raises(ValueError, match="attacks go through"):
        ask(brightest(), images.split, [Attack("fgsm", 0.1)], store=store)


# --- Protocol ------------------------------------------------------------------------------------


def test_what_is_measured_fits_the_size_of_images() -> None:
    small, large = Protocol(32), Protocol(224)
    assert (small.severities, large.severities) == ((1, 2, 3, 4, 5), (1, 3, 5))
    assert (small.radius, large.radius) == (2 / 255, 1 / 255)
    assert (small.radius_l2, large.radius_l2) == (0.25, 1.75)
    assert len(large.cells) == 57
    assert [attack.eps for attack in large.attack_cells()] == [1 / 255] * 4 + [1.75]
    assert Protocol(224, eps="4/255").radius == 4 / 255


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"corruptions": ("fogg",)}, "fog"),
        ({"severities": (6,)}, "1 to 5"),
        ({"attacks": ("pgdd",)}, "pgd"),
        ({"attacked": -1}, "attacked"),
        ({"eps": 0.6}, "eps"),
        ({"stored": Path("nowhere")}, "no folder"),
    ],
)
def test_a_bad_protocol_says_what_is_wrong(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Protocol(32, **values)  # type: ignore[arg-type]


def test_a_gradient_counts_as_three_passes() -> None:
    assert passes(Attack("fgsm", 0.1)) == 3
    assert passes(Attack("pgd", 0.1, steps=20, restarts=2)) == 120
    assert passes(Attack("square", 0.1, queries=300)) == 300
    assert passes(Attack("strong", 0.1, steps=10, queries=50)) == 2 * 3 * 10 + 50


def test_a_budget_is_spent_on_images_then_severities() -> None:
    protocol = Protocol(224, corruptions=("fog", "snow"), attacks=("fgsm",), checked=0)
    # an answer takes 1 s, so 6 s an image at three severities; attacks are 50 x 3 passes of 0.1 s
    enough, n = protocol.fitted(100, 800, answer=1.0, forward=0.1)
    assert (enough.severities, enough.attacked, n) == ((1, 3, 5), 50, 800)
    fewer, n = protocol.fitted(60, 800, answer=1.0, forward=0.1)
    assert (fewer.severities, n) == ((1, 3, 5), 500)
    middle, n = protocol.fitted(10, 800, answer=1.0, forward=0.1)
    assert (middle.severities, middle.attacked, n) == ((3,), 50, 200)
    least, n = protocol.fitted(0.5, 800, answer=1.0, forward=0.1)
    assert (least.severities, least.attacked, n) == ((3,), 20, 50)
    none, _ = protocol.fitted(0.1, 800, answer=1.0, forward=0.1)
    assert none.attacked == 0


# --- Measurement ---------------------------------------------------------------------------------


def test_all_is_measured_and_told(images: CardImages, store: Store) -> None:
    told: list[str] = []
    found = measured(images, store, say=told.append)
    assert [cell.label for cell in found.answers.cells] == ["clean"] + 2 * ["gaussian_noise"] + [
        "fog",
        "fog",
    ]
    assert found.attacked is not None
    assert found.attacked.correct.shape == (3, 20)
    direct = evaluate(
        [found.model.classifier],
        images.split.first(20),
        SMALLEST.attack_cells(),
        store=store,
        progress=False,
    )
    assert np.array_equal(found.attacked.correct, direct.correct)
    assert found.sanity is None
    assert told[0].startswith("Clean: 100.0 % of 60 images are right")


def test_slips_that_were_found_are_kept(images: CardImages, store: Store) -> None:
    slip = Slip("preparation", "It looks wrong.", "Mend it.")
    assert measured(images, store, found=[slip]).slips == (slip,)


def test_few_images_are_all_attacked(images: CardImages, store: Store) -> None:
    few = CardImages(images.split.first(6), images.classes)
    assert measured(few, store).protocol.attacked == 6


def test_a_budget_says_what_fits(images: CardImages, store: Store) -> None:
    told: list[str] = []
    found = measured(images, store, budget=1, say=told.append)
    assert found.budget == 1
    assert "1 minutes are enough for 60 of 60 images at severity 1, 5" in told[0]


def test_withstanding_all_attacks_is_told_image_by_image(images: CardImages, store: Store) -> None:
    told: list[str] = []
    found = measured(images, store, scale=2, say=told.append)
    assert found.attacked is not None
    right = found.attacked.correct.all(axis=0)
    assert f"{100 * right.mean():.0f} % of 20 images withstand all attacks" in told[-1]


def test_a_budget_is_checked_before_any_work(images: CardImages, store: Store) -> None:
    with pytest.raises(ValueError, match="budget"):
        measured(images, store, budget=-1)
    assert not (store.root / "answers").exists()


def test_images_of_another_size_are_refused(images: CardImages, store: Store) -> None:
    model = card_model(brightest(), image_size=16)
    with pytest.raises(ValueError, match="32 px"):
        measure(model, images, Protocol(32), store=store, progress=False)


def test_two_models_are_compared_image_by_image(images: CardImages, store: Store) -> None:
    first = measured(images, store)
    second = measured(images, store, scale=-20)  # names the darkest
    table = compare(first, second).set_index("perturbation")
    assert list(table.index) == [
        "clean",
        "gaussian_noise",
        "fog",
        "all corruptions",
        "fgsm",
        "pgd",
    ]
    assert table.loc["clean", "gain"] == -100
    by_hand = second.answers.correct[1:].mean() - first.answers.correct[1:].mean()
    assert table.loc["all corruptions", "gain"] == pytest.approx(100 * by_hand)
    same = compare(first, first)
    assert (same[["gain", "low", "high"]] == 0).all(axis=None)


def test_other_images_are_not_compared(images: CardImages, store: Store) -> None:
    few = CardImages(images.split.first(30), images.classes)
    with pytest.raises(ValueError, match="other images"):
        compare(measured(images, store), measured(few, store))
