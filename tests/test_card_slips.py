"""The usual slips of a set-up, on networks of which it is known what they want."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustlib.card import CardImages, CardModel, Preparation, Slip, card_model, slips
from robustlib.card.slips import USUAL, _p_value
from robustlib.data import Dataset, Split
from robustlib.models import build, wrap

SIDE = 8
NAMES = tuple("abcdefghij")


def levels(count: int, classes: int, *, spread: float = 0.02, seed: int = 0) -> Split:
    """Images whose red level is (label + 1/2) / classes; green and blue say nothing."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    red = (labels + 0.5) / classes + spread * torch.randn(count, generator=generator)
    colours = torch.rand(count, 3, generator=generator)
    colours[:, 0] = red.clamp(0, 1)
    images = (255 * colours)[..., None, None].expand(-1, -1, SIDE, SIDE).round().to(torch.uint8)
    return Split(images.contiguous(), labels, torch.arange(count))


class Reader(nn.Module):
    """Reads the level of red from images that were prepared as it wants, and names its output."""

    def __init__(self, wanted: Preparation, outputs: Sequence[int]) -> None:
        super().__init__()
        self.wanted = wanted
        self.channel = 2 if wanted.bgr else 0
        self.outputs = torch.tensor(outputs)

    def forward(self, images: Tensor) -> Tensor:
        level = images[:, self.channel].mean((1, 2)) * self.wanted.std[0] + self.wanted.mean[0]
        count = len(self.outputs)
        logits = -100 * (level[:, None] - (torch.arange(count) + 0.5) / count) ** 2
        return torch.empty_like(logits).index_copy_(1, self.outputs, logits)


def reader(
    wanted: Preparation, given: Preparation, outputs: Sequence[int] = range(10)
) -> CardModel:
    network = Reader(wanted, list(outputs)).eval()
    model = card_model(wrap(network, name="reader"), image_size=SIDE)
    return replace(model, preparation=given)


def of(network: Callable[[Tensor], Tensor]) -> CardModel:
    class Own(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return network(images)

    return card_model(wrap(Own().eval(), name="own"), image_size=SIDE)


def kinds(found: Sequence[Slip]) -> list[str]:
    return [slip.kind for slip in found]


PLAIN, IMAGENET, HALF, BYTES = USUAL.values()
SHUFFLED = np.random.default_rng(1).permutation(10).tolist()


# --- Nothing to report ----------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", [*USUAL.values(), replace(IMAGENET, bgr=True)])
@pytest.mark.parametrize("spread", [0.02, 0.1, 0.4])
def test_a_right_set_up_is_let_alone(wanted: Preparation, spread: float) -> None:
    """Of good, middling and bad models (accuracies about 1, 0.4 and 0.2)."""
    images = CardImages(levels(200, 10, spread=spread), NAMES)
    assert slips(reader(wanted, wanted), images) == []


def test_a_difference_that_does_not_matter_is_no_slip() -> None:
    own = Preparation((127 / 255,) * 3, (128 / 255,) * 3)
    images = CardImages(levels(200, 10, spread=0.05), NAMES)
    assert slips(reader(own, HALF), images) == []
    assert slips(reader(HALF, own), images) == []


@pytest.mark.parametrize("seed", range(6))
def test_untrained_networks_are_near_chance_and_nothing_else(seed: int, tiny: Dataset) -> None:
    network = build("small_resnet", classes=3, image_size=16, seed=seed)
    if seed % 2:  # norms that have seen images: predictions that differ
        with torch.no_grad():
            for _ in range(20):
                network.train()(tiny.train.float_images())
    model = card_model(wrap(network.eval(), name="x"), image_size=16)
    assert kinds(slips(model, CardImages(tiny.test, tiny.classes))) in ([], ["chance"])


@pytest.mark.parametrize("seed", range(20))
def test_predictions_without_rhyme_are_near_chance(seed: int) -> None:
    """Two images of each of fifty classes: an order could be read off, but doesn't hold."""
    names = tuple(f"class {i}" for i in range(50))
    model = of(
        lambda images: torch.sin((images.sum((1, 2, 3)) * 1e3)[:, None] * torch.arange(1, 51))
    )
    found = slips(model, CardImages(levels(100, 50, seed=seed), names))
    assert kinds(found) in ([], ["chance"])


# --- Preparation ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "given", "words", "advice"),
    [
        (IMAGENET, PLAIN, "ImageNet's mean", r"mean=\(0.485, 0.456, 0.406\) and std=\(0.229, "),
        (PLAIN, IMAGENET, "as they are", "Leave out mean and std"),
        (HALF, IMAGENET, "deviation of 0.5", r"mean=\(0.5, 0.5, 0.5\) and std=\(0.5, 0.5, 0.5"),
        (IMAGENET, HALF, "ImageNet's mean", "mean=.*std="),
        (BYTES, PLAIN, "from 0 to 255", r"mean=\(0.0, .*std=\(0.00392157, "),
        (PLAIN, BYTES, "as they are", "Leave out mean and std"),
        (replace(HALF, bgr=True), HALF, "blue, green and red", "Give bgr=True"),
        (HALF, replace(HALF, bgr=True), "red, green and blue", "Give bgr=False"),
        (replace(HALF, bgr=True), replace(IMAGENET, bgr=True), "deviation of 0.5", r"mean=\(0.5, "),
    ],
)
def test_the_preparation_that_is_wanted_is_named(
    wanted: Preparation, given: Preparation, words: str, advice: str
) -> None:
    (slip,) = slips(reader(wanted, given), CardImages(levels(200, 10), NAMES))
    assert slip.kind == "preparation"
    assert words in slip.found
    assert pytest.approx(100, abs=3) == float(slip.found.split("but ")[1].split(" %")[0])
    assert re.search(advice, slip.advice)


