"""The generator of views on chapter 1's page draws and computes what the package does."""

import base64
import io
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from lib.augmentations import apply, draw
from tests import elements
from tools import book, chromium, photographs

if not chromium.found():
    pytest.skip("no Chromium found; the generator of views was not tried", allow_module_level=True)

CHAPTER = book.BOOK.source / "notebooks" / "01_views.ipynb"
# as a picture without loss, which is shorter than its numbers
PIXELS = """canvas => canvas.toDataURL("image/png").split(",")[1]"""
NAMES = ("brightness", "contrast", "saturation", "hue")


class Generator:
    """The element on its page."""

    def __init__(self, page):
        self.page = page
        page.locator(".play-views strong").first.wait_for()

    def choose(self, picture, recipe):
        self.page.get_by_role("radio", name=picture, exact=True).check()
        self.page.locator(f"canvas[aria-label*='{picture}']").wait_for()  # it has been read
        self.page.locator("select").select_option(recipe)

    def switch(self, step, on):
        self.page.get_by_role("checkbox", name=step).set_checked(on)

    def slide(self, step, value):
        self.page.get_by_role("slider", name=step).fill(str(value))

    def draw_again(self):
        self.page.get_by_role("button", name="Draw two others").click()

    def pixels(self, place):
        """Of a canvas, the photograph's (0) or a view's (1, 2): (3, S, S) uint8."""
        written = base64.b64decode(
            self.page.locator(".play-views canvas").nth(place).evaluate(PIXELS)
        )
        image = Image.open(io.BytesIO(written)).convert("RGB")
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)

    def accounts(self):
        return [
            text.replace("\xa0", " ")
            for text in self.page.locator("[aria-live] p").all_inner_texts()
        ]

    def farthest(self, recipe, seed):
        """The largest difference of a view's channel from the package's, in 255ths."""
        picture = self.pixels(0)
        gaps = []
        for number in (0, 1):
            made = replace(recipe, size=len(self.pixels(1 + number)[0]))
            drawn = draw(made, 1, seed=seed, step=0, view=number)
            gaps.append(
                (255 * apply(picture[None], drawn)[0] - self.pixels(1 + number)).abs().max()
            )
        return float(max(gaps))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of a page, and of the script that the site's build makes beside it."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "play").mkdir()
    photographs.write(folder / "play")
    return folder


@pytest.fixture(scope="module")
def page(folder):
    with elements.opened("views-recipes", folder) as page:
        yield page


@pytest.fixture
def generator(page):
    """As it is at first."""
    page.reload()
    page.locator(".play-button").first.click()
    return Generator(page)


# canvases hold whole numbers, so half of one, and rounding in 32 bits
NEAREST = 0.5 + 0.01


@pytest.mark.parametrize("picture", ["dahlia", "pagoda", "digit"])
def test_views_are_the_packages_to_the_nearest_of_255_levels(generator, picture):
    for name in ("uva", "supcontrast", "crop-flip", "tinted"):
        generator.choose(picture, name)
        start = int(generator.page.locator(".drawing output").inner_text().removeprefix("seed "))
        for seed in range(start, start + 3):
            assert generator.farthest(photographs.recipes()[name], seed) < NEAREST, (name, seed)
            generator.draw_again()


def test_steps_can_be_switched_and_set(generator):
    """Each alone, at another strength than the recipe's; then none, which is a smaller picture."""
    recipe = photographs.recipes()["uva"]
    nothing = replace(
        recipe, crop_scale=None, flip=0.0, jitter_probability=0.0, greyscale=0.0, blur_sigma=None
    )
    alone = {
        "Crop": (0.5, {"crop_scale": (0.5, 1.0)}),
        "Flip": (1, {"flip": 1.0}),
        "Colours": (2, {"jitter": (1.0, 1.0, 1.0, 0.2), "jitter_probability": 0.8}),
        "Grey": (0.95, {"greyscale": 0.95}),
        "Blur": (3.7, {"blur_sigma": (0.1, 3.7)}),
    }
    changed = generator.page.get_by_text("changed by you")
    assert not changed.is_visible()
    for step in alone:
        generator.switch(step, False)
    assert changed.is_visible()
    assert generator.farthest(nothing, seed=1) < NEAREST
    assert generator.accounts()[0].endswith(
        "the whole picture; not mirrored; colours kept; not grey; not blurred."
    )

    plain = generator.pixels(1)
    for step, (strength, change) in alone.items():
        generator.switch(step, True)
        generator.slide(step, strength)
        assert generator.farthest(replace(nothing, **change), seed=1) < NEAREST, step
        assert (generator.pixels(1) != plain).any(), step
        generator.switch(step, False)

    generator.page.get_by_role("button", name="Undo").click()
    assert generator.farthest(recipe, seed=1) < NEAREST and not changed.is_visible()


