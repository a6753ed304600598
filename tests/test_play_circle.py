"""Pull and push on the circle: what the page says and draws, beside the package's losses."""

import math

import pytest
import torch

from lib import losses
from tests import reference
from tests.elements import opened
from tools import chromium

if not chromium.found():
    pytest.skip("no Chromium found", allow_module_level=True)

ARROW = 90  # of a force of 1, see circle.js
LABELS = {"loss-circle": [0, 0, 1], "positives-plane": [0, 0, 1]}
SEEN = """() => {
  const box = document.querySelector(".play-box");
  const numbers = e => ["x1", "y1", "x2", "y2"].map(name => Number(e.getAttribute(name)));
  const values = selector => [...box.querySelectorAll(selector)].map(e => Number(e.value));
  return {
    degrees: [...box.querySelectorAll(".point")].map(e => Number(e.getAttribute("aria-valuenow"))),
    arrows: [...box.querySelectorAll(".arrow line")].map(numbers),
    losses: values("table:first-of-type data"),
    slopes: values("tbody data"),
  };
}"""


def expected(degrees, labels, temperature, positives, push, followed):
    """Losses, arrows (M, 4) and the first anchor's slopes, by the package and autograd."""
    angles = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    points = torch.stack([angles.cos(), angles.sin()], dim=1).requires_grad_()  # A1 A2 B1 B2 ...
    z = points.unflatten(0, (-1, 2)).transpose(0, 1)  # (2, N, 2)
    m = len(points)
    labels = torch.arange(m // 2) if labels is None else torch.tensor(labels[: m // 2])

    similarity = (points @ points.T / temperature).fill_diagonal_(-math.inf)
    pushes = similarity.logsumexp(1)
    mean = losses.sup_con(z, labels, temperature, positives)
    anchor = reference.sup_con_anchors(
        z.detach(), labels.tolist(), temperature, positives=positives
    )[0]
    if not push:
        mean, anchor = mean - pushes.mean(), anchor - pushes[0].item()

    # of the first anchor alone: autograd through its row
    own = labels.repeat_interleave(2)
    alike = (own == own[0]).nonzero()[1:, 0]
    row = similarity[0].detach().requires_grad_()
    pull = (
        row[alike].mean() if positives == "out" else row[alike].logsumexp(0) - math.log(len(alike))
    )
    alone = (row[1:].logsumexp(0) if push else 0) - pull
    assert math.isclose(alone.item(), anchor, abs_tol=1e-9)
    (slopes,) = torch.autograd.grad(alone, row)

    if followed == "all":
        (gradient,) = torch.autograd.grad(mean, points)
        gradient = m * gradient
    else:
        (gradient,) = torch.autograd.grad(similarity[0, 1:] @ slopes[1:], points)
    outwards = (gradient * points).sum(1, keepdim=True)
    gradient = gradient - outwards * points  # what is left where points are divided by their length
    force = -temperature * gradient.detach()
    size = force.norm(dim=1, keepdim=True)
    arrows = torch.where(size > 0, ARROW * force / size.sqrt().clamp(min=1e-300), 0)
    start = 100 * points.detach()
    upwards = torch.tensor([1.0, -1.0], dtype=torch.float64)  # y goes down on the page
    drawn = torch.cat([start * upwards, (start + arrows) * upwards], dim=1)
    return [mean.item(), anchor], drawn, slopes[1:]


def turn(page, name, key, times):
    page.get_by_role("slider", name=name, exact=True).focus()
    for _ in range(times):
        page.keyboard.press(key)


def set_temperature(page, steps):
    """So many notches of the slider to the right."""
    page.get_by_role("slider", name="temperature").focus()
    for _ in range(abs(steps)):
        page.keyboard.press("ArrowRight" if steps > 0 else "ArrowLeft")


def check(page, labels, temperature, positives="out", push=True, followed="all"):
    seen = page.evaluate(SEEN)
    said, arrows, slopes = expected(seen["degrees"], labels, temperature, positives, push, followed)
    m = len(seen["degrees"])
    equal = losses.chance(m) if push else -1 / temperature
    assert seen["losses"] == pytest.approx([*said, equal], abs=1e-9)
    assert torch.tensor(seen["arrows"], dtype=torch.float64).numpy() == pytest.approx(
        arrows.numpy(), abs=1e-6
    )
    assert seen["slopes"] == pytest.approx(slopes.tolist(), abs=1e-9)
    return seen


@pytest.fixture
def page(tmp_path):
    with opened("loss-circle", tmp_path) as opened_page:
        yield opened_page


def test_it_starts_as_the_figure_is(page):
    seen = check(page, None, 0.5)
    assert seen["degrees"] == pytest.approx([0, 40, 150, 170])
    text = page.locator(".play-box").inner_text()
    # as the figure and the chapter say
    for number in ("0.064", "0.036", "0.028", "0.0661", "ln 3"):
        assert number in text


def test_losses_and_arrows_are_the_packages_for_what_is_set_and_dragged(page):
    box = page.locator(".play-box")
    turn(page, "A2", "PageUp", 2)
    check(page, None, 0.5)
    assert page.evaluate(SEEN)["degrees"][1] == pytest.approx(100)

    page.get_by_label("A, B and C").check()
    assert len(check(page, None, 0.5)["degrees"]) == 6
    turn(page, "C1", "Shift+ArrowLeft", 3)
    set_temperature(page, -7)
    check(page, None, 0.1)
    set_temperature(page, -4)
    check(page, None, 0.05)

    page.get_by_label("labels: B is a second A").check()
    check(page, LABELS["loss-circle"], 0.05)
    page.get_by_label("inside, L_in").check()
    check(page, LABELS["loss-circle"], 0.05, "in")
    set_temperature(page, 15)
    check(page, LABELS["loss-circle"], 1, "in")
    page.get_by_label("by A1's alone").check()
    check(page, LABELS["loss-circle"], 1, "in", followed="anchor")
    page.get_by_label("outside the logarithm").check()
    check(page, LABELS["loss-circle"], 1, "out", followed="anchor")
    page.get_by_label("push").uncheck()
    check(page, LABELS["loss-circle"], 1, "out", push=False, followed="anchor")
    page.get_by_label("by the loss of all").check()
    check(page, LABELS["loss-circle"], 1, "out", push=False)
    assert "\u22121/τ" in box.inner_text()

    page.get_by_label("A and B", exact=True).check()  # one class: nothing but positives
    page.get_by_label("push").check()
    check(page, LABELS["loss-circle"], 1, "out")


def test_a_point_follows_the_pointer(page):
    dot = page.get_by_role("slider", name="B1").locator("path").bounding_box()
    track = page.locator(".track").bounding_box()
    middle = track["x"] + track["width"] / 2, track["y"] + track["height"] / 2
    page.mouse.move(dot["x"] + dot["width"] / 2, dot["y"] + dot["height"] / 2)
    page.mouse.down()
    page.mouse.move(middle[0], middle[1] + 20, steps=5)  # within the circle, below its middle
    page.mouse.up()
    assert page.evaluate(SEEN)["degrees"][2] == pytest.approx(270, abs=0.5)
    page.mouse.move(*middle)
    check(page, None, 0.5)


def test_a_step_is_one_of_gradient_descent_and_play_leads_to_the_floor(page):
    before = check(page, None, 0.5)
    angles = torch.tensor(before["degrees"], dtype=torch.float64).deg2rad().requires_grad_()
    z = torch.stack([angles.cos(), angles.sin()], dim=1).unflatten(0, (2, 2)).transpose(0, 1)
    (gradient,) = torch.autograd.grad(losses.nt_xent(z, 0.5), angles)
    page.get_by_role("button", name="One step").click()
    stepped = (angles - 0.2 * 0.5 * 4 * gradient).detach().rad2deg() % 360
    after = check(page, None, 0.5)
    assert after["degrees"] == pytest.approx(stepped.tolist(), abs=1e-9)
    assert after["losses"][0] < before["losses"][0]

    page.get_by_role("button", name="Play").click()
    page.get_by_role("button", name="Stop").wait_for()
    page.get_by_role("button", name="Play").wait_for()  # it ends by itself
    seen = check(page, None, 0.5)
    assert seen["losses"][0] == pytest.approx(losses.floor(4, 1, 0.5), abs=1e-6)

    assert page.get_by_text("the points rest").is_visible()

    page.get_by_role("button", name="Reset").click()
    assert page.evaluate(SEEN)["degrees"] == pytest.approx(before["degrees"])
    page.get_by_role("button", name="Play").click()
    page.get_by_role("button", name="Reset").click()  # ends it
    assert page.evaluate(SEEN)["degrees"] == pytest.approx(before["degrees"])
    page.get_by_role("button", name="Play").wait_for()
    turn(page, "A2", "Home", 1)
    assert page.evaluate(SEEN)["degrees"][1] == 0


def test_from_one_point_no_force_leads_anywhere(page):
    page.get_by_role("button", name="All at one point").click()
    seen = check(page, None, 0.5)
    assert len({tuple(arrow) for arrow in seen["arrows"]}) == 1
    page.get_by_role("button", name="Play").click()
    page.get_by_text("Where all lie in one place the forces cancel").wait_for()
    assert page.evaluate(SEEN)["degrees"] == seen["degrees"]
    page.get_by_role("button", name="Play").wait_for()


def test_below_the_planes_figure_labels_turn_the_arrows_of_the_other_cat(tmp_path):
    with opened("positives-plane", tmp_path, width=390, theme="dark") as page:
        without = check(page, None, 1, followed="anchor")
        page.get_by_role("checkbox", name="labels").check()
        labelled = check(page, LABELS["positives-plane"], 1, followed="anchor")

        def signs(seen):
            return [round(a * d - b * c) > 0 for a, b, c, d in seen["arrows"]]

        turned = [one != other for one, other in zip(signs(without), signs(labelled))]
        assert turned[2:] == [True, True, False, False]  # cat 2 turns, the dog does not


def test_it_can_be_dragged_by_a_finger(tmp_path):
    with opened("loss-circle", tmp_path, width=390) as page:
        handle = page.get_by_role("slider", name="A2").locator(".reach").bounding_box()
        assert handle["width"] >= 24
        scrolled = page.evaluate("scrollY")
        session = page.context.new_cdp_session(page)
        x, y = handle["x"] + handle["width"] / 2, handle["y"] + handle["height"] / 2
        for kind, points in (
            ("touchStart", [{"x": x, "y": y}]),
            ("touchMove", [{"x": x - 30, "y": y - 30}]),
            ("touchMove", [{"x": x - 60, "y": y - 30}]),
            ("touchEnd", []),
        ):
            session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
        assert page.evaluate(SEEN)["degrees"][1] > 60
        assert page.evaluate("scrollY") == scrolled