def test_mcnemar_by_hand() -> None:
    """One image against nine: 2 (1 + 10) / 2^10."""
    first = np.array([True] + [False] * 9 + [True] * 30 + [False] * 5)
    second = np.array([False] + [True] * 9 + [True] * 30 + [False] * 5)
    assert _p_value(first, second) == pytest.approx(22 / 1024)
    assert _p_value(first, first) == 1


# --- Order of classes -----------------------------------------------------------------------------


def test_another_order_of_classes() -> None:
    split = levels(200, 10, spread=0.03)
    (slip,) = slips(reader(PLAIN, PLAIN, SHUFFLED), CardImages(split, NAMES))
    assert slip.kind == "class order"
    nearest = split.float_images()[:, 0, 0, 0].mul(10).int().clamp(max=9)
    accuracy = (nearest == split.labels).double().mean().item()
    assert f"but {100 * accuracy:.1f} % with the classes in another order" in slip.found
    examples = re.findall(r"'(\w)' for \d+ of 20 images of '(\w)'", slip.found)
    assert len(examples) == 3
    assert all(SHUFFLED[NAMES.index(label)] == NAMES.index(named) for named, label in examples)
    assert "give classes, a text file" in slip.advice


def test_two_classes_changed_places() -> None:
    order = [1, 0, *range(2, 10)]
    (slip,) = slips(reader(PLAIN, PLAIN, order), CardImages(levels(200, 10), NAMES))
    assert slip.found.startswith("80.0 % of 200 images are right, but 100.0 % with the classes in")
    assert slip.found.endswith(
        "the model names 'b' for 20 of 20 images of 'a', 'a' for 20 of 20 images of 'b'."
    )


@pytest.mark.parametrize("count", [24, 72])
def test_numbers_sorted_as_text(count: int) -> None:
    """One image of each class is enough: the order isn't read off the images."""
    text = tuple(sorted(map(str, range(24))))
    split = levels(count, 24, spread=0.002)
    place = torch.tensor([text.index(str(i)) for i in range(24)])
    images = CardImages(replace(split, labels=place[split.labels]), text)
    (slip,) = slips(reader(PLAIN, PLAIN, range(24)), images)
    assert slip.kind == "class order"
    assert "100.0 % with the classes sorted as numbers (1, 2, 10)" in slip.found
    numbers = tuple(map(str, range(24)))
    (slip,) = slips(reader(PLAIN, PLAIN, place.tolist()), CardImages(split, numbers))
    assert "100.0 % with the classes sorted as text (1, 10, 2)" in slip.found


