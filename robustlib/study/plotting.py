"""Figures of the study. Functions take images or tables and return figures; they print nothing.

Names that come from data are shown as they are, whatever characters they hold.
"""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ParamSpec

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from torch import Tensor

from robustlib.analysis.hypotheses import LEVEL, ONE_SEED
from robustlib.analysis.statistics import interval_text, wilson_interval

__all__ = [
    "atlas",
    "claims",
    "heatmap",
    "image_grid",
    "intervals",
    "lines",
    "predictions",
    "scatter",
    "severity_curves",
    "spread",
    "training_curves",
    "use_style",
]

PALETTE = sns.color_palette("colorblind")
MARKERS = "osD^vPX*<>"
_RIGHT, _WRONG = "#00598c", "#a63603"  # told apart by the colour blind, dark enough for small text
_ANNOTATED = 16
_GAP = 0.05  # between images, of their side
_SMALLEST = 1e-5  # p value that is told from smaller ones
_VERDICTS = {
    "supported": ("o", PALETTE[0]),
    "contradicted": ("s", PALETTE[3]),
    "undecided": ("D", (0.45, 0.45, 0.45)),
    ONE_SEED: ("X", (0.7, 0.7, 0.7)),
}
_LONGEST, _TITLE = 40, 80  # characters that a figure has room for in a name, in a title

P = ParamSpec("P")


def _literal(function: Callable[P, Figure]) -> Callable[P, Figure]:
    """A dollar sign in the figure's texts is a dollar sign, and starts no formula."""

    @functools.wraps(function)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Figure:
        # This one alone: rc_context would also undo what a notebook's backend sets when it starts,
        # and later figures would not be shown.
        before = plt.rcParams["text.parse_math"]
        plt.rcParams["text.parse_math"] = False
        try:
            return function(*args, **kwargs)
        finally:
            plt.rcParams["text.parse_math"] = before

    return drawn


def _text(value: object, longest: int = _LONGEST) -> str:
    """A name in one line: shortened in its middle, what the fonts lack written as \\u65e5."""
    known = _characters(tuple(plt.rcParams["font.family"]), tuple(plt.rcParams["font.sans-serif"]))
    shown = "".join(
        character if ord(character) in known else character.encode("unicode_escape").decode()
        for character in " ".join(str(value).split())
        if character.isprintable()
    )
    if len(shown) <= longest:
        return shown
    return f"{shown[: longest // 2]}…{shown[longest // 2 + 1 - longest :]}"


def _axis(name: object) -> str:
    return "" if name is None else _text(name)


def _beyond(names: Iterable[str]) -> int:
    """By how many characters the longest name goes beyond what a figure has room for anyhow."""
    return max(0, max(map(len, names), default=0) - 15)


def _block(label: str, width: int) -> str:
    """The lines of a label, each as `_text` and broken at `width` characters."""
    lines = [line for given in label.splitlines() for line in textwrap.wrap(_text(given), width)]
    return "\n".join(lines)


@functools.cache
def _characters(families: tuple[str, ...], sans_serif: tuple[str, ...]) -> frozenset[int]:
    """What the fonts in use can draw; sans_serif: what that family stands for now."""
    fonts = [get_font(findfont(FontProperties(family=[family]))) for family in families]
    return frozenset().union(*(font.get_charmap() for font in fonts))


def _look(number: int) -> tuple[str, tuple[float, float, float]]:
    """Marker and colour of a line: a pair that none of the hundred lines before it has."""
    colour = (number + number // len(MARKERS)) % len(PALETTE)
    return MARKERS[number % len(MARKERS)], PALETTE[colour]


def _legend(axis: Axes, lines: dict[object, Any]) -> None:
    """A legend beside `axis` of lines by name.

    The names are handed over with the lines: as a line's label, one with a leading underscore
    would be left out.
    """
    if lines:
        names = [_text(name) for name in lines]
        handles = list(lines.values())
        axis.legend(handles, names, fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1))


