"""Figures: what is drawn where, read from the axes."""

import base64
import io
import json
from collections.abc import Iterable, Iterator

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.text import Text
from PIL import Image

from lib import figures
from lib.evidence.comparisons import Comparison
from lib.methods import METHODS

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
def axes() -> Iterator[Axes]:
    figure, axes = plt.subplots()
    yield axes
    plt.close(figure)


def dots(axes: Axes) -> dict[float, Line2D]:
    """The dots, by their height."""
    return {line.get_ydata()[0]: line for line in axes.lines if line.get_marker() == "o"}


def words(texts: Iterable[Text]) -> list[str]:
    return [text.get_text() for text in texts]


def test_dots_stand_at_the_means_and_intervals_at_their_ends(axes):
    figures.accuracy_dots(axes, SUMMARY, chance=0.1)
    drawn = dots(axes)
    assert drawn[1].get_xdata() == pytest.approx([50])  # the first row on top
    assert drawn[0].get_xdata() == pytest.approx([40])
    assert drawn[1].get_color() == METHODS["simclr"].colour
    assert words(axes.texts) == ["b", "40.0", "a", "50.0"]

    _, _, interval, guessing = axes.lines
    assert interval.get_xdata() == pytest.approx([45, 55])
    assert list(interval.get_ydata()) == [1, 1]
    assert guessing.get_xdata() == pytest.approx([10, 10])
    low, high = axes.get_xlim()
    assert 35 < low < 40  # what differs fills the axis
    assert 55 < high < 60


def test_a_name_that_would_run_into_its_number_is_refused():
    figure, axes = figures.rows_of_dots(2)
    words_to_spare = "more words than a row of any width has room for, " * 3 + "far from it"
    long = SUMMARY.assign(label=["a", words_to_spare])
    with pytest.raises(ValueError, match="far from it"):
        figures.accuracy_dots(axes, long)
    plt.close(figure)


def test_differences_stand_about_zero_and_are_hollow_where_one_seed_knows_no_interval(axes):
    found = [Comparison(0.05, 0.04, 0.06, 3), Comparison(-0.02, np.nan, np.nan, 1)]
    figures.difference_dots(axes, pd.DataFrame(found).assign(label=["a", "b"]))

    drawn = dots(axes)
    assert drawn[1].get_xdata() == pytest.approx([5])
    assert drawn[1].get_markerfacecolor() == "black"
    assert drawn[0].get_xdata() == pytest.approx([-2])
    assert drawn[0].get_markerfacecolor() == "white"
    assert words(axes.texts) == ["b", "-2.0", "a", "+5.0"]


def test_the_pipeline_shows_image_and_views():
    images, views = torch.rand(2, 3, 8, 8), torch.rand(3, 3, 4, 4)
    figure = figures.pipeline(images, views)
    pictures = figure.axes[0].images
    for picture, x in zip(pictures, (*images, *views), strict=True):
        assert np.allclose(picture.get_array(), x.permute(1, 2, 0).numpy())
    letters = {"$h_1$", "$h_2$", "$h_3$", "$z_1$", "$z_2$", "$z_3$"}
    assert letters | {"pull", "push"} <= set(words(figure.axes[0].texts))
    plt.close(figure)


def test_curves_lie_between_chance_and_floor(axes):
    curve = [{"epoch": 1, "loss": 3.0}, {"epoch": 2, "loss": 2.0}]
    figures.loss_curve(axes, [curve], chance=5.0, floor=1.0, colour="black")
    line, chance, floor = axes.lines
    assert list(line.get_ydata()) == [3.0, 2.0]
    assert chance.get_ydata()[0] == 5.0
    assert floor.get_ydata()[0] == 1.0


TIMES = pd.DataFrame(
    {
        "library": ["this book", "other", "other"],
        "m": [8, 8, 16],
        "ms": [1.0, 2.0, 4.0],
        "seconds min": [0.0005, 0.001, 0.003],
        "seconds max": [0.002, 0.004, 0.005],
    }
)


def test_spreads_are_told_by_median_and_range():
    columns = {"ms": "ms median", "seconds min": "ms min", "seconds max": "ms max"}
    first, *_ = figures.spreads(TIMES.rename(columns=columns), "ms", digits=3)
    assert first == "1.000 [0.001, 0.002]"


ACCURACIES = pd.DataFrame(
    {
        "method": "ce",
        "label": ["a", "a", "b"],
        "minutes": [2.0, 1.0, 4.04],
        "mean": [0.5, 0.4, 0.7],
        "low": [0.4, np.nan, 0.6],
        "high": [0.7, np.nan, 0.75],
    }
)


def test_accuracies_against_a_number_have_their_intervals(axes):
    figures.accuracy_curves(axes, ACCURACIES, "minutes", "label", "minutes a run")
    a, b = axes.containers
    assert list(a.lines[0].get_xdata()) == [1, 2]
    assert list(a.lines[0].get_ydata()) == [40, 50]
    assert b.lines[2][0].get_segments()[0][:, 1] == pytest.approx([60, 75])
    assert words(axes.get_xticklabels()) == ["1.0", "2.0", "4.04"]