def test_the_papers_recipe_blurs_half_of_its_views(generator):
    """By a number that the package's draw for one image leaves over."""
    generator.choose("pagoda", "paper")
    paper = photographs.recipes()["paper"]
    blurred = []
    for seed in range(1, 5):
        for view, said in enumerate(generator.accounts()):
            philox = np.random.Philox(key=[seed, 0], counter=[0, 0, 0, view])
            blurred.append(np.random.Generator(philox).random(32)[31] < 0.5)
            made = replace(paper, size=96, blur_sigma=paper.blur_sigma if blurred[-1] else None)
            ours = apply(generator.pixels(0)[None], draw(made, 1, seed=seed, step=0, view=view))[0]
            assert (255 * ours - generator.pixels(1 + view)).abs().max() < NEAREST
            assert ("not blurred" in said) != blurred[-1]
        generator.draw_again()
    assert len(set(blurred)) == 2


def test_what_is_said_was_drawn_and_the_frames_are_the_crops(generator):
    generator.draw_again()
    for view, said in enumerate(generator.accounts()):
        drawn = draw(photographs.recipes()["uva"], 1, seed=2, step=0, view=view)
        top, left, h, w = drawn.boxes(256, 256)[0].tolist()
        assert f"crop of {h} × {w} pixels" in said
        assert f"{top} from the top, {left} from the left" in said
        assert ("; mirrored" in said) == drawn.flip.item()
        assert ("then grey" in said) == drawn.grey.item()
        assert f"blurred by {drawn.sigma.item():.2f} pixels" in said

        if drawn.jittered:
            found = re.findall(r"(brightness|contrast|saturation|hue) (?:× )?([+−]?[\d.]+)", said)
            assert [name for name, _ in found] == [NAMES[n] for n in drawn.order[0].tolist()]
            for name, number in found:
                amount = drawn.jitter[0, NAMES.index(name)].item()
                assert float(number.replace("−", "-")) == pytest.approx(amount, abs=0.0051)
        else:
            assert "colours kept" in said

        frame = generator.page.locator(".framed rect[fill=none]").nth(2 * view)
        shown = [float(frame.get_attribute(name)) for name in ("y", "x", "height", "width")]
        assert shown == [top, left, h, w]


def test_keys_work_and_a_phone_is_wide_enough(generator):
    page = generator.page
    page.set_viewport_size({"width": 390, "height": 844})
    slider = page.get_by_role("slider", name="Blur")
    slider.focus()
    page.keyboard.press("End")
    assert slider.get_attribute("aria-valuetext") == "4.0 px"
    page.get_by_role("button", name="Draw two others").focus()
    page.keyboard.press("Enter")
    recipe = replace(photographs.recipes()["uva"], blur_sigma=(0.1, 4.0))
    assert generator.farthest(recipe, seed=2) < NEAREST

    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    for control in page.locator(".play-views :is(button, select, label)").all():
        assert control.bounding_box()["height"] >= 24


def test_pictures_and_recipes_are_the_chapters():
    code = "".join("".join(cell["source"]) for cell in json.loads(CHAPTER.read_bytes())["cells"])
    assert "paper = replace(uva, jitter=(0.8, 0.8, 0.8, 0.2))" in code
    assert "squares = torch.stack([china[:, :, :427], flower[:, :, 95:522]])" in code
    assert 'digit = load("tinted-digits").train.images[13:14]' in code
    for name in ("supcontrast", "crop-flip", "tinted"):
        assert f'RECIPES["{name}"]' in code


def test_the_script_is_small_and_the_same_every_time(folder, generator):
    written = (folder / "play" / "photographs.js").read_text(encoding="utf-8")
    assert written == photographs.script() and len(written) < 80_000
    for picture, pixels in photographs.pictures().items():
        generator.choose(picture, "uva")
        lost = (generator.pixels(0).float() - pixels).abs()  # by JPEG
        assert lost.mean() < 4, picture


def test_the_site_has_the_script_and_the_repository_has_not(tmp_path):
    small = book.Book(tmp_path)
    folder = small.source / "_play" / "play"
    folder.mkdir(parents=True)
    (small.root / "README.md").touch()
    (small.source / "_toc.yml").write_text("root: intro", encoding="utf-8")
    book.stage("quick", tmp_path / "staged", small)
    written = tmp_path / "staged" / "_play" / "play" / "photographs.js"
    assert written.read_text(encoding="utf-8") == photographs.script()
    assert not (elements.SCRIPTS / "photographs.js").exists() and not list(folder.iterdir())