def test_outputs_that_are_counted_from_one() -> None:
    names = tuple(f"class {i:02}" for i in range(24))
    split = levels(24, 24, spread=0.002)
    shifted = [(i + 1) % 24 for i in range(24)]
    (slip,) = slips(reader(PLAIN, PLAIN, shifted), CardImages(split, names))
    assert "with the classes each moved to the next output" in slip.found


def test_one_image_of_each_class_tells_no_order() -> None:
    names = tuple(f"class {i:02}" for i in range(24))
    order = list(reversed(range(24)))
    found = slips(reader(PLAIN, PLAIN, order), CardImages(levels(24, 24, spread=0.002), names))
    assert kinds(found) == ["chance"]
    assert "names 24 different classes, so they may be in another order" in found[0].found


@pytest.mark.parametrize(("given", "most"), [(HALF, 320), (PLAIN, 520)])
def test_how_many_images_a_model_is_asked_for(given: Preparation, most: int) -> None:
    asked = []

    class Counting(Reader):
        def forward(self, images: Tensor) -> Tensor:
            asked.append(len(images))
            return super().forward(images)

    model = card_model(wrap(Counting(HALF, range(10)).eval(), name="x"), image_size=SIDE)
    slips(replace(model, preparation=given), CardImages(levels(1000, 10), NAMES))
    assert 200 < sum(asked[1:]) <= most  # the first is the black image


# --- Outputs --------------------------------------------------------------------------------------


def test_probabilities() -> None:
    inner = Reader(PLAIN, list(range(10)))
    (slip,) = slips(of(lambda images: inner(images).softmax(1)), CardImages(levels(200, 10), NAMES))
    assert slip.kind == "probabilities"


def test_outputs_that_are_not_finite() -> None:
    inner = Reader(PLAIN, list(range(10)))
    images = CardImages(levels(200, 10), NAMES)
    (slip,) = slips(of(lambda x: inner(x) / (x[:, :1, 0, 0] > 0.1)), images)
    assert slip.kind == "not finite"
    assert "for 20 of 200 images" in slip.found
    (slip,) = slips(of(lambda x: inner(x) * torch.nan), images)
    assert "for 200 of 200 images" in slip.found


@pytest.mark.parametrize(
    ("disturb", "words"),
    [
        (lambda x: nn.functional.dropout(x, 0.2, training=True), "in a second pass"),
        (lambda x: x - x.mean(0) + 0.5, "without others in the batch"),
    ],
)
def test_outputs_that_differ_from_pass_to_pass(
    disturb: Callable[[Tensor], Tensor], words: str
) -> None:
    inner = Reader(PLAIN, list(range(10)))
    found = slips(of(lambda x: inner(disturb(x))), CardImages(levels(200, 10), NAMES))
    assert kinds(found)[0] == "unsteady"
    assert words in found[0].found


def test_one_prediction_for_all() -> None:
    model = of(lambda x: nn.functional.pad(x[:, 0, :1, 0] * 0 + 2, (3, 6)))
    (slip,) = slips(model, CardImages(levels(200, 10), NAMES))
    assert slip.kind == "chance"
    assert "10.0 % of 200 images are right" in slip.found
    assert "names 'd' for 200 of them" in slip.found
    only = levels(200, 10)
    same = replace(only, labels=torch.full((200,), 3))
    assert slips(model, CardImages(same, NAMES)) == []


def test_another_number_of_outputs() -> None:
    (slip,) = slips(reader(PLAIN, PLAIN), CardImages(levels(200, 9), NAMES[:9]))
    assert slip.kind == "outputs"
    assert slip.found == "The model has 10 outputs, the images 9 classes."


def test_no_images_are_refused() -> None:
    with pytest.raises(ValueError, match="no images to look at"):
        slips(reader(PLAIN, PLAIN), CardImages(levels(200, 10).first(0), NAMES))
    with pytest.raises(ValueError, match="n must be an integer of at least 1"):
        slips(reader(PLAIN, PLAIN), CardImages(levels(200, 10), NAMES), n=0)