def use_style() -> None:
    """The look of all figures: a colour-blind safe palette and readable sizes."""
    sns.set_theme(context="notebook", style="whitegrid", palette="colorblind")
    plt.rcParams.update(
        {
            "figure.dpi": 110,
            "savefig.bbox": "tight",
            "font.size": 10,
            "axes.titlesize": 11,
            "axes.labelsize": 10,
            "xtick.labelsize": 9,
            "ytick.labelsize": 9,
        }
    )


@_literal
def image_grid(
    rows: Sequence[Tensor],
    *,
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
    title: str = "",
    size: float = 1.0,
) -> Figure:
    """Images in a grid.

    Args:
        rows: each float32 (N, 3, H, W) in [0, 1], all with the same N.
        row_labels: written to the left of the rows; a label may have several lines.
        column_labels: written above the columns, likewise; long ones are broken.
        title: written above everything.
        size: side of an image in inches.
    """
    columns, cell = len(rows[0]), 1 - _GAP
    above = [_block(label, max(8, int(13 * size))) for label in column_labels]
    lines = max((label.count("\n") for label in above), default=0)
    width = columns * size + (1.5 if row_labels else 0)
    figure, axis = plt.subplots(
        figsize=(width, len(rows) * size + 0.3 + 0.16 * lines), layout="constrained"
    )
    for row, images in enumerate(rows):
        for column, image in enumerate(images):  # one axes for all: one each takes seconds
            pixels = image.permute(1, 2, 0).cpu().numpy()
            place = (column, column + cell, row + cell, row)
            axis.imshow(pixels, interpolation="nearest", extent=place)
    axis.set(xlim=(0, columns - _GAP), ylim=(len(rows) - _GAP, 0))
    centre = cell / 2
    axis.set_xticks([i + centre for i in range(len(above))], above, fontsize=9)
    beside = [_block(label, 20) for label in row_labels]
    axis.set_yticks([i + centre for i in range(len(beside))], beside, fontsize=9)
    axis.tick_params(length=0, top=False, labeltop=True, labelbottom=False)
    axis.grid(visible=False)
    axis.set_frame_on(False)
    if title:
        figure.suptitle(_text(title, _TITLE), fontsize=11)
    return figure


@_literal
def predictions(
    rows: Sequence[Tensor],
    said: pd.DataFrame,
    *,
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
    size: float = 1.25,
) -> Figure:
    """Images in a grid, and below each what models say of it: a tick or a cross, class, confidence.

    Args:
        rows: each float32 (N, 3, H, W) in [0, 1], all with the same N.
        said: a row for each prediction: row and column, the image's place in the grid, from 0;
            model; predicted, the class; confidence, 0 to 1; right, whether it is the true class.
            An image may go without.
        row_labels: written to the left of the rows, at the images.
        column_labels: written above the columns; long ones are broken.
        size: side of an image in inches.
    """
    columns, cell, line = len(rows[0]), 1 - _GAP, 0.16 / size
    speakers = [list(said.loc[said["row"] == row, "model"].unique()) for row in range(len(rows))]
    heights = [1 + (line * (len(names) + 0.6) if names else 0) for names in speakers]
    tops = np.cumsum([0.0, *heights])
    above = [_block(label, max(8, int(13 * size))) for label in column_labels]
    lines = max((label.count("\n") for label in above), default=0)
    figure, axis = plt.subplots(
        figsize=(columns * size + 1.3, tops[-1] * size + 0.3 + 0.16 * lines), layout="constrained"
    )
    for top, images in zip(tops[:-1], rows, strict=True):
        for column, image in enumerate(images):
            pixels = image.permute(1, 2, 0).cpu().numpy()
            place = (column, column + cell, top + cell, top)
            axis.imshow(pixels, interpolation="nearest", extent=place)
    for entry in said.to_dict("records"):
        row = entry["row"]
        axis.text(
            entry["column"] + cell / 2,
            tops[row] + cell + line * (speakers[row].index(entry["model"]) + 0.7),
            f"{'✓' if entry['right'] else '✗'} {_text(entry['predicted'], 14)} "
            f"{100 * entry['confidence']:.0f} %",
            color=_RIGHT if entry["right"] else _WRONG,
            fontsize=8.5,
            ha="center",
            va="center",
        )
    beside = [
        (top + cell / 2, _block(label, 20)) for top, label in zip(tops, row_labels, strict=False)
    ]
    beside += [
        (top + cell + line * (number + 0.7), _text(name))
        for top, names in zip(tops[:-1], speakers, strict=True)
        for number, name in enumerate(names)
    ]
    axis.set(xlim=(0, columns - _GAP), ylim=(tops[-1], 0))
    axis.set_xticks([i + cell / 2 for i in range(len(above))], above, fontsize=9)
    axis.set_yticks([place for place, _ in beside], [label for _, label in beside], fontsize=8.5)
    axis.tick_params(length=0, top=False, labeltop=True, labelbottom=False)
    axis.grid(visible=False)
    axis.set_frame_on(False)
    return figure


