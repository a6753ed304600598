"""The encoder that runs in a page, beside the package's; and the element around it."""

import base64
import io
import shutil
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from axe_playwright_python.base import AXE_SCRIPT
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import load as deserialise
from sklearn.datasets import load_sample_image
from torchvision.transforms.functional import center_crop

from lib import InputError, data, weights
from lib.augmentations import RECIPES, apply, draw
from lib.data import decoding
from lib.data.decoding import decode, square
from lib.presets import preset
from lib.probes.seen import Seen
from tests.conftest import trained
from tests.elements import opened
from tools import book, chromium, page_encoder, photographs

if not chromium.found():
    pytest.skip("no Chromium found; nothing was computed in it", allow_module_level=True)

SIDE = 32
FIRST = 3  # the seed of the views that are there at once
CLOSE = 1e-4  # of h, whose numbers are around 1; ten times nearer than a page's digits show


# --------------------------------------------------------------------------------------------------
# weights, and a site with them


def shaken(model):
    """BatchNorm as hard as it comes: factors of both signs, means and variances of their own."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.weight)
            torch.nn.init.normal_(module.bias, std=0.3)
            module.running_mean.normal_(std=0.3)
            module.running_var.uniform_(0.5, 2)


@pytest.fixture(scope="module")
def digits():
    return data.load("tinted-digits")


@pytest.fixture(scope="module")
def home(digits, tmp_path_factory):
    """A folder of a book with weights: an encoder before training, and after some of it."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("home")
    few = {"data": "tinted-digits", "images": 300, "batch_size": 64}
    config = preset("simclr-cifar10-resnet9", epochs=1, **few)
    for name, epochs in (("before", 0), ("after", 1)):
        run = trained(replace(config, epochs=epochs), digits, folder / "runs")
        shaken(run.model)
        weights.export(run, folder / "weights" / name, digits)
    page_encoder.fit(folder / "weights" / "after")
    return folder


@pytest.fixture(scope="module")
def encoders(home):
    """By stage, as the package has them."""
    names = {"untrained": "before", "trained": "after"}
    return {stage: weights.load(home / "weights" / name, home) for stage, name in names.items()}


@pytest.fixture(scope="module")
def site(home, tmp_path_factory):
    """A folder of pages, the scripts that a build makes beside them."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "play").mkdir()
    photographs.write(folder / "play")
    page_encoder.write(folder / "play", home / "weights")
    return folder


HELPERS = """() => {
  window.encoders = {};
  const { encoders: written } = Play.data.encoder;
  for (const stage of Object.keys(written)) encoders[stage] = Encoder.decoded(written[stage]);
  window.brought = async ([text, type]) => {
    const bitmap = await Encoder.bitmapOf(new Blob([Encoder.bytes(text)], { type }));
    return [...(await Encoder.square(bitmap, 32)).pixels];
  };
  window.features = ([stage, pixels]) => {
    const { h, z } = Encoder.features(encoders[stage], Encoder.unchanged({ side: 32, pixels }));
    return [[...h], [...z]];
  };
}"""


@pytest.fixture
def page(site):
    """The element's page, for what it computes with."""
    with opened("own-folder", site) as shown:
        settled(shown)
        shown.evaluate(HELPERS)
        yield shown


def tensor(pixels):
    """Pixels (S, S, 3) uint8 as a batch of one image."""
    return torch.tensor(pixels).permute(2, 0, 1)[None]


def features(page, stage, pixels):
    """h and z by the page, of pixels (S, S, 3) uint8."""
    opaque = np.dstack([pixels, np.full(pixels.shape[:2], 255)])
    return page.evaluate("features", [stage, opaque.flatten().tolist()])


# --------------------------------------------------------------------------------------------------
# pictures


def noise(height, width, channels, seed=0):
    """Smooth noise, as hard to bring to size as a photograph."""
    coarse = np.random.default_rng(seed).integers(0, 256, (9, 7, channels)).astype(np.uint8)
    smooth = [Image.fromarray(coarse[..., c]).resize((width, height)) for c in range(channels)]
    fine = np.random.default_rng(seed).integers(-40, 40, (height, width, channels))
    return np.clip(np.stack(smooth, -1) + fine, 0, 255).astype(np.uint8)


