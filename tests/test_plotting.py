"""Figures are drawn for ordinary and for degenerate tables; their looks are reviewed by eye."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.text import Text

from robustlib.analysis import clusters
from robustlib.study import plotting


@pytest.fixture(autouse=True)
def _close() -> Iterator[None]:
    plt.switch_backend("agg")
    yield
    plt.close("all")


def texts(shown: Iterable[Text]) -> list[str]:
    return [text.get_text() for text in shown]


def labels(axis: plt.Axes) -> list[str]:
    return texts(axis.get_legend().get_texts())


def test_image_grid_shows_every_image_under_its_labels() -> None:
    rows = [torch.rand(3, 3, 8, 8), torch.rand(3, 3, 8, 8)]
    figure = plotting.image_grid(
        rows, row_labels=["a", "b"], column_labels=["x", "y", "z"], title="t"
    )
    (axis,) = figure.axes
    shown = axis.get_images()
    assert len(shown) == 6
    np.testing.assert_allclose(shown[4].get_array(), rows[1][1].permute(1, 2, 0).numpy())
    left, right, bottom, top = shown[4].get_extent()
    ticks = dict(zip(texts(axis.get_xticklabels()), axis.get_xticks(), strict=True))
    assert list(ticks) == ["x", "y", "z"]
    assert left < ticks["y"] < right
    ticks = dict(zip(texts(axis.get_yticklabels()), axis.get_yticks(), strict=True))
    assert list(ticks) == ["a", "b"]
    assert top < ticks["b"] < bottom


def test_predictions_stand_below_their_image_and_at_the_height_of_their_model() -> None:
    rows = [torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8)]
    columns = ["row", "column", "model", "predicted", "confidence", "right"]
    entries = [
        (0, 0, "plain", "cat", 0.9, True),
        (0, 1, "plain", "dog", 0.4, False),
        (0, 0, "robust", "cat", 1.0, True),
        (1, 1, "robust", "cat", 0.5, True),
    ]
    figure = plotting.predictions(
        rows,
        pd.DataFrame(entries, columns=columns),
        row_labels=["a", "b"],
        column_labels=["x", "y"],
    )
    figure.canvas.draw()
    (axis,) = figure.axes
    words = ["✓ cat 90 %", "✗ dog 40 %", "✓ cat 100 %", "✓ cat 50 %"]
    assert texts(axis.texts) == words
    right, wrong = axis.texts[0].get_color(), axis.texts[1].get_color()
    assert [text.get_color() for text in axis.texts] == [right, wrong, right, right]
    assert right != wrong
    images = axis.get_images()
    np.testing.assert_allclose(images[3].get_array(), rows[1][1].permute(1, 2, 0).numpy())
    ticks = list(zip(texts(axis.get_yticklabels()), axis.get_yticks(), strict=True))
    assert [label for label, _ in ticks] == ["a", "b", "plain", "robust", "robust"]
    tick_of = [ticks[2], ticks[2], ticks[3], ticks[4]]
    for text, (row, column, *_), (_, height) in zip(axis.texts, entries, tick_of, strict=True):
        left, right_end, bottom, _ = images[2 * row + column].get_extent()
        x, y = text.get_position()
        assert left < x < right_end
        assert y == height > bottom
    below = images[2].get_extent()[3]
    assert max(text.get_position()[1] for text in axis.texts[:3]) < below
    boxes = [text.get_window_extent() for text in axis.texts]
    assert not any(one.overlaps(other) for one in boxes for other in boxes if one is not other)


def test_heatmap_writes_values_and_leaves_undefined_cells_empty() -> None:
    values = pd.DataFrame([[0.25, np.nan], [-0.5, 1.0]], index=["a", "b"], columns=["c", "d"])
    figure = plotting.heatmap(values, title="t", label="l", diverging=True)
    assert {text.get_text() for text in figure.axes[0].texts} == {"0.25", "-0.50", "1.00"}
    assert figure.axes[0].collections[0].get_clim() == (-1.0, 1.0)
    plotting.heatmap(values * np.nan, title="t", label="l")


def test_intervals_place_each_value_on_the_line_of_its_item() -> None:
    table = pd.DataFrame(
        {
            "perturbation": ["fog", "snow", "fog"],
            "gain": [0.1, -0.2, 0.3],
            "low": [0.0, -0.3, 0.2],
            "high": [0.2, -0.1, 0.4],
            "recipe": ["one", "one", "two"],
        }
    )
    (axis,) = plotting.intervals(table, value="gain", label="gain", group="recipe").axes
    assert [tick.get_text() for tick in axis.get_yticklabels()] == ["fog", "snow"]
    assert labels(axis) == ["one", "two"]
    first = axis.containers[0].lines[0]
    np.testing.assert_allclose(first.get_xdata(orig=False), [0.1, -0.2])
    np.testing.assert_allclose(np.round(first.get_ydata(orig=False)), [0, 1])


def test_claims_stand_on_their_side_as_far_as_they_are_clear() -> None:
    """p of 0.01 is at 2, against a claim of equivalence at -2; smaller ones end at 5."""
    table = pd.DataFrame(
        {
            "paper": ["one", "one", "one", "two"],
            "statement": ["helps", "independent", "no loss", "no loss"],
            "measure": "gain",
            "value": [0.02, 0.3, -0.02, np.nan],
            "low": [0.01, 0.2, -0.03, np.nan],
            "high": [np.inf, 0.4, -0.01, np.nan],
            "above": [0.0, -0.1, -0.01, -0.01],
            "below": [np.inf, 0.1, np.inf, np.inf],
            "p_holm": [1e-9, 0.01, 0.1, np.nan],
            "verdict": ["supported", "contradicted", "undecided", "undecided"],
        }
    )
    (axis,) = plotting.claims(table).axes
    names = [tick.get_text() for tick in axis.get_yticklabels()]
    assert names == ["helps", "independent", "no loss\ngain", "no loss\ngain"]
    points = np.concatenate([found.get_offsets() for found in axis.collections])
    np.testing.assert_allclose(points[:, 0], [5, -2, -1, 0], atol=1e-12)
    np.testing.assert_allclose(points[:, 1], axis.get_yticks())
    texts = [text.get_text() for text in axis.texts]
    assert texts[0] == "0.020 (at least 0.010)"
    assert texts[3] == "nan (undefined)"
    band = axis.patches[0].get_extents().transformed(axis.transData.inverted())
    assert 10**-band.x1 == pytest.approx(0.05)


def test_intervals_of_nothing_are_an_empty_figure() -> None:
    table = pd.DataFrame(columns=["pair", "overlap", "low", "high", "run"])
    for group in (None, "run"):
        (axis,) = plotting.intervals(
            table, value="overlap", label="l", item="pair", group=group
        ).axes
        assert axis.get_yticklabels() == []


def test_bars_without_an_end_reach_to_the_edge() -> None:
    table = pd.DataFrame(
        {"pair": ["a", "b"], "overlap": [0.5, 0.1], "low": [0.2, 0.0], "high": [np.inf, 0.3]}
    )
    (axis,) = plotting.intervals(table, value="overlap", label="l", item="pair").axes
    (bars,) = axis.containers[0].lines[2]
    np.testing.assert_allclose([s[:, 0] for s in bars.get_segments()], [[0.2, 0.5], [0.0, 0.3]])


def test_atlas_is_drawn_in_the_order_of_its_tree() -> None:
    names = ["a", "x", "b"]
    overlap = pd.DataFrame(
        [[1, 0.1, 0.9], [0.1, 1, 0.2], [0.9, 0.2, 1]], index=names, columns=names
    )
    figure = plotting.atlas(overlap, tree=clusters.hierarchy(overlap), title="t", height=0.5)
    tree, matrix = figure.axes[:2]
    order = [tick.get_text() for tick in matrix.get_yticklabels()]
    assert order == [tick.get_text() for tick in matrix.get_xticklabels()]
    assert order in (["x", "b", "a"], ["a", "b", "x"])
    shown = matrix.get_images()[0].get_array()
    np.testing.assert_allclose(shown, overlap.loc[order, order])
    assert [tick.get_text() for tick in tree.get_xticklabels()] == ["1", "0.5", "0"]
    # the joint of a and b lies level with the rows of both, not of x
    joint = min(tree.collections[0].get_segments(), key=lambda line: line[:, 0].max())
    above = (joint[:, 1].mean() < 15) == tree.yaxis_inverted()  # leaves lie at 5, 15 and 25
    assert above == (order[2] == "x")


def test_spread_shows_the_range_and_the_marks() -> None:
    table = pd.DataFrame({"size": [3] * 5 + [4] * 5, "error": [1, 2, 3, 4, 9, 0, 1, 2, 3, 4]})
    marks = pd.DataFrame({"size": [3, 4], "error": [2.5, 0.5], "way": ["chosen", "chosen"]})
    (axis,) = plotting.spread(
        table, value="error", group="size", marks=marks, mark="way", label="error"
    ).axes
    assert [tick.get_text() for tick in axis.get_yticklabels()] == ["size 3", "size 4"]
    whole = [c.get_segments()[0][:, 0].tolist() for c in axis.collections[::2]]
    assert whole == [[1, 9], [0, 4]]
    assert labels(axis) == ["chosen"]
    np.testing.assert_allclose(axis.lines[-1].get_xdata(), [2.5, 0.5])


def test_severity_curves_have_a_panel_for_each_family() -> None:
    table = pd.DataFrame(
        {
            "perturbation": ["clean", "fog", "fog", "hue", "hue", "pgd"],
            "family": ["clean", "weather", "weather", "light", "light", "adversarial"],
            "severity": [0, 1, 5, 1, 5, 0],
            "accuracy": [0.9, 0.8, 0.5, 0.85, 0.8, 0.1],
            "n": 100,
        }
    )
    axes = plotting.severity_curves(table).axes
    assert [axis.get_title() for axis in axes] == ["weather", "light"]
    assert labels(axes[0]) == ["fog"]
    np.testing.assert_allclose(axes[0].lines[1].get_ydata(), [0.8, 0.5])


def test_curves_and_scatter_name_their_lines_and_points() -> None:
    history = [
        {"epoch": 1.0, "loss": 2.0, "accuracy": 0.4},
        {"epoch": 2.0, "loss": 1.0, "accuracy": 0.6},
    ]
    loss, accuracy = plotting.training_curves({"standard": history, "mtlat": history}).axes
    assert labels(accuracy) == ["standard", "mtlat"]
    np.testing.assert_allclose(loss.lines[1].get_ydata(), [2, 1])
    np.testing.assert_allclose(accuracy.lines[0].get_ydata(), [0.4, 0.6])
    table = pd.DataFrame({"x": [0.1, 0.2], "y": [0.3, 0.4]}, index=["standard", "mtlat"])
    figure = plotting.scatter(table, x="x", y="y", xlabel="a", ylabel="b", title="t")
    assert labels(figure.axes[0]) == ["standard", "mtlat"]


def test_lines_have_panels_and_bands() -> None:
    table = pd.DataFrame(
        {
            "eps": [0.2, 0.1, 0.1, 0.2] * 2,
            "accuracy": [0.5, 0.7, 0.6, 0.3] * 2,
            "recipe": ["a", "a", "b", "b"] * 2,
            "attack": ["pgd"] * 4 + ["fgsm"] * 4,
        }
    ).assign(low=lambda t: t["accuracy"] - 0.1, high=lambda t: t["accuracy"] + 0.1)
    figure = plotting.lines(
        table, x="eps", y="accuracy", group="recipe", panel="attack", xlabel="x", ylabel="y"
    )
    first, second = figure.axes
    assert [first.get_title(), second.get_title()] == ["pgd", "fgsm"]
    assert labels(second) == ["a", "b"]
    np.testing.assert_allclose(first.lines[0].get_xdata(), [0.1, 0.2])
    np.testing.assert_allclose(first.lines[0].get_ydata(), [0.7, 0.5])
    band = first.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == (pytest.approx(0.4), pytest.approx(0.8))
    (alone,) = plotting.lines(table[:4], x="eps", y="accuracy", group="recipe", xlabel="x").axes
    assert len(alone.lines) == 2
    figure = plotting.lines(
        table, x="eps", y="accuracy", group="recipe", panel="attack", xlabel="x", reference=0.5
    )
    for axis in figure.axes:
        assert list(axis.lines[0].get_ydata()) == [0.5, 0.5]
        assert len(axis.lines) == 3


AWKWARD = {
    "a formula": r"$\alpha$ and $\frac{",
    "one dollar": "5$ note",
    "TeX": r"50 % of a_b^c & \d #{",
    "underscore": "_private",
    "line": "two\nlines\tand a tab",
    "controls": "bell\a and null\0",
    "long": "supercalifragilistic" * 12,
    "other scripts": "日本語 кот 🐈",
    "nothing": "",
}


@pytest.mark.parametrize("name", AWKWARD.values(), ids=AWKWARD)
def test_any_name_can_be_drawn(name: str) -> None:
    """Warnings, of missing glyphs or of a layout without room, are errors."""
    plotting.use_style()
    table = pd.DataFrame(
        {
            "perturbation": [name, "fog"] * 2,
            "family": name,
            "severity": [1, 1, 2, 2],
            "accuracy": [0.5, 0.7, 0.4, 0.6],
            "n": 100,
            "low": 0.3,
            "high": 0.8,
        }
    )
    clean = table[:1].assign(family="clean", perturbation="clean", severity=0)
    square = pd.DataFrame([[0.1, 0.2], [0.3, 0.4]], index=[name, "b"], columns=["a", name])
    history = [{"epoch": 1.0, "loss": 2.0, "accuracy": 0.4}]
    images = [torch.rand(3, 3, 8, 8)] * 2
    labels = {"row_labels": [name, "b"], "column_labels": [name, "b", name], "title": name}
    points = {"x": "accuracy", "y": "low", "xlabel": "x", "ylabel": "y"}
    judged = {"p_holm": 0.1, "value": 0.2, "above": 0.0, "below": 1.0, "verdict": "undecided"}
    stated = table[:2].assign(paper=name, statement=name, measure=name, **judged)
    said = {"row": 0, "column": 1, "model": name, "predicted": name, "confidence": 0.5}
    above = {"row_labels": labels["row_labels"], "column_labels": labels["column_labels"]}
    drawn = [
        plotting.image_grid(images, **labels),
        plotting.predictions(images, pd.DataFrame([said]).assign(right=True), **above),
        plotting.severity_curves(pd.concat([clean, table])),
        plotting.heatmap(square.rename_axis(name), title=name, label="l"),
        plotting.intervals(table, value="accuracy", label="l"),
        plotting.intervals(table, value="accuracy", label="l", group="perturbation"),
        plotting.claims(stated, title=name),
        plotting.training_curves({name: history, "b": history}),
        plotting.lines(table, group="perturbation", panel="family", **points),
        plotting.scatter(table.set_index("perturbation"), title=name, **points),
    ]
    for figure in drawn:
        figure.canvas.draw()
        for axis in figure.axes:
            width, height = axis.get_window_extent().size
            assert min(width, height) > 20 or axis.get_label() == "<colorbar>"


def test_names_are_shown_as_they_are() -> None:
    table = pd.DataFrame({"x": [0.1, 0.2], "y": [0.3, 0.4]}, index=["_a $5$", "b"])
    figure = plotting.scatter(table, x="x", y="y", xlabel="a", ylabel="b", title="50 $% _")
    assert labels(figure.axes[0]) == ["_a $5$", "b"]
    assert figure.axes[0].get_title() == "50 $% _"
    texts = [*figure.axes[0].get_legend().get_texts(), figure.axes[0].title]
    assert not any(text.get_parse_math() for text in texts)
    (long,) = labels(plotting.scatter(table[:1].rename({"_a $5$": "front" + "-" * 99 + "end"}),
                     x="x", y="y", xlabel="a", ylabel="b", title="").axes[0])  # fmt: skip
    assert long.startswith("front-")
    assert long.endswith("-end")
    assert len(long) == 40
    (foreign,) = labels(plotting.scatter(table[:1].rename({"_a $5$": "日 кот"}),
                        x="x", y="y", xlabel="a", ylabel="b", title="").axes[0])  # fmt: skip
    assert foreign == r"\u65e5 кот"


def test_more_lines_than_markers() -> None:
    names = [f"c{number}" for number in range(25)]
    table = pd.DataFrame({"perturbation": names, "family": "noise", "severity": 1, "accuracy": 0.5})
    clean = pd.DataFrame({"perturbation": ["clean"], "family": "clean", "severity": 0})
    both = pd.concat([clean.assign(accuracy=0.9), table]).assign(n=10)
    (axis,) = plotting.severity_curves(both).axes
    assert labels(axis) == names
    looks = {(line.get_marker(), line.get_color()) for line in axis.lines[1:]}
    assert len(looks) == len(names)
    figure = plotting.intervals(
        table.assign(low=0.4, high=0.6), value="accuracy", label="l", group="perturbation"
    )
    assert labels(figure.axes[0]) == names