@_literal
def severity_curves(table: pd.DataFrame) -> Figure:
    """Accuracy of one model by severity, a panel for each family, with 95 % Wilson intervals.

    Args:
        table: tidy table of one model, clean rows included; attacks are left out.
    """
    clean = float(table.loc[table["family"] == "clean", "accuracy"].mean())
    common = table[~table["family"].isin(["clean", "adversarial"])]
    families = list(dict.fromkeys(common["family"]))
    columns = min(3, max(1, len(families)))
    rows = max(1, -(-len(families) // columns))
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(3.6 * columns, 3.3 * rows),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axis in axes.flat[len(families) :]:
        axis.set_visible(False)
    for axis, family in zip(axes.flat, families, strict=False):
        axis.axhline(clean, color="0.4", linestyle="--", linewidth=1)
        members = common[common["family"] == family].groupby("perturbation", sort=False)
        drawn = []
        for number, (_, group) in enumerate(members):
            low, high = wilson_interval(group["accuracy"].to_numpy(), group["n"].to_numpy())
            marker, colour = _look(number)
            drawn += axis.plot(group["severity"], group["accuracy"], marker=marker, color=colour)
            axis.fill_between(group["severity"], low, high, color=colour, alpha=0.15)
        axis.set_title(_text(family))
        axis.set_ylim(0, 1)
        axis.set_xticks(sorted(common["severity"].unique()))
        axis.legend(drawn, [_text(name) for name, _ in members], fontsize=7.5, loc="lower left")
    figure.supxlabel("severity", fontsize=10)
    figure.supylabel("accuracy (dashed: clean)", fontsize=10)
    return figure


@_literal
def heatmap(
    values: pd.DataFrame,
    *,
    title: str,
    label: str,
    diverging: bool = False,
    limit: float | None = None,
    digits: int = 2,
) -> Figure:
    """A labelled matrix, with its values written in up to `_ANNOTATED` columns; NaN stays empty.

    Args:
        values: the matrix.
        title: of the figure.
        label: of the colour bar.
        diverging: colours centred on zero, for signed values.
        limit: value at the end of the colour scale; default the largest magnitude.
        digits: decimals written.
    """
    largest = float(np.nanmax(np.abs(values.to_numpy()), initial=1e-9))
    top = limit if limit is not None else largest
    values = values.rename(index=_text, columns=_text).rename_axis(index=_axis, columns=_axis)
    width = 2.4 + 0.72 * values.shape[1] + 0.075 * _beyond(values.index)
    height = 1.9 + 0.42 * values.shape[0] + 0.05 * _beyond(values.columns)
    figure, axis = plt.subplots(figsize=(width, height), layout="constrained")
    sns.heatmap(
        values,
        ax=axis,
        annot=values.shape[1] <= _ANNOTATED,
        fmt=f".{digits}f",
        annot_kws={"fontsize": 8},
        cmap="RdBu" if diverging else "viridis",
        vmin=-top if diverging else 0,
        vmax=top,
        linewidths=0.5,
        cbar_kws={"label": label},
    )
    axis.set_title(_text(title, _TITLE))
    axis.grid(visible=False)
    plt.setp(axis.get_xticklabels(), rotation=40, ha="right", rotation_mode="anchor")
    plt.setp(axis.get_yticklabels(), rotation=0)
    return figure


@_literal
def atlas(
    overlap: pd.DataFrame, *, tree: np.ndarray, title: str, height: float | None = None
) -> Figure:
    """A clustered matrix of overlaps beside its dendrogram; NaN cells stay grey.

    Args:
        overlap: symmetric, many corruptions; drawn in the order of the tree's leaves.
        tree: linkage of its rows, as from `robustlib.analysis.clusters.hierarchy`.
        title: of the figure.
        height: of a common vertical line through the dendrogram, an overlap; default none.
    """
    from scipy.cluster.hierarchy import dendrogram  # late, for its seconds

    side = 2.2 + 0.2 * len(overlap)
    figure, (left, right) = plt.subplots(
        1,
        2,
        figsize=(side + 1.6, side),
        layout="constrained",
        gridspec_kw={"width_ratios": [1, 5], "wspace": 0.01},
    )
    with plt.rc_context({"lines.linewidth": 1.0}):
        drawn = dendrogram(
            tree,
            ax=left,
            orientation="left",
            no_labels=True,
            color_threshold=0,
            above_threshold_color="0.3",
        )
    order = [int(leaf) for leaf in drawn["leaves"]]
    left.invert_yaxis()
    ends = [0.0, 0.5, 1.0]
    left.set_xticks(ends, [f"{1 - end:g}" for end in ends])
    left.set_xlabel("mean overlap")
    left.grid(visible=False)
    if height is not None:
        left.axvline(1 - height, color=PALETTE[3], linestyle="--", linewidth=1)
    for edge in ("left", "right", "top"):
        left.spines[edge].set_visible(False)
    shown = overlap.iloc[order, order]
    colours = plt.get_cmap("viridis").with_extremes(bad="0.85")
    image = right.imshow(
        np.ma.masked_invalid(shown.to_numpy(dtype=float)),
        vmin=0,
        vmax=1,
        cmap=colours,
        aspect="auto",
    )
    names = [_text(name) for name in shown.index]
    right.set_xticks(range(len(names)), names, rotation=90, fontsize=7.5)
    right.set_yticks(range(len(names)), names, fontsize=7.5)
    right.yaxis.tick_right()
    right.grid(visible=False)
    figure.colorbar(image, ax=right, location="top", shrink=0.4, label="overlapping score")
    figure.suptitle(_text(title, _TITLE), fontsize=11)
    return figure


@_literal
def intervals(
    table: pd.DataFrame,
    *,
    value: str,
    label: str,
    item: str = "perturbation",
    group: str | None = None,
    reference: float = 0.0,
) -> Figure:
    """Values with intervals as dots and bars, one line an item.

    Args:
        table: columns `item`, `value`, "low", "high", and `group` if given; bars with an infinite
            end reach to the edge.
        value: column of the values.
        label: of the value axis.
        item: column that names the lines.
        group: column told apart by colour and marker.
        reference: where to draw a vertical line.
    """
    ends = table[["low", "high"]].to_numpy(dtype=float)
    if np.isinf(ends).any():
        known = np.concatenate([ends[np.isfinite(ends)], table[value].to_numpy(dtype=float)])
        edges = np.nanmin(known), np.nanmax(known)
        table = table.assign(low=ends[:, 0].clip(edges[0]), high=ends[:, 1].clip(None, edges[1]))
    items = list(dict.fromkeys(table[item]))
    groups = list(dict.fromkeys(table[group])) if group else [None]
    shared = bool(table[item].duplicated().any())
    height = 0.16 + 0.08 * (len(groups) if shared else 1)
    figure, axis = plt.subplots(figsize=(7.5, 1.1 + height * len(items)), layout="constrained")
    axis.axvline(reference, color="0.3", linewidth=1)
    drawn: dict[object, Any] = {}
    for number, name in enumerate(groups):
        rows = table if group is None else table[table[group] == name]
        offset = 0.6 * (number / max(1, len(groups) - 1) - 0.5) if shared else 0.0
        positions = np.array([items.index(entry) for entry in rows[item]]) + offset
        marker, colour = _look(number)
        drawn[name] = axis.errorbar(
            rows[value],
            positions,
            xerr=[rows[value] - rows["low"], rows["high"] - rows[value]],
            fmt=marker,
            color=colour,
            markersize=5,
            capsize=2,
            linewidth=1.2,
        )
    axis.set_yticks(range(len(items)), [_text(entry) for entry in items])
    axis.set_ylim(len(items) - 0.4, -0.6)
    axis.grid(axis="y", visible=False)
    axis.set_xlabel(label)
    if group:
        _legend(axis, drawn)
    return figure


@_literal
def spread(
    table: pd.DataFrame,
    *,
    value: str,
    group: str,
    marks: pd.DataFrame,
    mark: str,
    label: str,
) -> Figure:
    """How values spread in each group, one line a group, and where marked ones lie.

    A thin line reaches from the smallest to the largest value, a thick one from the 10th to the
    90th percentile, with a tick at the median.

    Args:
        table: columns `group` and `value`, one row a value.
        value: column of the values.
        group: column that names the lines.
        marks: columns `group`, `value` and `mark`, one row a mark.
        mark: column told apart by colour and marker.
        label: of the value axis.
    """
    groups = list(dict.fromkeys(table[group]))
    kinds = list(dict.fromkeys(marks[mark]))
    figure, axis = plt.subplots(figsize=(8.5, 1.2 + 0.75 * len(groups)), layout="constrained")
    for line, name in enumerate(groups):
        ends = np.nanpercentile(table.loc[table[group] == name, value], [0, 10, 50, 90, 100])
        axis.hlines(line, ends[0], ends[4], color="0.6", linewidth=1)
        axis.hlines(line, ends[1], ends[3], color="0.75", linewidth=7)
        axis.plot([ends[2]], [line], "|", color="0.2", markersize=14)
    drawn: dict[object, Any] = {}
    for number, kind in enumerate(kinds):
        rows = marks[marks[mark] == kind]
        offset = 0.3 * (number / max(1, len(kinds) - 1) - 0.5)
        marker, colour = _look(number)
        places = [groups.index(name) + offset for name in rows[group]]
        (drawn[kind],) = axis.plot(rows[value], places, marker, color=colour, markersize=7)
    axis.set_yticks(range(len(groups)), [f"{_text(group)} {_text(name)}" for name in groups])
    axis.set_ylim(len(groups) - 0.5, -0.5)
    axis.grid(axis="y", visible=False)
    axis.set_xlabel(label)
    _legend(axis, drawn)
    return figure


def training_curves(histories: dict[str, list[dict[str, float]]]) -> Figure:
    """Training loss and accuracy by epoch, a line for each model.

    Args:
        histories: `TrainedModel.history` by name.
    """
    table = pd.concat(
        [pd.DataFrame(history).assign(model=name) for name, history in histories.items()]
    )
    long = table.melt(["model", "epoch"], ["loss", "accuracy"], "measure", "value")
    names = {"loss": "mean training loss", "accuracy": "accuracy on training images"}
    return lines(
        long.replace({"measure": names}),
        x="epoch",
        y="value",
        group="model",
        panel="measure",
        xlabel="epoch",
        share_y=False,
    )


@_literal
def lines(
    table: pd.DataFrame,
    *,
    x: str,
    y: str,
    group: str,
    xlabel: str,
    ylabel: str = "",
    panel: str | None = None,
    share_y: bool = True,
    reference: float | None = None,
) -> Figure:
    """Lines with markers, side by side in panels; a band from "low" to "high" where given.

    Args:
        table: columns `x`, `y`, `group`, `panel` if given, and perhaps "low" and "high".
        x: column of the horizontal axis.
        y: column of the vertical axis.
        group: column that names the lines.
        xlabel: axis label.
        ylabel: axis label; without one, each panel's title stands for it.
        panel: column that names the panels, at most three to a row.
        share_y: one vertical scale for all panels.
        reference: where to draw a horizontal line; default none.
    """
    panels = list(dict.fromkeys(table[panel])) if panel else [""]
    groups = list(dict.fromkeys(table[group]))
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(7 if columns == 1 else 3.6 * columns + 1.2, 3.4 * rows),
        sharey=share_y,
        squeeze=False,
        layout="constrained",
    )
    drawn: dict[object, Any] = {}
    for axis, title in zip(axes.flat, panels, strict=False):
        part = table[table[panel] == title] if panel else table
        if reference is not None:
            axis.axhline(reference, color="0.3", linewidth=1)
        for number, name in enumerate(groups):
            line = part[part[group] == name].sort_values(x)
            marker, colour = _look(number)
            (drawn[name],) = axis.plot(
                line[x], line[y], marker=marker, markersize=4.5, color=colour
            )
            if "low" in line:
                axis.fill_between(line[x], line["low"], line["high"], color=colour, alpha=0.15)
        axis.set_title(_text(title))
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    figure.supxlabel(xlabel, fontsize=10)
    axes[0, 0].set_ylabel(ylabel)
    _legend(axes[0, columns - 1], drawn)
    return figure


@_literal
def scatter(table: pd.DataFrame, *, x: str, y: str, xlabel: str, ylabel: str, title: str) -> Figure:
    """One labelled point a row, the index naming it.

    Args:
        table: columns `x` and `y`.
        x: column of the horizontal axis.
        y: column of the vertical axis.
        xlabel: axis label.
        ylabel: axis label.
        title: of the figure.
    """
    figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
    drawn: dict[object, Any] = {}
    for number, (name, row) in enumerate(table.iterrows()):
        marker, colour = _look(number)
        (drawn[name],) = axis.plot(row[x], row[y], marker, color=colour, markersize=8)
    axis.set_xlabel(xlabel)
    axis.set_ylabel(ylabel)
    axis.set_title(_text(title, _TITLE))
    _legend(axis, drawn)
    return figure


@_literal
def claims(table: pd.DataFrame, *, title: str = "") -> Figure:
    """How clear each claim is: supported to the right of the band, contradicted to its left.

    The axis is p after Holm's correction, on a logarithmic scale to both sides; the band is what
    the 5 % level leaves undecided. p values below 10⁻⁵ are drawn there. Value and interval stand
    beside each.

    Args:
        table: a row a claim, as from `analysis.hypotheses_table`.
        title: of the figure.
    """
    strength = -np.log10(table["p_holm"].fillna(1).clip(_SMALLEST, 1))
    holds = (table["value"] > table["above"]) & (table["value"] < table["below"])
    shared = table["statement"].duplicated(keep=False)
    labels = [
        "\n".join(_text(part, _TITLE) for part in parts[: 1 + both])
        for *parts, both in zip(table["statement"], table["measure"], shared, strict=True)
    ]
    heights = np.array([0.15 * (1 + label.count("\n")) + 0.12 for label in labels])
    edges = np.cumsum([0, *heights])
    places = edges[1:] - heights / 2
    figure, axis = plt.subplots(figsize=(11.5, 0.9 + edges[-1]), layout="constrained")
    band = -np.log10(LEVEL)
    axis.axvspan(-band, band, color="0.93", zorder=0)
    drawn: dict[str, Any] = {}
    x = np.where(holds, strength, -strength)
    for verdict, (marker, colour) in _VERDICTS.items():
        mine = (table["verdict"] == verdict).to_numpy()
        if mine.any():
            drawn[verdict] = axis.scatter(x[mine], places[mine], marker=marker, color=colour, s=40)
    for place, row in zip(places, table.to_dict("records"), strict=True):
        text = f"{row['value']:.3f} ({interval_text(row['low'], row['high'])})"
        across = axis.get_yaxis_transform()
        axis.text(1.02, place, text, transform=across, va="center", fontsize=8)
    for edge in edges[:-1][table["paper"].ne(table["paper"].shift())]:
        axis.axhline(edge, color="0.8", linewidth=1)
    axis.set(xlim=(-5.3, 5.3), ylim=(edges[-1], 0), yticks=places)
    axis.set_yticklabels(labels, fontsize=8)
    axis.set_xticks([-4, -2, 0, 2, 4], ["10⁻⁴", "0.01", "1", "0.01", "10⁻⁴"])
    axis.set_xlabel("← against the claim        p, by Holm        for the claim →")
    axis.grid(visible=False, axis="y")
    axis.set_title(_text(title, _TITLE))
    figure.legend(
        list(drawn.values()), list(drawn), loc="outside upper center", ncols=4, fontsize=8
    )
    return figure
