import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch

from lib import figures
from lib.statistics import Paired, seeds_needed

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

SUMMARY = pd.DataFrame(
    {
        "data": "toy",
        "method": ["simclr", "pixels"],
        "mean": [0.5, 0.4],
        "low": [0.45, np.nan],
        "high": [0.55, np.nan],
        "seeds": [3, 1],
        "n": 100,
        "minutes": 1.0,
        "interval": ["seeds", "test images"],
        "label": ["a", "b"],
    }
)


@pytest.fixture
def axes():
    figure, axes = plt.subplots()
    yield axes
    plt.close(figure)


def test_dots_stand_at_the_means_and_intervals_at_their_ends(axes):
    figures.accuracy_dots(axes, SUMMARY, chance=0.1)
    dots = {
        line.get_ydata()[0]: line.get_xdata()[0] for line in axes.lines if line.get_marker() == "o"
    }
    assert dots == pytest.approx({1: 50, 0: 40})  # the first row on top
    (interval,) = (
        line
        for line in axes.lines
        if len(line.get_xdata()) == 2
        and len(set(line.get_ydata())) == 1
        and line.get_linestyle() == "-"
    )
    assert list(interval.get_xdata()) == pytest.approx([45, 55]) and interval.get_ydata()[0] == 1
    assert [text.get_text() for text in axes.get_yticklabels()] == ["b", "a"]
    assert (
        35 < axes.get_xlim()[0] < 40 and 55 < axes.get_xlim()[1] < 60
    )  # what differs fills the axis


def test_differences_stand_about_zero_and_are_hollow_where_one_seed_knows_no_interval(axes):
    table = pd.DataFrame(
        {"label": ["a", "b"], "value": [0.05, -0.02], "low": [0.04, np.nan], "high": [0.06, np.nan]}
    )
    figures.difference_dots(axes, table)
    dots = {line.get_ydata()[0]: line for line in axes.lines if line.get_marker() == "o"}
    assert {y: dot.get_xdata()[0] for y, dot in dots.items()} == pytest.approx({1: 5, 0: -2})
    assert dots[0].get_markerfacecolor() == "white" and dots[1].get_markerfacecolor() == "black"
    assert [text.get_text() for text in axes.texts] == ["-2.0", "+5.0"]


def test_the_pipeline_shows_image_and_views():
    image, pair = torch.rand(3, 8, 8), torch.rand(2, 3, 4, 4)
    figure = figures.pipeline(image, pair)
    drawn = [np.asarray(picture.get_array()) for picture in figure.axes[0].images]
    for pixels, x in zip(drawn, (image, *pair), strict=True):
        assert np.allclose(pixels, x.permute(1, 2, 0).numpy())
    plt.close(figure)


def test_curves_lie_between_chance_and_floor(axes):
    figures.loss_curve(
        axes, [[{"epoch": 1, "loss": 3.0}, {"epoch": 2, "loss": 2.0}]], 5.0, 1.0, "black"
    )
    assert list(axes.lines[0].get_ydata()) == [3.0, 2.0]
    assert [line.get_ydata()[0] for line in axes.lines[1:]] == [5.0, 1.0]


def test_the_contrast_is_drawn_and_what_was_not_measured_left_out():
    figure, axes = plt.subplots(1, 2)
    old = [{"epoch": 1, "loss": 3.0}]  # a run from before it was measured
    new = [
        {"epoch": 1, "top1": 0.1, "top5": 0.4, "positive": 0.5, "negative": None},
        {"epoch": 2, "top1": 0.2, "top5": 0.6, "positive": 0.7, "negative": 0.1},
    ]
    figures.contrast_curves(axes, [new, old], "black")
    drawn = [[line.get_ydata().tolist() for line in ax.lines] for ax in axes]
    assert drawn[0][:2] == [[10, 20], [40, 60]] and np.isnan(drawn[0][2:]).all()
    assert drawn[1][0] == [0.5, 0.7] and np.isnan(drawn[1][1][0]) and drawn[1][1][1] == 0.1
    plt.close(figure)


def test_peers_are_drawn_with_the_spread_of_their_times(axes):
    table = pd.DataFrame(
        {
            "library": ["this book", "other", "other"],
            "m": [8, 8, 16],
            "ms": [1.0, 2.0, 4.0],
            "seconds min": [0.0005, 0.001, 0.003],
            "seconds max": [0.002, 0.004, 0.005],
        }
    )
    figures.peers(axes, table, "ms", "milliseconds")
    assert {line.get_label(): line.get_ydata().tolist() for line in axes.lines} == {
        "this book": [1],
        "other": [2, 4],
    }
    assert (
        len({(line.get_linestyle(), line.get_marker()) for line in axes.lines}) == 2
    )  # told apart without colour
    bars = [
        bar[:, 1].tolist() for collection in axes.collections for bar in collection.get_segments()
    ]
    assert np.allclose(bars, [[0.5, 2], [1, 4], [3, 5]])
    named = table.rename(
        columns={"ms": "ms median", "seconds min": "ms min", "seconds max": "ms max"}
    )
    assert figures.spreads(named, "ms", digits=3)[0] == "1.000 [0.001, 0.002]"