def test_without_a_record_a_figure_says_so(axes):
    figures.accuracy_curves(axes, ACCURACIES[:0], "minutes", "label", "minutes a run", "linear")
    assert axes.get_xscale() == "linear"
    assert np.allclose(axes.get_xticks() % 1, 0)
    assert "no published record yet" in words(axes.texts)


def test_classes_are_named_on_the_map_in_colours_that_are_told_apart(axes):
    points = np.array([[0, 0], [1, 0], [9, 9], [9, 7], [9, 8]])
    figures.embedding_map(axes, points, [0, 0, 9, 9, 9], tuple("abcdefghij"))
    a, j = axes.texts
    assert (a.get_text(), a.get_position()) == ("a", (0.5, 0))
    assert (j.get_text(), j.get_position()) == ("j", (9, 8))

    everything = np.array(figures.sns.color_palette("tab10"))
    for c in (0, 9):
        assert np.allclose(axes.collections[c].get_facecolor()[0, :3], everything[c])
    for place, colour in enumerate(everything):
        others = everything[:place]
        assert (np.abs(others - colour).max(1) > 0.2).all()


def test_every_method_has_a_name_and_a_colour_of_its_own():
    colours, names = figures.COLOURS, figures.NAMES
    assert METHODS.keys() < colours.keys()
    assert colours.keys() == names.keys()
    assert len(set(colours.values())) == len(colours)
    assert len(set(names.values())) == len(names)


def test_k_means_is_named_with_its_features():
    assert figures.name("kmeans", "kmeans400") == "k-means, 1,600 features"
    assert figures.name("supcon", "resnet18") == "SupCon"


def test_images_are_drawn_as_they_are():
    x = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    figure = figures.image_grid([x, x / 255], ["row"], ["one", "two"])
    for axes, image in zip(figure.axes, [*x, *x], strict=True):
        (picture,) = axes.images
        assert np.allclose(picture.get_array(), image.permute(1, 2, 0).numpy() / 255)

    first, second, *others = figure.axes
    assert (first.get_title(), first.get_ylabel()) == ("one", "row")
    assert (second.get_title(), second.get_ylabel()) == ("two", "")
    for axes in others:
        assert (axes.get_title(), axes.get_ylabel()) == ("", "")
    plt.close(figure)


def test_neighbours_stand_right_of_their_query_and_those_of_another_class_are_framed(axes):
    queries = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    found = torch.zeros(2, 4, 3, 32, 32, dtype=torch.uint8)
    found[1, 2, 0] = 255  # a red one
    alike = torch.tensor([[True, True, True, False], [False, True, True, True]])
    figures.neighbours(axes, queries, found, alike, "h")

    (picture,) = axes.images
    assert picture.get_extent() == [0, 5, 2, 0]
    pixels = picture.get_array()
    height, width = pixels.shape[0] // 2, pixels.shape[1] // 5
    middles = pixels[height // 2 :: height, width // 2 :: width, 0]
    assert np.argwhere(middles > 0.9).tolist() == [[1, 3]]
    frames = [frame.get_xy() for frame in axes.patches]
    assert np.allclose(frames, [(4.06, 0.06), (1.06, 1.06)])


@pytest.mark.parametrize("scale", [1, 255])
def test_a_sheet_holds_its_images_row_by_row(scale):
    """Three even colours, of which a JPEG loses next to nothing, and what is left is black."""
    colours = torch.tensor([[0.9, 0.1, 0.1], [0.1, 0.8, 0.2], [0.2, 0.2, 0.9], [0.0, 0.0, 0.0]])
    images = (colours[:3] * scale).view(3, 3, 1, 1).expand(-1, -1, 16, 16)
    address = figures.sheet(images if scale == 1 else images.byte(), columns=2)

    start, written = address.split(",")
    assert start == "data:image/jpeg;base64"
    pixels = np.array(Image.open(io.BytesIO(base64.b64decode(written)))) / 255
    assert pixels.shape == (32, 32, 3)
    tiles = pixels.reshape(2, 16, 2, 16, 3).swapaxes(1, 2).reshape(4, -1, 3)
    for tile, colour in zip(tiles, colours.numpy(), strict=True):
        assert np.abs(tile - colour).max() < 0.03


def test_what_is_written_into_a_page_is_read_as_it_was_and_ends_no_script():
    value = {"words": "</script><!-- ü", "numbers": [1, -2.5, None]}
    html = figures.page_data("x", value)
    start, end = '<script type="application/json" id="x">', "</script>"
    assert html.startswith(start) and html.endswith(end) and html.count("</") == 1
    assert json.loads(html.removeprefix(start).removesuffix(end)) == value
    with pytest.raises(ValueError, match="JSON"):
        figures.page_data("x", float("nan"))
