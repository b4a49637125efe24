"""A few lines of plain advice, computed from a card's numbers and the atlas of record."""

from __future__ import annotations

import pandas as pd

from robustlib.card.measure import Measured
from robustlib.card.summary import calibration, hardest, record_table
from robustlib.evaluation import MASKED, masking_verdict

_WEAK = 2  # corruptions that are spoken of
_HELPED = 3  # others that training with one of them helped, or harmed
_SURE = 0.05  # of confidence above accuracy, what is called too sure
_LITTLE = 5  # points of accuracy lost to a corruption, from which on it is weak
_GAIN = 2  # points of accuracy, from which on training helped or harmed
_STANDARD = "standard"


def advice(measured: Measured) -> list[str]:
    """Sentences on what is weak, and on what the study's results let expect to help.

    What training with a corruption helps or harms is taken from the atlas of record: small
    networks on CIFAR-10. That it holds for another network and other images isn't known.
    """
    return [*_weak_spots(measured), *_confidence(measured), *_attacks(measured)]


def _weak_spots(measured: Measured) -> list[str]:
    sentences = []
    for name, points in list(hardest(measured).items())[:_WEAK]:
        if points > _LITTLE:
            sentence = f"Weak against {name}: {points:.0f} points below clean."
            sentences.append(sentence + _by_the_atlas(str(name)))
    if not sentences:
        sentences.append(f"No corruption that was measured costs more than {_LITTLE} points.")
    return sentences


def _by_the_atlas(name: str) -> str:
    """What training with a corruption did in the atlas of record; nothing if it isn't there."""
    gains = _gains(name)
    if gains is None:
        return ""
    if gains[name] < _GAIN:
        return " In the atlas (small networks, CIFAR-10), training with it gained next to nothing."
    others = gains.drop(name)
    helped = others[others > _GAIN].nlargest(_HELPED)
    harmed = others[others < -_GAIN].nsmallest(_HELPED)
    sentence = (
        " In the atlas (small networks, CIFAR-10), training with it gained "
        f"{gains[name]:.0f} points on it"
    )
    for words, part in (("helped also against", helped), ("harmed", harmed)):
        if len(part):
            sentence += f", {words} {_points(part)}"
    return sentence + "."


def _gains(name: str) -> pd.Series[float] | None:
    """Points of accuracy that training with a perturbation gained, by perturbation."""
    table = record_table("overlap_accuracy")
    if table is None or name not in set(table["model"]):
        return None
    accuracy = table.set_index("model").T
    gains = 100 * (accuracy[name] - accuracy[_STANDARD])
    return gains.drop("clean").rename({"adversarial": "attacks"}).astype(float)


def _points(gains: pd.Series[float]) -> str:
    return ", ".join(f"{name} ({value:+.0f})" for name, value in gains.items())


def _confidence(measured: Measured) -> list[str]:
    gap = calibration(measured).set_index("perturbation")["gap"]
    clean, corrupted = gap["clean"], gap["all corruptions"]
    if corrupted > _SURE:
        return [
            f"Too sure where images are corrupted: its confidence is {100 * corrupted:.0f} points "
            f"above its accuracy there (clean: {100 * clean:+.0f}). Don't read it as a probability."
        ]
    return [f"Under corruptions, confidence minus accuracy is {100 * corrupted:+.0f} points."]


def _attacks(measured: Measured) -> list[str]:
    if measured.attacked is None:
        return []
    clean, *rest = measured.attacked.correct
    least = float(measured.attacked.correct.all(axis=0).mean())
    sentences = []
    if rest and least < 0.1 * clean.mean():
        sentence = (
            f"Attacks leave {100 * least:.0f} % at a radius of "
            f"{255 * measured.protocol.radius:g}/255, as they do of most models that weren't "
            "trained against them."
        )
        gains = _gains("adversarial")
        if gains is not None:
            best, worst = gains.drop("attacks").nlargest(2), gains.nsmallest(2)
            sentence += (
                f" In the atlas, adversarial training helped most against {_points(best)} and "
                f"least against {_points(worst)}."
            )
        sentences.append(sentence)
    if measured.sanity is not None:
        verdict = masking_verdict(measured.sanity).iloc[0]
        if verdict["verdict"] == MASKED:
            sentences.append(
                f"Its robustness to attacks {MASKED} ({verdict['failed']}): attacks may fail for "
                "lack of a gradient, so don't trust these numbers."
            )
    return sentences
