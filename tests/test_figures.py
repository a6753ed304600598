import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch

from lib import figures
from lib.statistics import Paired

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

SUMMARY = pd.DataFrame({"data": "toy", "method": ["simclr", "pixels"], "mean": [0.5, 0.4], "low": [0.45, np.nan],
                        "high": [0.55, np.nan], "seeds": [3, 1], "n": 100, "minutes": 1.0,
                        "interval": ["seeds", "test images"], "label": ["a", "b"]})


@pytest.fixture
def axes():
    figure, axes = plt.subplots()
    yield axes
    plt.close(figure)


def test_bars_stand_at_the_means_and_intervals_at_their_ends(axes):
    figures.accuracy_bars(axes, SUMMARY, chance=0.1)
    widths = {bar.get_y() + bar.get_height() / 2: bar.get_width() for bar in axes.patches}
    assert widths == pytest.approx({1: 50, 0: 40})                              # the first row on top
    interval = next(line for line in axes.lines if len(set(line.get_ydata())) == 1)
    assert list(interval.get_xdata()) == pytest.approx([45, 55])
    assert [text.get_text() for text in axes.get_yticklabels()] == ["b", "a"]


def test_curves_lie_between_chance_and_floor(axes):
    figures.loss_curve(axes, [[{"epoch": 1, "loss": 3.0}, {"epoch": 2, "loss": 2.0}]], 5.0, 1.0, "black")
    assert list(axes.lines[0].get_ydata()) == [3.0, 2.0]
    assert [line.get_ydata()[0] for line in axes.lines[1:]] == [5.0, 1.0]


def test_the_table_says_once_what_is_the_same_in_every_row():
    html = figures.accuracy_table(SUMMARY.drop(columns="label")).to_html()
    assert "In every row: data: toy; test images: 100; minutes: 1" in html
    assert "50.0 [45.0, 55.0]" in html and "3 seeds" in html and html.count("toy") == 1
    assert "no published record yet" in figures.accuracy_table(SUMMARY[:0]).to_html()


def test_every_method_has_a_name_and_a_colour_of_its_own():
    assert figures.COLOURS.keys() == figures.NAMES.keys() and len(set(figures.COLOURS.values())) == len(figures.COLOURS)


def test_images_are_drawn_as_they_are():
    x = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    figure = figures.image_grid([x], ["row"], ["one", "two"])
    drawn = [ax.images[0].get_array() for ax in figure.axes]
    assert np.allclose(np.asarray(drawn[1]), x[1].permute(1, 2, 0).numpy() / 255)
    plt.close(figure)


def test_a_small_p_is_not_printed_as_zero():
    table = figures.paired_table([Paired(0.04, 90, 10, 1e-16), Paired(0.01, 6, 4, 0.7539)], "h", "z", 1000)
    assert table["p"].tolist() == ["< 0.0001", "0.7539"] and table["h - z (points)"].tolist() == [4.0, 1.0]
