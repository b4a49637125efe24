"""The page of a card: one HTML file that holds its pictures and fetches nothing."""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from robustlib.card.card import Card
from robustlib.evaluation import masking_verdict
from robustlib.pages.skeleton import page

_ALT = {
    "accuracy": "Accuracy under each corruption, with 95 % intervals",
    "calibration": "Reliability diagram, clean and corrupted",
    "failures": "Images that the model gets right clean and wrong corrupted",
    "beside": "Mean accuracy over fifteen corruptions, beside other models",
    "gains": "Accuracy gained over the other model, by perturbation",
}
_NOT_FIFTEEN = "The fifteen corruptions of ImageNet-C weren't all measured"


def card_page(card: Card, figures: Mapping[str, Figure]) -> str:
    """HTML of a card and its pictures, as from `robustlib.card.figures`."""
    drawn = {name: picture(figure, _ALT[name]) for name, figure in figures.items()}
    title = f"Report card: {card.name}"
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        _items(_summary(card)),
        *(_warning(slip) for slip in card.slips),
        "<h2>Advice</h2>",
        _items(card.advice),
        "<h2>Common corruptions</h2>",
        drawn["accuracy"],
        _accuracy(card),
        "<h2>Which mCE?</h2>",
        *_mce(card),
        "<h2>Few corruptions for many</h2>",
        *_few(card),
        "<h2>Can its confidence be trusted?</h2>",
        drawn["calibration"],
        *_calibration(card),
        "<h2>Attacks</h2>",
        *_attacks(card),
        "<h2>What it fails on</h2>",
        drawn.get("failures", ""),
        *_failures(card),
        "<h2>Beside others</h2>",
        *_beside(card, drawn),
        "<h2>How it was made</h2>",
        *_made(card),
    ]
    return page(title, "\n".join(parts))


def write_card(card: Card, figures: Mapping[str, Figure], folder: str | Path) -> Path:
    """Write `<name>.json` and `<name>.html`; returns the page's path."""
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    name = file_name(card.name)
    card.save(place / f"{name}.json")
    path = place / f"{name}.html"
    path.write_text(card_page(card, figures), "utf-8")
    return path


