"""The explorer below chapter 5's neighbours shows who is near to whom, by each kind of features."""

import base64
import io
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from IPython.display import HTML
from PIL import Image

from lib import figures, geometry
from lib.data import load
from tests import elements
from tools import chromium
from tools.book import BOOK

if not chromium.found():
    pytest.skip(
        "no Chromium found; the explorer of neighbours was not tried", allow_module_level=True
    )

CHAPTER = BOOK.source / "notebooks" / "05_evaluation.ipynb"
CELL = "05-60"
COUNT = 200


@pytest.fixture(scope="module")
def part():
    return load("tinted-digits").take(1000)


@pytest.fixture(scope="module")
def spaces(part):
    """Features of 200 images: pixels, and three that know the class more or less, or not at all."""
    generator = torch.Generator().manual_seed(0)
    images, labels = part.test.images[:COUNT], part.test.labels[:COUNT]
    centres = torch.randn(10, 16, generator=generator)[labels]

    def noisy(share):
        return share * centres + torch.randn(COUNT, 16, generator=generator)

    return {
        "raw pixels": images.flatten(1) / 255,
        "untrained": noisy(0),
        "SimCLR's h": noisy(2),
        "SimCLR's z": noisy(0.7),
    }


@pytest.fixture(scope="module")
def html(part, spaces):
    """What the chapter's cell gives its page, of these features."""
    features = {name.removesuffix("'s h"): x for name, x in spaces.items()}
    run = SimpleNamespace(features=lambda images, dataset: (None, spaces["SimCLR's z"]))
    names = {
        "F": F,
        "HTML": HTML,
        "dataset": None,
        "figures": figures,
        "geometry": geometry,
        "h": {(name, "test"): x for name, x in features.items()},
        "part": part,
        "trained": [run],
    }
    cells = json.loads(CHAPTER.read_bytes())["cells"]
    (source,) = ("".join(cell["source"]) for cell in cells if cell["id"] == CELL)
    *lines, last = source.splitlines()
    exec("\n".join(lines), names)
    return eval(last, names).data


@pytest.fixture(scope="module")
def opened(html, tmp_path_factory):
    folder = tmp_path_factory.mktemp("explorer")
    with elements.opened("evaluation-neighbours", folder, data=html) as page:
        yield page


@pytest.fixture
def page(opened):
    """As it is at first, on a laptop."""
    opened.set_viewport_size({"width": 1280, "height": 900})
    opened.reload()
    opened.locator(".play-button").first.click()
    opened.locator(".neighbour").first.wait_for()
    return opened


def centres(page):
    """Of every image on the map, in pixels of the page: (200, 2)."""
    places = page.locator(".spot").evaluate_all(
        "all => all.map(e => [parseFloat(e.style.left), parseFloat(e.style.top), e.clientWidth])"
    )
    box = page.locator(".map").bounding_box()
    corner = np.array([box["x"] + 1, box["y"] + 1])
    return np.array([[x + side / 2, y + side / 2] for x, y, side in places]) + corner


def chosen(page):
    """The place of the image that is chosen."""
    (place,) = page.locator(".spot[aria-selected=true]").evaluate_all("all => all.map(e => e.id)")
    assert page.locator(".map").get_attribute("aria-activedescendant") == place
    return int(place.removeprefix("play-spot-"))


def answers(page):
    """By the name of the features: of each neighbour its place, class, cosine, whether framed."""
    found = {}
    for row in page.locator(".space").all():
        said = []
        for button in row.locator(".neighbour").all():
            words = button.get_attribute("aria-label")
            label, place, cosine = re.match(r"(\w+), image (\d+), cosine ([−\d.]+)", words).groups()
            framed = button.locator(".other").count() == 1
            assert framed == words.endswith(", another class")
            assert cosine == button.inner_text()
            said.append((int(place) - 1, label, float(cosine.replace("−", "-")), framed))
        found[row.get_attribute("aria-label")] = said
    return found


def cosines(x):
    x = x.double().numpy()
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    return x @ x.T


def check(page, part, spaces):
    """All that is said of the chosen image, against its cosines with all others."""
    place, labels = chosen(page), part.test.labels.tolist()
    report = page.locator(".answer p").inner_text()
    assert report.startswith(f"Image {place + 1} of 200, of class {part.classes[labels[place]]}.")
    said = answers(page)
    assert said.keys() == spaces.keys()
    for name, features in spaces.items():
        row = cosines(features)[place]
        others = np.sort(np.delete(row, place))[::-1]
        assert [cosine for *_, cosine, _ in said[name]] == pytest.approx(others[:5], abs=0.0006)
        for other, label, cosine, framed in said[name]:
            assert row[other] == pytest.approx(cosine, abs=0.0006)
            assert label == part.classes[labels[other]]
            assert framed == (labels[other] != labels[place])
        words = "the untrained network" if name == "untrained" else name
        right = sum(not framed for *_, framed in said[name])
        assert f"{right} by {words}" in report


def test_a_click_on_the_map_chooses_the_image_there(page, part, spaces):
    for place in (0, 57, 199):
        page.mouse.click(*centres(page)[place])
        assert chosen(page) == place
        check(page, part, spaces)


