"""The film below chapter 3's matrices shows the chapter's own training, step by step."""

import base64
import copy
import functools
import io
import json
import re

import matplotlib.pyplot as plt
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from lib import evaluation, training
from lib.augmentations import views
from lib.data import load
from lib.presets import preset
from tests import elements
from tools import chromium
from tools.book import BOOK

if not chromium.found():
    pytest.skip("no Chromium found; the film of a training was not tried", allow_module_level=True)

CHAPTER = BOOK.source / "notebooks" / "03_simclr.ipynb"
EPOCHS, STEPS = 2, 20


@pytest.fixture(scope="module")
def chapter():
    """Names as in the notebook behind the film's cell, of a training of two epochs."""
    cells = json.loads(CHAPTER.read_bytes())["cells"]
    code = {cell["id"]: "".join(cell["source"]) for cell in cells}
    names = {"__name__": "chapter"}

    def run(*numbers):
        for number in numbers:
            exec(code[f"03-{number}"], names)

    with plt.rc_context(), torch.random.fork_rng(devices=[]):
        exec(code["03-02"].replace('"auto"', '"quick"'), names)
        run("03", "50", "52", "54", "56", "63")
        names["train"] = functools.partial(names["train"], epochs=EPOCHS)
        run("57", "11", "30")
        plt.close("all")
    names["same"] = torch.eye(12, dtype=torch.bool)
    names["alike"] = torch.block_diag(*4 * [torch.ones(3, 3)]).bool() & ~names["same"]
    *lines, last = code["03-64"].splitlines()
    exec("\n".join(lines), names)
    names["html"] = eval(last, names).data
    return names


@pytest.fixture(scope="module")
def page(chapter, tmp_path_factory):
    folder = tmp_path_factory.mktemp("film")
    with elements.opened("simclr-matrices", folder, data=chapter["html"]) as page:
        yield page


def shown(page):
    """What the page says of a step: its number, loss, and three mean cosines."""
    said = page.locator(".play-film [aria-live]").inner_text().replace("−", "-")
    step = re.search(r"After step (\d+) of", said)
    loss = re.search(r"a loss of ([\d.]+) nats", said)
    cosines = re.findall(r"(-?\d\.\d\d) (?:of|where)", said)
    return int(step[1]) if step else 0, float(loss[1]) if loss else None, [*map(float, cosines)]


def go(page, step):
    page.get_by_role("slider").fill(str(step))


def cosines(model):
    """Of two views each of twelve digits of the validation split, three of a class: (12, 12)."""
    digits = load("tinted-digits")
    recipe = training.recipe_for(preset("simclr-tinted-digits"), digits)
    rows = [n for c in (0, 1, 4, 7) for n in torch.where(digits.val.labels == c)[0][:3].tolist()]
    pair = views(digits.val.images[rows], recipe, seed=0, step=0)
    first, second = evaluation.view_features(copy.deepcopy(model).eval(), pair)[1]
    return F.cosine_similarity(first[:, None], second[None], dim=-1)


def means(matrix):
    of = torch.arange(12)
    itself, class_ = of[:, None] == of, of[:, None] // 3 == of // 3
    return [matrix[which].mean().item() for which in (itself, ~itself, class_ & ~itself)]


@pytest.mark.parametrize("epochs", [0, 1, EPOCHS])
def test_a_step_has_the_numbers_of_a_training_that_ends_there(page, chapter, epochs):
    """A first epoch at a constant rate is the first of two, as the rate falls between epochs."""
    model = copy.deepcopy(chapter["untrained"]).train()
    losses = []
    if epochs:
        losses = chapter["train"].func(model, chapter["images"], chapter["recipe"], epochs=epochs)

    go(page, 10 * epochs)
    step, loss, said = shown(page)
    assert step == 10 * epochs == len(losses)
    assert said == pytest.approx(means(cosines(model)), abs=0.006)
    assert (loss is None) if not losses else loss == pytest.approx(losses[-1], abs=0.006)


def test_each_number_is_said_of_what_it_is(page, chapter):
    """With means that are told apart: after so few steps those of the digits are not."""
    means = {"partners": 0.56, "others": 0.12, "alike": -0.34}
    made_up = {name: [mean] * (STEPS + 1) for name, mean in means.items()}
    page.reload()
    page.locator("#recorded-film").evaluate(
        "(script, text) => { script.textContent = text; }", json.dumps(chapter["film"]() | made_up)
    )
    page.locator(".play-button").first.click()
    said = page.locator(".play-film [aria-live]").inner_text()
    assert "0.56 of two views of a digit (positives)" in said
    assert "0.12 of different digits (negatives), −0.34 where both are of one class" in said

    page.reload()
    page.locator(".play-button").first.click()


def test_watching_changes_nothing(chapter):
    torch.manual_seed(0)
    model = chapter["SimCLR"]()
    history = chapter["train"](model, chapter["images"], chapter["recipe"])
    assert history == pytest.approx(chapter["history"], abs=1e-4)


def test_every_field_has_the_colour_of_its_cosine(page, chapter):
    colours = plt.get_cmap("vlag")
    go(page, STEPS)
    matrix = cosines(chapter["model"])
    drawn = page.locator(".play-film canvas").evaluate(
        "c => c.toDataURL('image/png').split(',')[1]"
    )
    image = Image.open(io.BytesIO(base64.b64decode(drawn))).convert("RGB")
    for row, column in ((0, 0), (0, 1), (2, 11), (11, 2), (7, 6)):
        # behind the pictures, and a gap before each class
        x, y = (32 * (n + 1) + 6 * (n // 3 + 1) + 16 for n in (column, row))
        wanted = colours((matrix[row, column].item() + 1) / 2, bytes=True)
        assert image.getpixel((x, y)) == pytest.approx([int(level) for level in wanted[:3]], abs=5)


def test_keys_move_it_and_it_plays_pauses_and_ends(page):
    go(page, 3)
    slider = page.get_by_role("slider")
    slider.focus()
    page.keyboard.press("ArrowRight")
    assert shown(page)[0] == 4
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    assert shown(page)[0] == 2

    page.get_by_role("button", name="Play").press("Enter")
    page.wait_for_function("document.querySelector('.play-film input').value > 4")
    page.get_by_role("button", name="Pause").click()
    held = shown(page)[0]
    page.wait_for_timeout(400)
    assert shown(page)[0] == held

    go(page, STEPS - 1)
    page.get_by_role("button", name="Play").click()
    page.get_by_role("button", name="Play").wait_for()  # it has come to its end
    assert shown(page)[0] == STEPS
    page.get_by_role("button", name="Play").click()
    page.wait_for_function("document.querySelector('.play-film input').value < 5")  # again
    page.get_by_role("button", name="Pause").click()


def test_it_is_still_until_it_is_asked(page, chapter):
    page.reload()
    page.locator(".play-button").first.click()
    page.locator(".play-film").wait_for()
    page.wait_for_timeout(400)
    assert shown(page)[0] == 0


def test_it_fits_a_phone_and_a_page(page, chapter):
    assert len(chapter["html"]) * 101 / (STEPS + 1) < 150_000
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    for control in page.locator(".play-film :is(button, label)").all():
        assert control.bounding_box()["height"] >= 24