def file_name(name: str) -> str:
    """A model's name as that of a file, without what file systems mind."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "model"


def comparison_page(gains: pd.DataFrame, figure: Figure, first: str, second: str) -> str:
    """HTML of what `robustlib.card.comparison.compare` found of two models of these names."""
    title = f"{second} over {first}"
    text = (
        f"Points of accuracy that {second} gains over {first} on the same images, with 95 % "
        "intervals over images, each alone. Of these two models: models of the same kind, trained "
        "from another seed, could differ otherwise."
    )
    rows = pd.DataFrame(
        {
            "perturbation": gains["perturbation"],
            "gain (95 %)": [_with_ends(row, "gain", "low", "high") for _, row in gains.iterrows()],
            "images": gains["n"],
        }
    )
    drawn = picture(figure, _ALT["gains"])
    parts = [f"<h1>{html.escape(title)}</h1>", _paragraph(text), drawn, table(rows)]
    return page(title, "\n".join(parts))


def picture(figure: Figure, alt: str) -> str:
    """The figure, which is closed, as an image within HTML."""
    held = io.BytesIO()
    figure.savefig(held, format="png", dpi=110, metadata={"Software": None})
    plt.close(figure)
    data = base64.b64encode(held.getvalue()).decode()
    return f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{data}">'


def table(frame: pd.DataFrame) -> str:
    """A frame of texts and numbers as HTML."""
    return frame.to_html(index=False, border=0, na_rep="", escape=True)


def _items(lines: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in lines) + "</ul>"


def _paragraph(text: str) -> str:
    return f"<p>{html.escape(text)}</p>"


def _warning(slip: Mapping[str, str]) -> str:
    text = html.escape(f"{slip['found']} {slip['advice']}")
    return f'<p class="failure"><b>Careful.</b> {text}</p>'


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _with_ends(row: pd.Series, name: str, low: str, high: str, scale: float = 1) -> str:
    if not pd.notna(row[name]):
        return ""
    ends = f"({scale * row[low]:.1f} to {scale * row[high]:.1f})"
    return f"{scale * row[name]:.1f} {ends}".replace(" ", "\N{NO-BREAK SPACE}")


def _summary(card: Card) -> list[str]:
    clean = card.accuracy.iloc[0]
    corrupted = _by_corruption(card)["accuracy"]
    lines = [
        f"Clean: {_with_ends(clean, 'accuracy', 'low', 'high', 100)} % of {clean['n']} images are "
        "right.",
        f"Corrupted: {_percent(corrupted.mean())} % in the mean over {len(corrupted)} corruptions; "
        f"worst under {corrupted.idxmin()}, {_percent(corrupted.min())} %.",
    ]
    if len(card.attacks):
        worst = card.attacks.iloc[-1]
        lines.append(
            f"Attacked: {_with_ends(worst, 'accuracy', 'low', 'high', 100)} % of {worst['n']} "
            "images withstand every attack."
        )
    return lines


def _by_corruption(card: Card) -> pd.DataFrame:
    """A row for each corruption, severities averaged."""
    return card.accuracy.groupby("perturbation", sort=False).last().iloc[1:]


def _accuracy(card: Card) -> str:
    means = _by_corruption(card)
    rows = pd.DataFrame(
        {
            "corruption": means.index,
            "family": means["family"].to_numpy(),
            "mean (95 %)": [
                _with_ends(row, "accuracy", "low", "high", 100) for _, row in means.iterrows()
            ],
        }
    )
    cells = card.accuracy[card.accuracy["severity"] > 0]
    for severity, part in cells.groupby("severity"):
        column = part.set_index("perturbation")["accuracy"].loc[means.index]
        rows[f"severity {severity}"] = [_percent(value) for value in column]
    return _paragraph("Accuracy in percent.") + table(rows)


def _mce(card: Card) -> list[str]:
    if not len(card.errors):
        return [_paragraph(f"{_NOT_FIFTEEN}: no mCE.")]
    rows = pd.DataFrame({"corruptions": card.errors["corruptions"]})
    for name, words in (
        ("mean_error", "mean error"),
        ("mce", "mCE"),
        ("relative_mce", "relative mCE"),
    ):
        rows[words] = [
            _with_ends(row, name, f"{name}_low", f"{name}_high")
            for _, row in card.errors.iterrows()
        ]
    severities = ", ".join(map(str, card.settings["severities"]))
    by = (
        f"The divisor is the error of {card.reference} at the same severities ({severities})."
        if card.reference
        else "Nobody's errors divide, so there is no mCE: name a reference, such as another card."
    )
    text = (
        "In percent, less is better. ImageNet-C has fifteen corruptions and four more; papers "
        "mostly mean the fifteen. mCE divides each corruption's error by that of a reference "
        "before the mean; the relative form subtracts the clean errors first. " + by
    )
    if card.reference and card.errors["mce"].isna().any():
        text += " Where a cell is empty, the reference's errors at these severities aren't known."
    return [_paragraph(text), table(rows)]


def _few(card: Card) -> list[str]:
    if not card.few_says:
        return [_paragraph(f"{_NOT_FIFTEEN}.")]
    says = {name: _percent(value) for name, value in card.few_says.items()}
    text = (
        "By the overlaps of the atlas of record, these stand for the fifteen, each for the share "
        f"in its weight. They say {says['predicted']} % for the mean over the fifteen; measured "
        f"are {says['measured']} %. On public models such a prediction missed by "
        f"{says['usual_miss']} points (root mean square), less than {says['better_than']} % of "
        "all choices of as many."
    )
    rows = card.few.assign(
        weight=[f"{weight:.2f}" for weight in card.few["weight"]],
        accuracy=[_percent(value) for value in card.few["accuracy"]],
    )
    return [_paragraph(text), table(rows)]


def _calibration(card: Card) -> list[str]:
    text = (
        "ECE: expected calibration error, 15 bins, in points; beside it what a calibrated model "
        "would show by chance with as many images. Gap: confidence minus accuracy in points, "
        "above 0 where the model is too sure. NLL: negative log-likelihood in nats. Brier: 0 to "
        "2. Of all but the gap less is better."
    )
    found = card.calibration
    rows = pd.DataFrame(
        {
            "images": found["perturbation"],
            "ECE": [_percent(value) for value in found["ece"]],
            "by chance": [_percent(value) for value in found["ece_if_calibrated"]],
            "gap": [f"{100 * value:+.1f}" for value in found["gap"]],
            "NLL": [f"{value:.2f}" for value in found["nll"].astype(float)],
            "Brier (95 %)": [
                f"{row.brier:.3f} ({row.low:.3f} to {row.high:.3f})" for row in found.itertuples()
            ],
        }
    )
    return [_paragraph(text), table(rows)]


def _attacks(card: Card) -> list[str]:
    if not len(card.attacks):
        return [_paragraph("No image was attacked: that takes --attacked and a larger --budget.")]
    found = card.attacks
    radii = [
        "" if not norm else f"{255 * eps:g}/255" if norm == "Linf" else f"{eps:g}"
        for norm, eps in zip(found["norm"], found["eps"], strict=True)
    ]
    rows = pd.DataFrame(
        {
            "attack": found["attack"],
            "norm": found["norm"],
            "radius": radii,
            "right in percent (95 %)": [
                _with_ends(row, "accuracy", "low", "high", 100) for _, row in found.iterrows()
            ],
            "images": found["n"],
        }
    )
    parts = [_paragraph("Right both clean and attacked."), table(rows)]
    if len(card.sanity):
        verdict = masking_verdict(card.sanity).iloc[0]
        checks = pd.DataFrame(
            {
                "check": card.sanity["check"],
                "value": card.sanity["value"].map("{:.2f}".format),
                "expected": [
                    f"{row.expected} {row.reference:.2f}" for row in card.sanity.itertuples()
                ],
                "passed": card.sanity["passed"].map({True: "yes", False: "no"}),
            }
        )
        parts += [
            _paragraph(
                f"Do attacks fail for lack of a gradient? {verdict['verdict'].capitalize()}, on "
                f"{card.settings['checked']} images."
            ),
            table(checks),
        ]
    return parts


def _failures(card: Card) -> list[str]:
    if not len(card.failures):
        return [_paragraph("No image was right clean and wrong corrupted.")]
    found = card.failures
    rows = pd.DataFrame(
        {
            "image": [row.file or row.image for row in found.itertuples()],
            "right clean": found["label"],
            "sure": [_percent(value) for value in found["clean_confidence"]],
            "corruption": found["corruption"],
            "named instead": found["predicted"],
            "as sure": [_percent(value) for value in found["confidence"]],
        }
    )
    text = (
        f"Right clean, and most surely wrong at severity {found['severity'].iloc[0]}, each under "
        "another corruption; confidence in percent."
    )
    return [_paragraph(text), table(rows)]


def _beside(card: Card, drawn: Mapping[str, str]) -> list[str]:
    if not len(card.beside):
        return [_paragraph(f"{_NOT_FIFTEEN}: no mean to compare.")]
    if "beside" not in drawn:
        return [_paragraph("No published models of the same data were named to stand beside.")]
    severities = ", ".join(map(str, card.settings["severities"]))
    stored = card.settings["stored"]
    made = f"the files in {stored}" if stored else "corruptions as this library makes them"
    text = (
        f"This card: {card.images['n']} images, severities {severities}, {made}. Published: all "
        "test images, severities 1 to 5, the files of the original benchmark. Images here may be "
        "easier or harder than those: compare the clean accuracies first, and don't make much of "
        "a few points."
    )
    return [_paragraph(text), drawn["beside"]]


def _made(card: Card) -> list[str]:
    settings = {**card.settings, "eps": f"{255 * card.settings['eps']:g}/255"}
    facts = {
        "model": f"{card.model['architecture']}, {card.model['parameters']:,} parameters, "
        f"{card.model['outputs']} classes, {card.model['image_size']} px",
        "images": f"{card.images['n']} of {card.images['of']}, {card.images['classes']} classes",
        "notes": " ".join([*card.model["notes"], *card.images["notes"]]),
        **{name: _listed(value) for name, value in {**settings, **card.provenance}.items()},
    }
    rows = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(str(value))}</td></tr>"
        for name, value in facts.items()
        if value not in ("", "None")
    )
    return [f'<table class="facts">{rows}</table>']


def _listed(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