def test_arrow_keys_go_to_an_image_on_that_side(page, part, spaces):
    places = centres(page)
    page.locator(".map").focus()
    moved = set()
    for key in ("ArrowRight", "ArrowDown", "ArrowLeft", "ArrowUp", "ArrowDown", "ArrowRight"):
        before = chosen(page)
        page.keyboard.press(key)
        along = places[chosen(page)] - places[before]
        right, down = {"Right": (1, 0), "Left": (-1, 0), "Down": (0, 1), "Up": (0, -1)}[key[5:]]
        if chosen(page) != before:
            moved.add(key)
            assert right * along[0] + down * along[1] >= abs(down * along[0] + right * along[1])
    assert len(moved) >= 3
    check(page, part, spaces)

    before = chosen(page)
    page.keyboard.press("PageDown")
    assert chosen(page) == (before + 1) % COUNT


def test_a_neighbour_can_be_chosen_in_its_turn(page, part, spaces):
    first = answers(page)["SimCLR's h"][1][0]
    page.locator(".space").nth(2).locator(".neighbour").nth(1).press("Enter")
    assert chosen(page) == first
    check(page, part, spaces)
    # the key goes on from there
    page.keyboard.press("Enter")
    assert chosen(page) != first


def test_the_shares_are_over_all_images(page, part, spaces):
    labels = part.test.labels[:COUNT].numpy()
    for row, (name, features) in zip(page.locator(".space").all(), spaces.items(), strict=True):
        similar = cosines(features)
        np.fill_diagonal(similar, -2)
        nearest = np.argsort(-similar, axis=1)[:, :5]
        alike = (labels[nearest] == labels[:, None]).mean()
        called, share = row.locator("div").first.inner_text().split("\n")
        assert called == name
        assert float(share.removesuffix(" % of the same class")) == pytest.approx(
            100 * alike, abs=0.51
        )


def test_lines_lead_to_the_neighbours_by_the_features_that_are_asked_for(page, spaces):
    corner = page.locator(".map").bounding_box()
    places = centres(page) - [corner["x"] + 1, corner["y"] + 1]
    for name in spaces:
        page.get_by_role("radio", name=name, exact=True).check()
        neighbours = [place for place, *_ in answers(page)[name]]
        ends = page.locator(".map line").evaluate_all(
            "all => all.map(e => ['x1', 'y1', 'x2', 'y2'].map(name => +e.getAttribute(name)))"
        )
        wanted = [[*places[chosen(page)], *places[place]] for place in neighbours]
        assert np.array(ends) == pytest.approx(np.array(wanted), abs=0.6)
        marked = page.locator(".spot.near").evaluate_all("all => all.map(e => e.id.slice(10))")
        assert sorted(map(int, marked)) == sorted(neighbours)


def test_every_place_on_the_map_shows_its_own_image(page, html, part):
    text = re.search(r">(.*)</script>", html).group(1)
    written = json.loads(text)["pictures"].removeprefix("data:image/jpeg;base64,")
    sheet = np.array(Image.open(io.BytesIO(base64.b64decode(written))).convert("RGB")).astype(float)
    assert sheet.shape == (320, 640, 3)
    styles = page.locator(".spot").evaluate_all("all => all.map(e => e.style.backgroundPosition)")
    for image, style in zip(part.test.images, styles):
        left, top = (float(share.removesuffix("%")) / 100 for share in style.split())
        column, row = round(19 * left), round(9 * top)
        tile = sheet[32 * row : 32 * row + 32, 32 * column : 32 * column + 32]
        assert np.abs(tile - image.permute(1, 2, 0).numpy()).mean() < 6  # by JPEG


@pytest.mark.parametrize("width, size", [(1280, 26), (390, 18)])
def test_images_lie_on_the_map_apart_and_where_t_sne_put_them(page, html, width, size):
    page.set_viewport_size({"width": width, "height": 900})
    page.wait_for_function(f"document.querySelector('.spot').clientWidth === {size}")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    places = centres(page)
    box = page.locator(".map").bounding_box()
    inside = places - [box["x"], box["y"]]
    assert inside.min() >= size / 2 - 1
    assert (inside <= [box["width"] - size / 2 + 1, box["height"] - size / 2 + 1]).all()
    far = np.linalg.norm(places[:, None] - places[None], axis=2) + 1000 * np.eye(COUNT)
    assert np.median(far.min(1)) > 0.85 * size and far.min() > 0.4 * size

    spots = np.array(json.loads(re.search(r">(.*)</script>", html).group(1))["spots"]) * [1, -1]
    for axis in (0, 1):
        assert np.corrcoef(spots[:, axis], places[:, axis])[0, 1] > 0.95


def test_it_fits_a_finger_and_a_page(page, html):
    assert len(html) < 200_000
    page.set_viewport_size({"width": 390, "height": 844})
    for control in page.locator(".play-neighbours :is(button, label)").all():
        box = control.bounding_box()
        assert box["height"] >= 24 and box["width"] >= 24