def test_accuracies_against_a_number_have_their_intervals(axes):
    summary = pd.DataFrame(
        {
            "method": "ce",
            "label": ["a", "a", "b"],
            "minutes": [2.0, 1.0, 4.04],
            "mean": [0.5, 0.4, 0.7],
            "low": [0.4, np.nan, 0.6],
            "high": [0.7, np.nan, 0.75],
        }
    )
    figures.accuracy_curves(axes, summary, "minutes", "label", "minutes a run")
    a, b = axes.containers
    assert a.lines[0].get_xdata().tolist() == [1, 2] and a.lines[0].get_ydata().tolist() == [40, 50]
    assert b.lines[2][0].get_segments()[0][:, 1].tolist() == pytest.approx([60, 75])
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1.0", "2.0", "4.04"]
    figures.accuracy_curves(
        axes, summary[:0], "minutes", "label", "minutes a run", "linear"
    )  # no record yet
    assert axes.get_xscale() == "linear" and all(tick == int(tick) for tick in axes.get_xticks())
    assert "no published record yet" in [text.get_text() for text in axes.texts]


def test_a_comparison_says_how_many_seeds_a_point_needs():
    first = pd.DataFrame({"seed": [0, 1, 2], "accuracy": [0.70, 0.71, 0.72]})
    second = pd.DataFrame({"seed": [0, 1, 2], "accuracy": [0.69, 0.70, 0.70]})
    row = figures.compared(first, second)
    assert row["seeds"] == 3 and row["difference (points)"].startswith("1.3 [")
    assert row["spread of a run (points)"] == pytest.approx(1) and row["seeds for 1 point"] == 17
    assert row["paired"] == seeds_needed(np.std([0.01, 0.01, 0.02], ddof=1), paired=True)
    assert figures.compared(first[:1], second)["difference (points)"] == "1.0"
    assert "no published record" in figures.compared(first[:0], second)["difference (points)"]


def test_the_table_says_once_what_is_the_same_in_every_row():
    html = figures.accuracy_table(SUMMARY.drop(columns="label")).to_html()
    assert "In every row: data: toy; test images: 100; minutes: 1" in html
    assert "50.0 [45.0, 55.0]" in html and "3 seeds" in html and html.count("toy") == 1
    assert "no published record yet" in figures.accuracy_table(SUMMARY[:0]).to_html()


def test_the_accuracy_comes_first_and_settings_keep_their_digits():
    rows = SUMMARY.drop(columns="label").assign(
        temperature=[0.07 * (1 + i) for i in range(len(SUMMARY))]
    )
    html = figures.accuracy_table(rows).to_html()
    assert (
        html.index("accuracy (%)") < html.index(">temperature<")
        and ">0.07<" in html
        and ">0.1<" not in html
    )


def test_classes_are_named_on_the_map_in_colours_that_are_told_apart(axes):
    points, names = np.array([[0, 0], [1, 0], [9, 9], [9, 7], [9, 8]]), tuple("abcdefghij")
    figures.embedding_map(axes, points, [0, 0, 9, 9, 9], names)
    assert {text.get_text(): text.get_position() for text in axes.texts} == {
        "a": (0.5, 0),
        "j": (9, 8),
    }
    colours = np.array(
        [part.get_facecolor()[0, :3] for part in axes.collections if len(part.get_offsets())]
    )
    everything = np.array(figures.sns.color_palette("tab10"))
    assert np.abs(colours[0] - colours[1]).max() > 0.2
    assert min(np.abs(a - b).max() for i, a in enumerate(everything) for b in everything[:i]) > 0.2


def test_every_method_has_a_name_and_a_colour_of_its_own():
    assert figures.COLOURS.keys() == figures.NAMES.keys() and len(
        set(figures.COLOURS.values())
    ) == len(figures.COLOURS)


def test_images_are_drawn_as_they_are():
    x = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    figure = figures.image_grid([x], ["row"], ["one", "two"])
    drawn = [ax.images[0].get_array() for ax in figure.axes]
    assert np.allclose(np.asarray(drawn[1]), x[1].permute(1, 2, 0).numpy() / 255)
    plt.close(figure)


def test_a_small_p_is_not_printed_as_zero():
    table = figures.paired_table(
        [Paired(0.04, 90, 10, 1e-16), Paired(0.01, 6, 4, 0.7539)], "h", "z", 1000
    )
    assert table["p"].tolist() == ["< 0.0001", "0.7539"] and table["h - z (points)"].tolist() == [
        4.0,
        1.0,
    ]
