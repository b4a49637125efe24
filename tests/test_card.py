"""The card: its tables by hand, its file, its page, and the command."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import bs4
import jsonschema
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from robustlib import corruptions
from robustlib.analysis import corruption_errors, selection
from robustlib.analysis.references import Reference
from robustlib.card import CardImages, card_model, summary
from robustlib.card.advice import advice
from robustlib.card.answers import Answers
from robustlib.card.card import SCHEMA, Card, make_card
from robustlib.card.command import main
from robustlib.card.figures import beside, figures
from robustlib.card.measure import Measured, measure
from robustlib.card.page import card_page
from robustlib.card.protocol import Protocol
from robustlib.core.store import Store
from robustlib.data import Dataset, Split
from robustlib.evaluation import tabulate
from robustlib.models import wrap
from robustlib.perturbations import Attack, Clean
from robustlib.study import results

FIFTEEN = corruptions.names("imagenet_c_15")


class Brightest(nn.Module):
    """Names the channel that is brightest in one pixel, which is mostly the right one."""

    def forward(self, images: Tensor) -> Tensor:
        return 20 * images[:, :, 5, 5]


@pytest.fixture(scope="module")
def images(tiny: Dataset) -> CardImages:
    assert isinstance(tiny.test, Split)
    return CardImages(tiny.test, tiny.classes)


@pytest.fixture(scope="module")
def whole(images: CardImages, tmp_path_factory: pytest.TempPathFactory) -> Measured:
    """Of the nineteen, at one severity."""
    model = card_model(wrap(Brightest().eval(), name="brightest"), image_size=16)
    protocol = Protocol(16, severities=(3,), attacks=("fgsm",), attacked=20, checked=10, eps=0.1)
    store = Store(tmp_path_factory.mktemp("store"))
    return measure(model, images, protocol, store=store, progress=False)


def by_hand(
    correct: Sequence[Sequence[int]], protocol: Protocol, confidence: np.ndarray | None = None
) -> Measured:
    """As if a model had been right on these images (clean first, then the protocol's cells)."""
    right = np.array(correct, dtype=bool)
    n = right.shape[1]
    labels = np.zeros(n, dtype=int)
    sure = np.full(right.shape, 0.5) if confidence is None else confidence
    zeros = np.zeros(right.shape)
    cells = (Clean(), *protocol.cells)
    answers = Answers(
        cells, labels, np.where(right, 0, 1), sure, zeros, zeros, np.zeros(len(right))
    )
    tensors = torch.zeros(n, 3, 16, 16, dtype=torch.uint8), torch.zeros(n, dtype=torch.int64)
    split = Split(*tensors, torch.arange(n), tuple(f"a/{i}.png" for i in range(n)))
    model = card_model(wrap(Brightest().eval(), name="brightest"), image_size=16)
    held = CardImages(split, ("cat", "dog", "emu"))
    return Measured(model, held, protocol, n, (), answers, None, None)


TWO = Protocol(16, corruptions=("fog", "snow"), severities=(1, 3), attacked=0, checked=0)
RIGHT = [
    [1, 1, 1, 1],  # clean
    [1, 1, 1, 0],  # fog 1
    [1, 0, 1, 0],
    [1, 1, 0, 0],  # snow 1
    [0, 0, 0, 0],
]


# --- Tables --------------------------------------------------------------------------------------


def test_accuracies_by_hand() -> None:
    table = summary.accuracies(by_hand(RIGHT, TWO)).set_index(["perturbation", "severity"])
    assert table["accuracy"].to_dict() == {
        ("clean", 0): 1.0,
        ("fog", 1): 0.75,
        ("fog", 3): 0.5,
        ("fog", 0): 0.625,
        ("snow", 1): 0.5,
        ("snow", 3): 0.0,
        ("snow", 0): 0.25,
    }
    # Wilson's interval of 2 in 4, and Student's of (1, .5, 1, 0), whose variance is .6875 / 3
    assert table.loc[("fog", 3), "low"] == pytest.approx(0.1500, abs=1e-4)
    half = 3.18245 * np.sqrt(0.6875 / 3 / 4)
    assert table.loc[("fog", 0), "low"] == pytest.approx(max(0, 0.625 - half), abs=1e-4)
    assert table.loc[("fog", 0), "high"] == 1.0


def test_calibration_by_hand() -> None:
    confidence = np.array([[0.95] * 4, [0.75] * 4, [0.75] * 4, [0.75] * 4, [0.75] * 4])
    table = summary.calibration(by_hand(RIGHT, TWO, confidence)).set_index("perturbation")
    assert table["gap"].to_dict() == pytest.approx(
        {"clean": -0.05, "fog": 0.125, "snow": 0.5, "all corruptions": 0.3125}
    )
    assert table.loc["snow", "ece"] == pytest.approx(0.5)


def test_corruption_errors_equal_those_of_the_analysis(whole: Measured) -> None:
    reference = by_severity(whole, 0.5)
    found = summary.corruption_errors(whole, reference).set_index("corruptions")
    mine = whole.evaluation.table
    other = mine.assign(recipe="other")
    other.loc[other["family"] != "clean", "accuracy"] = 0.5
    other.loc[other["family"] == "clean", "accuracy"] = 1 - reference.clean
    both = pd.concat([mine, other], ignore_index=True)
    for relative, column in ((False, "mce"), (True, "relative_mce")):
        errors = corruption_errors(both, reference="other", relative=relative).loc["brightest"]
        assert found.loc["nineteen", column] == pytest.approx(errors.mean())
        assert found.loc["fifteen", column] == pytest.approx(errors[list(FIFTEEN)].mean())
    assert found.loc["fifteen", "mce_low"] < found.loc["fifteen", "mce"]


def by_severity(measured: Measured, error: float) -> Reference:
    names = measured.protocol.corruptions
    return Reference("other", 0.1, {name: {3: error} for name in names})


def test_without_known_errors_there_is_no_mce(whole: Measured) -> None:
    nobody = summary.corruption_errors(whole, None)
    assert nobody["mce"].isna().all()
    assert nobody["mean_error"].notna().all()
    others = Reference("other", 0.1, {name: {5: 0.5} for name in corruptions.names()})
    assert summary.corruption_errors(whole, others)["mce"].isna().all()
    assert summary.corruption_errors(by_hand(RIGHT, TWO), None).empty


def test_the_few_are_those_of_the_atlas(whole: Measured) -> None:
    table, says = summary.few_for_many(whole)
    chosen = results.committed("cifar10", "chosen").query("size == 4").iloc[0]["corruptions"]
    assert ", ".join(table["corruption"]) == chosen
    assert table["weight"].sum() == pytest.approx(1)
    accuracy = whole.evaluation.table.set_index("perturbation")["accuracy"]
    assert says["measured"] == pytest.approx(accuracy[list(FIFTEEN)].mean())
    predicted = selection.predicted_mean(
        pd.DataFrame({"brightest": accuracy[list(FIFTEEN)]}).T,
        table.set_index("corruption")["weight"],
    )
    assert says["predicted"] == pytest.approx(predicted.iloc[0])
    assert summary.few_for_many(by_hand(RIGHT, TWO))[1] == {}


def test_the_worst_attack_is_taken_image_by_image() -> None:
    correct = np.array([[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 1, 0]], dtype=bool)
    cells = [Clean(), Attack("fgsm", 0.1), Attack("cw", 0.5)]
    held = by_hand(RIGHT, TWO)
    attacked = tabulate(held.model.classifier, cells, correct)
    table = summary.attack_table(Measured(**{**vars(held), "attacked": attacked}))
    assert dict(zip(table["attack"], table["accuracy"], strict=True)) == {
        "clean": 0.75,
        "fgsm": 0.5,
        "cw": 0.5,
        "all of them": 0.25,
    }
    assert list(table["norm"]) == ["", "Linf", "L2", ""]


def test_failures_are_the_surest_mistakes_each_of_another_image() -> None:
    confidence = np.full((5, 4), 0.5)
    confidence[1, 3], confidence[3, 3], confidence[3, 2] = 0.7, 0.9, 0.8
    table = summary.failures(by_hand(RIGHT, TWO, confidence))
    # image 3 is the surest mistake of both; snow, the surer, takes it, and fog has no other
    assert table[["image", "corruption", "severity"]].to_numpy().tolist() == [[3, "snow", 1]]
    assert table.iloc[0][["file", "label", "predicted"]].tolist() == ["a/3.png", "cat", "dog"]
    assert table.iloc[0]["confidence"] == 0.9


def test_the_hardest_comes_first() -> None:
    assert summary.hardest(by_hand(RIGHT, TWO)).to_dict() == {"snow": 75.0, "fog": 37.5}


def test_advice_is_computed() -> None:
    confidence = np.full((5, 4), 0.9)
    first, second, third = advice(by_hand(RIGHT, TWO, confidence))
    assert first.startswith("Weak against snow: 75 points below clean. In the atlas")
    accuracy = results.committed("cifar10", "overlap_accuracy").set_index("model")
    gain = 100 * (accuracy.loc["snow", "snow"] - accuracy.loc["standard", "snow"])
    assert f"gained {gain:.0f} points on it" in first
    assert second.startswith("Weak against fog: 38 points")
    assert "46 points above its accuracy" in third  # .9 against 7 / 16


def test_advice_says_where_the_atlas_knows_no_help() -> None:
    protocol = Protocol(
        16, corruptions=("jpeg_compression",), severities=(3,), attacked=0, checked=0
    )
    first, _ = advice(by_hand([[1, 1, 1, 1], [0, 0, 0, 1]], protocol))
    assert first.endswith("training with it gained next to nothing.")


def test_a_card_without_the_checkout_has_no_atlas(
    whole: Measured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("robustlib.core.paths.project_root", lambda: tmp_path)
    card = make_card(whole)
    assert card.few.empty
    assert not any("atlas" in line for line in card.advice)
    assert len(card.accuracy) == 20


# --- File and page -------------------------------------------------------------------------------


def test_the_file_has_the_documented_format(whole: Measured, tmp_path: Path) -> None:
    card = make_card(whole)
    card.save(tmp_path / "card.json")
    schema = json.loads(SCHEMA.read_text("utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(json.loads((tmp_path / "card.json").read_text("utf-8")), schema)
    again = Card.load(tmp_path / "card.json")
    pd.testing.assert_frame_equal(again.accuracy, card.accuracy, atol=1e-6)
    assert again.advice == card.advice
    assert again.as_reference().error("fog", (3,)) == pytest.approx(
        1 - card.accuracy.set_index("perturbation").loc["fog", "accuracy"], abs=1e-6
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "no report card"),
        ("[]", "no report card"),
        ('{"format_version": 2}', "version 2"),
        ('{"format_version": 1, "modle": {}}', "modle"),
    ],
)
def test_another_file_is_no_card(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "card.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        Card.load(tmp_path / "card.json")


def test_cifar_stands_beside_the_published(whole: Measured) -> None:
    others = make_card(whole, data="cifar10").beside
    assert others["source"].value_counts().to_dict() == {
        "published": 31,
        "this study": 2,
        "this card": 1,
    }
    with pytest.raises(ValueError, match="cifar10"):
        make_card(whole, data="cifar")


def test_every_model_beside_has_a_row_of_its_own(whole: Measured) -> None:
    card = make_card(whole, data="cifar10")
    own = card.beside["source"] == "this card"
    namesake = card.beside["model"].mask(own, card.beside["model"][~own].iloc[0])
    figure = beside(replace(card, beside=card.beside.assign(model=namesake)))
    rows = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert len(rows) == len(set(rows)) == len(card.beside)
    assert sum(row.endswith("(this card)") for row in rows) == 1


def test_the_page_holds_all_and_fetches_nothing(whole: Measured) -> None:
    card = make_card(whole, data="cifar10")
    page = bs4.BeautifulSoup(card_page(card, figures(whole, card)), "html.parser")
    pictures = page.find_all("img")
    assert len(pictures) == len(figures(whole, card))
    assert all(len(picture["alt"]) > 10 for picture in pictures)
    assert all(picture["src"].startswith("data:") for picture in pictures)
    assert not page.find_all(["script", "link"])
    text = page.get_text(" ", strip=True)
    for name in (*FIFTEEN, "fgsm", "Which mCE?", "Advice", *card.advice):
        assert name in text
    clean = card.accuracy.iloc[0]["accuracy"]
    assert f"Clean: {100 * clean:.1f}" in text


def test_images_that_may_not_be_published_are_named_only(whole: Measured) -> None:
    card = make_card(whole)
    shown = figures(whole, card, images=False)
    assert set(figures(whole, card)) - set(shown) == {"failures"}
    text = bs4.BeautifulSoup(card_page(card, shown), "html.parser").get_text(" ", strip=True)
    assert f"{100 * card.failures['confidence'].iloc[0]:.1f}" in text


def test_the_page_says_what_was_not_measured() -> None:
    held = by_hand(RIGHT, TWO)
    card = make_card(held, data="cifar10")
    page = card_page(card, figures(held, card, images=False))
    text = bs4.BeautifulSoup(page, "html.parser").get_text(" ", strip=True)
    assert "No image was attacked" in text
    for what in ("no mCE.", "no mean to compare."):
        assert f"The fifteen corruptions of ImageNet-C weren't all measured: {what}" in text


# --- The command ---------------------------------------------------------------------------------


@pytest.fixture
def photos(tmp_path: Path, images: CardImages) -> Path:
    folder = tmp_path / "photos"
    split = images.split.first(30)
    for i, (pixels, label) in enumerate(zip(split.images, split.labels.tolist(), strict=True)):
        place = folder / "abc"[label]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(place / f"{i}.png")
    return folder


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "model.pt"
    torch.jit.script(Brightest().eval()).save(path)  # type: ignore[no-untyped-call]
    return path


@pytest.fixture
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROBUSTLIB_STORE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)


FAST = ["--image-size", "16", "--corruptions", "fog", "--attacks", "fgsm", "--checked", "0"]
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated:DeprecationWarning")


@pytest.mark.usefixtures("own_store")
def test_one_command_makes_page_and_file(
    photos: Path, script: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(script), str(photos), *FAST, "--name", "mine"]) == 0
    shown = capsys.readouterr().out
    assert "% of 30 images are right" in shown
    card = Card.load(tmp_path / "cards" / "mine.json")
    assert card.settings["severities"] == [1, 2, 3, 4, 5]
    assert (tmp_path / "cards" / "mine.html").is_file()


@pytest.mark.usefixtures("own_store")
def test_two_models_are_compared(
    photos: Path, script: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(script), str(script), str(photos), *FAST, "--name", "old", "--name", "new"]
    assert main(given) == 0
    table = pd.read_csv(tmp_path / "cards" / "new-over-old.csv")
    assert (table["gain"] == 0).all()
    assert "new over old, clean: +0.0 points" in capsys.readouterr().out
    assert (tmp_path / "cards" / "new-over-old.html").is_file()


@pytest.mark.usefixtures("own_store")
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["--corruptions", "fogg"], "did you mean 'fog'|fog"),
        (["--device", "cuda"], "cuda"),
        (["--budget", "0"], "budget"),
        (["--reference", "none.json"], "no report card"),
        (["--name", "a", "--name", "b"], "--name is given 2 times"),
        (["--classes", "none.txt"], "file of classes"),
        (["--stored", "nowhere"], "no folder"),
    ],
)
def test_bad_input_is_told_in_a_sentence(
    photos: Path,
    script: Path,
    changed: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if changed == ["--device", "cuda"] and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert main([str(script), str(photos), *FAST, *changed]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(message, error)


@pytest.mark.usefixtures("own_store")
def test_a_third_model_is_refused(
    photos: Path, script: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*3 * [str(script)], str(photos), *FAST]) == 2
    assert "one model or two" in capsys.readouterr().err
