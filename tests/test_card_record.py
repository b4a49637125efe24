"""The cards that the project holds, and what README says of them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import bs4
import jsonschema
import pytest

from robustlib.card.card import SCHEMA, Card

ROOT = Path(__file__).resolve().parent.parent
CARDS = sorted((ROOT / "results" / "cards").glob("*.json"))
LITE = ROOT / "results" / "cards" / "efficientnet-lite0.json"


@pytest.mark.parametrize("file", CARDS, ids=lambda file: file.stem)
def test_a_card_has_the_documented_format_and_a_page(file: Path) -> None:
    text = file.read_text("utf-8")
    jsonschema.validate(json.loads(text), json.loads(SCHEMA.read_text("utf-8")))
    page = file.with_suffix(".html").read_text("utf-8")
    shown = bs4.BeautifulSoup(page, "html.parser").get_text(" ", strip=True)
    card = Card.load(file)
    clean, right = card.accuracy.iloc[0], r"Clean: ([\d.]+) \(([\d.]+) to ([\d.]+)\) %"
    found = re.search(right, shown.replace("\N{NO-BREAK SPACE}", " "))
    assert found
    ends = [100 * clean[name] for name in ("accuracy", "low", "high")]
    assert [float(number) for number in found.groups()] == pytest.approx(ends, abs=0.051)
    for written in (text, page):
        assert not re.search(r"/(home|root|work|tmp|Users)/", written)


def test_readme_says_what_the_card_says() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    shown = re.search(r"<!-- card -->\n(.*)<!-- /card -->", readme, re.DOTALL)
    assert shown
    said = " ".join(shown[1].split())
    card = Card.load(LITE)
    clean = card.accuracy.iloc[0]
    assert f"{_percent(clean)} of {clean['n']} photographs clean" in said
    means = card.accuracy.groupby("perturbation", sort=False).last().iloc[1:]
    mean, worst = 100 * means["accuracy"].mean(), means["accuracy"].idxmin()
    least = 100 * means["accuracy"].min()
    assert f"{mean:.0f} % in the mean over {len(means)} corruptions" in said
    assert f"{least:.0f} % under {worst}" in said
    fifteen = card.errors.set_index("corruptions").loc["fifteen"]
    interval = f"({fifteen['mce_low']:.0f} to {fifteen['mce_high']:.0f})"
    assert f"mCE {fifteen['mce']:.0f} {interval} where AlexNet has 100" in said
    attacked = card.attacks.iloc[-1]
    assert f"{100 * attacked['accuracy']:.0f} % of {attacked['n']} withstand five attacks" in said
    assert len(card.attacks) == 7
    assert card.settings["eps"] * 255 == pytest.approx(1, abs=1e-3)
    assert card.settings["eps_l2"] == 1.75
    gap = card.calibration.set_index("perturbation")["gap"]["all corruptions"]
    assert f"confidence minus accuracy is {100 * gap:+.0f} points" in said


def _percent(row: object) -> str:
    accuracy, low, high = (100 * row[name] for name in ("accuracy", "low", "high"))  # type: ignore[index]
    return f"{accuracy:.1f} % ({low:.1f} to {high:.1f})"