def saved(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def pictures():
    """Files by name, each odd in its own way."""
    colour, grey = Image.fromarray(noise(53, 37, 3)), Image.fromarray(noise(70, 101, 1)[..., 0])
    transparent = noise(60, 45, 4, seed=1)
    transparent[:20, :, 3] = 0
    palette = Image.fromarray(noise(64, 40, 3, seed=2)).quantize(17)
    gamma = PngInfo()
    gamma.add(b"gAMA", (100_000).to_bytes(4, "big"))
    china = Image.fromarray(load_sample_image("china.jpg"))
    return {
        "odd.png": saved(colour, "PNG"),
        "grey.png": saved(grey, "PNG"),
        "transparent.png": saved(Image.fromarray(transparent), "PNG"),
        "palette.png": saved(palette, "PNG", transparency=3),
        "tiny.png": saved(Image.fromarray(noise(8, 11, 3, seed=3)), "PNG"),
        "narrow.png": saved(Image.fromarray(noise(500, 33, 3, seed=4)), "PNG"),
        "gamma.png": saved(colour, "PNG", pnginfo=gamma),
        "large.png": saved(china.resize((2001, 1335)), "PNG", compress_level=1),
        "turned.jpg": saved(Image.fromarray(noise(70, 120, 3)), "JPEG", exif=turned(6)),
        "mirrored.jpg": saved(Image.fromarray(noise(90, 71, 3)), "JPEG", exif=turned(5)),
        "grey.jpg": saved(grey, "JPEG", quality=90),
        "photo.jpg": saved(china, "JPEG", quality=95),
    }


def whole_and_across_first(image, size):
    """As ``square``, across and then down, and rounded between.

    Pillow 13 begins with the height of pictures more than twice as high as wide.
    """
    image = image.convert("RGB")
    shorter = min(image.size)
    width, height = (size if side == shorter else int(size * side / shorter) for side in image.size)
    across = image.resize((width, image.height), Image.Resampling.LANCZOS)
    down = across.resize((width, height), Image.Resampling.LANCZOS)
    return np.asarray(center_crop(down, size))


@pytest.fixture
def reference(monkeypatch):
    """``decode`` without what makes it quicker: JPEGs of their own size, one order of passes."""

    def decoded(content):
        with monkeypatch.context() as changed:
            changed.setattr(JpegImageFile, "draft", lambda *_: None)
            changed.setattr(decoding, "square", whole_and_across_first)
            return decode(content, SIDE)

    return decoded


def test_pictures_have_the_pixels_and_the_h_that_the_package_gives_them(page, encoders, reference):
    """To the bit, but for what the browser rounds in its own way: transparency, JPEG's colours."""
    for name, content in pictures().items():
        kind = f"image/{name.rpartition('.')[2].replace('jpg', 'jpeg')}"
        brought = page.evaluate("brought", [base64.b64encode(content).decode(), kind])
        pixels = np.array(brought, np.uint8).reshape(SIDE, SIDE, 4)[..., :3]

        apart = np.abs(pixels.astype(int) - reference(content))
        assert apart.max() <= (name.endswith(".jpg") or name.startswith("transparent")), name
        own = decode(content, SIDE)  # the package's own, quicker way
        far = np.abs(pixels.astype(int) - own)
        assert far.mean() < 1.5, name
        said = [f"{name}: {apart.max()} levels apart, {far.max()} from the quicker way"]

        for stage, encoder in encoders.items():
            h, z = encoder.features(tensor(pixels))
            ours = torch.tensor(features(page, stage, pixels))
            assert torch.allclose(ours[0], h[0], rtol=0, atol=CLOSE), name
            assert torch.allclose(ours[1], z[0], rtol=0, atol=CLOSE), name
            error = (ours[0] - h[0]).abs().max()
            there = (encoder.features(tensor(own))[0] - h).abs().max()
            said.append(f"h {stage} {error:.0e}, of the quicker way's pixels {there:.0e}")
        print("; ".join(said))


def test_what_is_no_photograph_is_refused(page):
    for width, height in ((17, 1), (1, 17)):
        content = base64.b64encode(saved(Image.new("RGB", (width, height)), "PNG")).decode()
        asked = f"brought(['{content}', 'image/png']).catch(error => error.message)"
        words = f"{width} × {height} pixels are too many"
        assert page.evaluate(asked).startswith(words)


# --------------------------------------------------------------------------------------------------
# the classifier, and what is written


def test_the_classifier_is_the_packages_probe(home, digits):
    folder = home / "weights" / "after"
    tensors, about = page_encoder.classifier(folder)
    run = weights.run(folder, home)
    seen = Seen(run.model, digits.take(300), run.recipe(digits))
    probe, _ = seen.probe("h")
    h, truth = seen.labelled("h", "test")
    logits = h @ tensors["weight"].T + tensors["bias"]
    assert tensors["weight"].shape == (10, 128)
    assert torch.allclose(logits, probe.logits(h), rtol=1e-3, atol=1e-3)
    assert about["n"] == len(truth)
    assert about["correct"] == int((logits.argmax(1) == truth).sum())
    for kind in "hz":
        x, y = seen.train_and_val(kind)
        of_3 = F.normalize(F.normalize(x[y == 3], dim=1).mean(0), dim=0)
        assert torch.allclose(tensors[f"mean_{kind}"][3], of_3, atol=1e-5)


def test_a_command_fits_it(home, capsys):
    folder = home / "weights" / "after"
    before = (folder / page_encoder.CLASSIFIER).read_bytes()
    assert page_encoder.main([str(folder)]) == 0
    assert "% of 359 test images" in capsys.readouterr().out
    again = (folder / page_encoder.CLASSIFIER).read_bytes()
    for name, value in deserialise(before).items():
        assert torch.allclose(value, deserialise(again)[name], rtol=1e-3, atol=1e-3)
    assert page_encoder.main([str(home)]) == 2
    assert "holds neither a finished run nor exported weights" in capsys.readouterr().err


def test_a_classifier_of_other_weights_is_refused(home, tmp_path):
    shutil.copytree(home / "weights", tmp_path / "weights")
    shutil.copy(tmp_path / "weights/before/model.safetensors", tmp_path / "weights/after")
    with pytest.raises(InputError, match="is not of the weights beside it; write it again"):
        page_encoder.classifier(tmp_path / "weights" / "after")
    (tmp_path / "weights" / "after" / page_encoder.CLASSIFIER).write_bytes(b"none")
    with pytest.raises(InputError, match="can't read"):
        page_encoder.classifier(tmp_path / "weights" / "after")


def test_without_both_weights_and_a_classifier_there_is_no_script(home, tmp_path):
    """And with them it is the same every time."""
    shutil.copytree(home / "weights", tmp_path / "weights")
    script = page_encoder.script(tmp_path / "weights")
    assert script and script == page_encoder.script(home / "weights")
    (tmp_path / "weights" / "after" / page_encoder.CLASSIFIER).unlink()
    page_encoder.write(tmp_path, tmp_path / "weights")
    assert not (tmp_path / page_encoder.SCRIPT).exists()


def test_the_site_has_an_encoder():
    """Of the weights that come with the book."""
    chosen = page_encoder.pair(book.BOOK.root / "weights")
    assert chosen and page_encoder.script(book.BOOK.root / "weights")


def test_all_of_it_is_small(site):
    assert sum(file.stat().st_size for file in (site / "play").glob("*.js")) < 5e6


# --------------------------------------------------------------------------------------------------
# the element


def settled(shown):
    """Wait until what was asked for is there."""
    shown.locator(".own-picture[aria-busy=false]").wait_for()


def cosines(shown):
    """What the page says: (2, 2), the two views' and the other picture's; untrained, trained."""
    found = shown.locator(".cosines data").evaluate_all(
        "all => all.map(e => [+e.value, e.textContent])"
    )
    assert all(abs(value - float(text.replace("−", "-"))) < 6e-4 for value, text in found)
    return np.array([value for value, _ in found]).reshape(2, 2)


def expected(encoders, seed, picture, other, kind):
    """The cosines by the package, of pixels (S, S, 3) uint8."""
    columns = []
    for stage in ("untrained", "trained"):
        encoder, found = encoders[stage], []
        recipe = replace(RECIPES["supcontrast"], mean=encoder.recipe.mean, std=encoder.recipe.std)
        for view, pixels in enumerate((picture, picture, other)):
            x = apply(tensor(pixels), draw(recipe, 1, seed=seed, step=0, view=view))
            with torch.no_grad():
                h, z = encoder.model(x)
            found.append(h if kind == "h" else z)
        one, two, apart = found
        columns.append([F.cosine_similarity(one, x).item() for x in (two, apart)])
    return np.array(columns).T


SAMPLE = """async name => {
  const image = await Views.read(Play.data.photographs.pictures[name].source);
  return [...(await Encoder.square(image, 32)).pixels];
}"""


def sample(shown, name):
    """A picture that comes with the page, at the encoder's size."""
    return np.array(shown.evaluate(SAMPLE, name), np.uint8).reshape(SIDE, SIDE, 4)[..., :3]


def test_pictures_views_and_head_by_mouse_and_keyboard(site, encoders):
    with opened("own-folder", site) as shown:
        settled(shown)
        dahlia, pagoda, digit = (sample(shown, name) for name in ("dahlia", "pagoda", "digit"))
        for name, pixels in photographs.pictures().items():
            whole = Image.fromarray(pixels.permute(1, 2, 0).numpy())
            lost = np.abs(sample(shown, name).astype(float) - square(whole, SIDE))  # by JPEG
            assert lost.mean() < 4, name
        assert np.allclose(
            cosines(shown), expected(encoders, FIRST, dahlia, pagoda, "z"), atol=1e-4
        )
        shown.get_by_role("button", name="Draw two new views").click()
        settled(shown)
        assert np.allclose(
            cosines(shown), expected(encoders, FIRST + 1, dahlia, pagoda, "z"), atol=1e-4
        )

        shown.get_by_label("z, behind the head").focus()
        shown.keyboard.press("ArrowRight")
        assert np.allclose(
            cosines(shown), expected(encoders, FIRST + 1, dahlia, pagoda, "h"), atol=1e-4
        )
        shown.get_by_role("radio", name="dahlia").focus()
        shown.keyboard.press("ArrowRight")
        shown.keyboard.press("ArrowRight")
        shown.locator(".tiles").get_by_text("digit", exact=True).wait_for()
        settled(shown)
        assert np.allclose(
            cosines(shown), expected(encoders, FIRST + 1, digit, dahlia, "h"), atol=1e-4
        )
        assert "Digit from scikit-learn" in shown.locator(".own-picture").inner_text()
        shown.get_by_role("button", name="Draw two new views").press("Enter")
        settled(shown)
        after = cosines(shown)
        assert np.allclose(after, expected(encoders, FIRST + 2, digit, dahlia, "h"), atol=1e-4)
        said = shown.locator(".summary").inner_text()
        assert f"{after[0, 0]:.2f} before training, {after[0, 1]:.2f} after" in said


def own(shown, name, content):
    """Choose a file, and wait until it is shown."""
    shown.locator("input[type=file]").set_input_files(
        {"name": name, "mimeType": "image/png", "buffer": content}
    )


def test_a_picture_of_ones_own_and_what_the_classifier_calls_it(home, encoders, site):
    content = pictures()["odd.png"]
    pixels = decode(content, SIDE)
    with opened("views-gallery", site, width=390, theme="dark") as shown:
        settled(shown)
        own(shown, "odd.png", content)
        shown.get_by_text("your picture", exact=True).wait_for()
        settled(shown)
        there = expected(encoders, FIRST, pixels, sample(shown, "dahlia"), "z")
        assert np.allclose(cosines(shown), there, atol=1e-4)
        assert shown.locator("input[type=radio]:checked").count() == 1  # none of the pictures

        tensors, about = page_encoder.classifier(home / "weights" / "after")
        h, z = encoders["trained"].features(tensor(pixels))
        shares = F.softmax(h[0] @ tensors["weight"].T + tensors["bias"], dim=0)
        values = shown.locator(".classes data").evaluate_all("all => all.map(e => +e.value)")
        assert np.allclose(values, shares, atol=1e-3)
        best = shown.locator(".classes .best span >> nth=0").inner_text()
        assert best == str(int(shares.argmax()))
        likeness = F.cosine_similarity(z, tensors["mean_z"])
        nearest = shown.get_by_text("Nearest classes, by the cosine").inner_text()
        for place in likeness.topk(3).indices:
            assert f"{int(place)} {likeness[place]:.3f}".replace("-", "−") in nearest
        share = (
            f"{100 * about['correct'] / about['n']:.1f}\u00a0% of tinted-digits's 359 test images"
        )
        assert share in shown.locator(".own-picture").inner_text()


def test_a_picture_that_is_dropped_and_a_file_that_is_none(encoders, site):
    content = pictures()["grey.png"]
    with opened("own-folder", site) as shown:
        settled(shown)
        own(shown, "notes.png", b"not a picture")
        shown.get_by_text(
            "notes.png is not shown: the browser can't read it as a picture."
        ).wait_for()
        settled(shown)
        shown.get_by_role("button", name="Draw two new views").click()
        own(shown, "notes.png", b"not a picture")  # amid the computation
        time.sleep(0.5)
        settled(shown)
        dahlia, pagoda = sample(shown, "dahlia"), sample(shown, "pagoda")
        there = expected(encoders, FIRST + 1, dahlia, pagoda, "z")
        assert np.allclose(cosines(shown), there, atol=1e-4)
        shown.evaluate(
            """text => {
                const files = new DataTransfer();
                files.items.add(new File([Encoder.bytes(text)], "grey.png", { type: "image/png" }));
                const box = document.querySelector(".own-picture");
                for (const kind of ["dragover", "drop"]) {
                    const about = { bubbles: true, cancelable: true, dataTransfer: files };
                    box.dispatchEvent(new DragEvent(kind, about));
                }
            }""",
            base64.b64encode(content).decode(),
        )
        shown.get_by_text("your picture", exact=True).wait_for()
        settled(shown)
        assert shown.locator(".trouble").inner_text() == ""
        picture = decode(content, SIDE)
        assert np.allclose(
            cosines(shown), expected(encoders, FIRST + 1, picture, dahlia, "z"), atol=1e-4
        )


def test_the_last_of_many_questions_is_answered(encoders, site):
    """However fast they come; and the page answers between two views."""
    with opened("own-folder", site) as shown:
        for _ in range(5):
            shown.get_by_role("button", name="Draw two new views").click()
        time.sleep(0.1)
        settled(shown)
        dahlia, pagoda = sample(shown, "dahlia"), sample(shown, "pagoda")
        assert np.allclose(
            cosines(shown), expected(encoders, FIRST + 5, dahlia, pagoda, "z"), atol=1e-4
        )


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_everybody_can_read_and_reach_it(site, theme):
    with opened("own-folder", site, width=390, theme=theme) as shown:
        settled(shown)
        shown.evaluate(AXE_SCRIPT)
        rules = {
            "preload": False,
            "runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21aa", "wcag22aa"]},
        }
        found = shown.evaluate("async rules => (await axe.run('.play', rules)).violations", rules)
        assert found == []
        order = []
        shown.locator(".play-button").first.focus()
        for _ in range(5):
            shown.keyboard.press("Tab")
            order.append(
                shown.evaluate("document.activeElement.type || document.activeElement.tagName")
            )
        assert order == ["radio", "file", "button", "radio", "BODY"]
