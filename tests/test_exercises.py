"""The exercises: solutions pass their checks, and mistakes are told, each by its sentence.

What is executed are the cells of the notebooks and the solutions folded in them; mistakes are
written here as a reader would write them.
"""

import copy
import json
import re
import textwrap
from dataclasses import replace
from functools import cache

import pytest

from lib import evaluation, exercises
from lib.augmentations import RECIPES
from lib.encoders import Model
from tools import book
from tools.book import BOOK

NOTEBOOKS = BOOK.source / "notebooks"


# --- at the end of every chapter


def exercises_of(page: str) -> list[str]:
    """The exercises of a page, each with its hint and solution."""
    if page.endswith(".md"):
        text = (BOOK.source / page).read_text(encoding="utf-8")
    else:
        cells = json.loads((NOTEBOOKS / page).read_bytes())["cells"]
        text = "\n".join("".join(cell["source"]) for cell in cells)
    _, found, after = text.partition("## Exercises\n")
    return re.split(r"^(?=(?:.*\(f\"\"\")?\*\*\d\.\*\*)", after, flags=re.M)[1:] if found else []


PAGES = ["family.md", *(path.name for path in book.chapters())]
WITH_EXERCISES = [page for page in PAGES if exercises_of(page)]


def test_nearly_every_chapter_has_exercises():
    assert len(WITH_EXERCISES) > 15
    assert sum(len(exercises_of(page)) for page in WITH_EXERCISES) > 50


@pytest.mark.parametrize("page", WITH_EXERCISES)
def test_an_exercise_is_marked_and_has_a_hint_and_a_solution(page):
    for number, text in enumerate(exercises_of(page), 1):
        start = text[:200]
        assert re.search(rf"\*\*{number}\.\*\* \*(Think|Compute|Prove)[.]?\*", start), start
        assert "Hint" in text and text.count("<summary>Solution</summary>") == 1, start


# --- write it yourself


@cache
def cells_of(name: str) -> tuple[list[str], list[str]]:
    """The code cells of a notebook, and its Markdown."""
    cells = json.loads((NOTEBOOKS / f"{name}.ipynb").read_bytes())["cells"]
    sources = {"code": [], "markdown": []}
    for cell in cells:
        sources[cell["cell_type"]].append("".join(cell["source"]))
    return sources["code"], sources["markdown"]


def begun(name: str) -> dict:
    """The names of a notebook after its parameters and imports."""
    names: dict = {}
    for source in cells_of(name)[0][1:3]:
        exec(source, names)
    return names


@pytest.fixture(scope="module")
def write_it():
    return begun("19_write_it")


def solution(name: str) -> str:
    """The source of the function of that name among the solutions."""
    for text in cells_of("19_write_it")[1]:
        for block in re.findall(r"```python\n(.*?)```", text, re.S):
            if block.startswith(f"def {name}("):
                return block
    raise AssertionError(name)


def defined(source: str, name: str, names: dict):
    """The function of that name that the source defines, where those names are known."""
    known = dict(names)
    exec(source, known)
    return known[name]


def changed(source: str, old: str, new: str) -> str:
    assert source.count(old) == 1, (old, source)
    return source.replace(old, new)


@pytest.mark.parametrize("name", ["nt_xent", "sup_con", "train", "probe"])
def test_a_gap_is_told_as_one(name, write_it):
    (gap,) = (source for source in cells_of("19_write_it")[0] if source.startswith(f"def {name}("))
    function = defined(gap, name, write_it)
    digits = write_it["digits"]
    said = {
        "nt_xent": lambda: exercises.check_nt_xent(function),
        "sup_con": lambda: exercises.check_sup_con(function),
        "train": lambda: exercises.check_training(function, digits),
        "probe": lambda: exercises.check_probe(function, untrained_features(digits), digits),
    }
    assert said[name]() == exercises.NOT_WRITTEN


@cache
def untrained_features(digits) -> dict:
    return features(Model("slim"), digits)


def features(model, digits) -> dict:
    plain = RECIPES["none"]
    splits = digits.splits.items()
    return {name: evaluation.features(model, split.images, plain)[0] for name, split in splits}


def test_the_solutions_of_both_losses_pass(write_it):
    assert exercises.check_nt_xent(defined(solution("nt_xent"), "nt_xent", write_it)) == "Passed."
    assert exercises.check_sup_con(defined(solution("sup_con"), "sup_con", write_it)) == "Passed."


@pytest.mark.parametrize(
    ("name", "chapters"), [("nt_xent", ["02_loss", "03_simclr"]), ("sup_con", ["09_positives"])]
)
def test_a_loss_is_written_letter_for_letter_as_in_its_chapters(name, chapters):
    for chapter in chapters:
        (cell,) = (s for s in cells_of(chapter)[0] if s.startswith(f"def {name}("))
        assert cell.partition("\n\n\n")[0].strip() == solution(name).strip()


NORMALISED = "F.normalize(z, dim=-1)"
LOGITS = "(z @ z.T / temperature).fill_diagonal_(-torch.inf)"
OF_NT_XENT = [
    (NORMALISED, "z", "z is not brought to length 1"),
    (NORMALISED, "F.normalize(z)", "Lengths are taken along the images"),
    (f"{NORMALISED}.flatten(0, 1)", "F.normalize(z.flatten(0, 1), dim=0)", "along the embeddings"),
    (NORMALISED, "F.normalize(torch.stack([z[0], z[1].detach()]), dim=-1)", "z is detached"),
    (
        "F.cross_entropy(logits, partner)",
        "torch.tensor(F.cross_entropy(logits, partner).item(), requires_grad=True)",
        "No gradient flows",
    ),
    ("logits, partner)", "logits, torch.arange(len(z)))", "the right answer is the anchor itself"),
    ("/ temperature", "/ 0.5", "Right at temperature 0.5 alone"),
    (LOGITS, "(z @ z.T * temperature).fill_diagonal_(-torch.inf)", "temperature is on the wrong"),
    (LOGITS, "(z @ z.T).fill_diagonal_(-torch.inf)", "The temperature has no effect"),
    (LOGITS, "z @ z.T / temperature", "The anchor is among its own negatives"),
    (LOGITS, "(z @ z.T / temperature).fill_diagonal_(0)", "e to the power of 0 still counts"),
    (LOGITS, "z @ z.T * temperature", "Two things. The temperature is on the wrong"),
    ("partner)", "partner, reduction='sum')", "The anchors' losses are added up"),
    ("partner)", "partner, reduction='none')", "Wrong shape: it must return one number"),
    ("return F", "return 2 * F", "It is twice the loss"),
    ("return F", "return -F", "The sign is wrong"),
    ("logits, partner)", "logits, partner).item()", "It must return a tensor"),
    ("logits, partner)", "logits, partner).detach()", "No gradient flows"),
    (NORMALISED, "F.normalize(z, dim=-1).float()", "Did numbers become float32"),
    (NORMALISED, "(z / (z.norm(dim=-1, keepdim=True) + 1e-6))", "was a small number added"),
    (".roll(len(z) // 2)", " ^ 1", "all first views come before all second views"),
    ("roll(len(z) // 2)", "roll(1)", "not the next row"),
    ("roll(len(z) // 2)", "roll(-1)", "not the next row"),
    ("entropy(logits", "entropy(logits.softmax(1)", "Softmax is taken twice"),
    (
        "cross_entropy(logits, partner)",
        "cross_entropy(logits * temperature, partner) / temperature",
        "The whole loss is divided by the temperature",
    ),
    ("partner)", "partner) * temperature", "The loss is multiplied by the temperature"),
    ("logits, partner)", "logits[: len(z) // 2], partner[: len(z) // 2])", "Not symmetric: only"),
    (
        "return F.cross_entropy(logits, partner)",
        "own = torch.arange(len(z))\n    positive = logits[own, partner].clone()\n"
        "    logits[own, partner] = -torch.inf\n"
        "    return (logits.logsumexp(1) - positive).mean()",
        "The partner is missing from the denominator",
    ),
    (
        "return F.cross_entropy(logits, partner)",
        "n = len(z) // 2\n    across = z[:n] @ z[n:].T / temperature\n"
        "    own = torch.arange(n)\n"
        "    return (F.cross_entropy(across, own) + F.cross_entropy(across.T, own)) / 2",
        "First views meet second views only",
    ),
    (
        "return F.cross_entropy(logits, partner)",
        "n = len(z) // 2\n    across = z[:n] @ z[n:].T / temperature\n"
        "    return F.cross_entropy(across, torch.arange(n))",
        "Not symmetric: first views are anchors, second views candidates",
    ),
    ("    z = F", "    z *= 1\n    z = F", "It raises RuntimeError"),
    (
        "return F.cross_entropy(logits, partner)",
        "powers = logits.exp()\n    push = powers.sum(1).log()\n"
        "    pull = logits[torch.arange(len(z)), partner]\n    powers.zero_()\n"
        "    return (push - pull).mean()",
        "It raises RuntimeError",  # in the way back
    ),
    ("    z = F", "    z.data *= 2\n    z = F", "It changes z itself"),
    ("return F", "return z.shape[9] + F", "It raises IndexError"),
    ("return F", "return 0.1 + F", "by no mistake that is known here"),
]
EQUAL = "(labels[:, None] == labels).fill_diagonal_(False)"
RETURNED = "(logits.fill_diagonal_(-torch.inf).logsumexp(1) - pull).mean()"
OF_SUP_CON = [
    (NORMALISED, "z", "z is not brought to length 1"),
    ("z.T / temp", "z.T * temp", "The temperature is on the wrong side"),
    ("logits.fill_diagonal_(-torch.inf)", "logits", "The anchor is among its own negatives"),
    ("(-torch.inf)", "(0)", "e to the power of 0 still counts"),
    (RETURNED, RETURNED.replace("mean", "sum"), "The anchors' losses are added up"),
    ("labels.repeat(2)", "labels.repeat_interleave(2)", "Labels in the wrong order"),
    ("labels.repeat(2)", "torch.arange(len(labels)).repeat(2)", "The labels have no effect"),
    ("labels.repeat(2)", "labels", "It raises RuntimeError"),
    (EQUAL, "labels[:, None] == labels", "The anchor is among its own positives"),
    (" / positive.sum(1)", "", "An anchor's positives are added up"),
    ("positive.sum(1)\n", "(positive.sum(1) + 1)\n", "are counted with the anchor itself"),
    (
        "(logits * positive).sum(1) / positive.sum(1)",
        "(logits.exp() * positive).sum(1).log()",
        "This is L_in without its 1/|P|",
    ),
    (RETURNED, f"temperature * {RETURNED}", "The loss is multiplied by the temperature"),
    (
        "pull = (logits * positive).sum(1) / positive.sum(1)",
        "logits.fill_diagonal_(-torch.inf)\n"
        "    pull = (logits * positive).sum(1) / positive.sum(1)",
        "Minus infinity times 0 is no number",
    ),
    (
        "(logits * positive).sum(1) / positive.sum(1)",
        "((logits.exp() * positive).sum(1) / positive.sum(1)).log()",
        "This is L_in",
    ),
    (
        RETURNED,
        "(logits.fill_diagonal_(-torch.inf).logsumexp(1, True) - z @ z.T / temperature)"
        "[positive].mean()",
        "It averages over all pairs at once",
    ),
    (
        RETURNED,
        "(logits.masked_fill(labels[:, None] == labels, -torch.inf).logsumexp(1) - pull).mean()",
        "The positives are missing from the denominator",
    ),
    (RETURNED, f"temperature / 0.07 * {RETURNED}", "There is a factor temperature / 0.07"),
]


@pytest.mark.parametrize("old, new, sentence", OF_NT_XENT, ids=lambda text: text[:30])
def test_a_mistake_in_nt_xent_is_told(old, new, sentence, write_it):
    source = changed(solution("nt_xent"), old, new)
    assert sentence in exercises.check_nt_xent(defined(source, "nt_xent", write_it))


@pytest.mark.parametrize("old, new, sentence", OF_SUP_CON, ids=lambda text: text[:30])
def test_a_mistake_in_supcon_is_told(old, new, sentence, write_it):
    source = changed(solution("sup_con"), old, new)
    assert sentence in exercises.check_sup_con(defined(source, "sup_con", write_it))


def test_the_solution_of_the_loop_passes(write_it):
    train = defined(solution("train"), "train", write_it)
    said = exercises.check_training(train, write_it["digits"])
    assert said.startswith("Passed. kNN is right in 9")


def few(digits):
    """The digits with two batches of training images: a mistake shows in the first steps."""
    return replace(digits, train=digits.train[slice(256)])


IN_BRIEF = ("epochs=10", "epochs=1")
PAIR = "views(images[places], recipe, seed=0, step=epoch * steps + step)"
ZEROED = "            optimiser.zero_grad()\n"
OF_TRAINING = [
    ("            optimiser.step()\n", "", "No step is taken"),
    ("model.train()", "model.eval()", "in evaluation mode while it trains"),
    ("model.parameters()", "Model('slim').parameters()", "The optimiser has no gradients"),
    (
        "            loss.backward()\n",
        "            loss.backward()\n" + ZEROED,
        "before backward(), not",
    ),
    (
        "model.parameters()",
        "model.head.parameters()",
        "The weights of the encoder have hardly moved",
    ),
    ("lr=2e-3", "lr=1e-12", "have hardly moved, by"),
    (PAIR, PAIR[:-1] + ", count=1).repeat(2, 1, 1, 1, 1)", "are the same picture"),
    ("pair.flatten(0, 1)", "pair.transpose(0, 1).flatten(0, 1)", "are not of one image"),
    ("pair.flatten(0, 1)", "pair[:, :, 0].flatten(0, 1)", "It raises"),
    ("schedule.step()", "schedule.step()\n            break", "It must be more than 90 %"),
    (
        "            schedule.step()\n",
        "            schedule.step()\n    model.head[0].weight.data.mul_(torch.nan)\n",
        "no numbers any more",
    ),
]


@pytest.mark.parametrize("old, new, sentence", OF_TRAINING, ids=lambda text: text[:30])
def test_a_mistake_in_the_loop_is_told(old, new, sentence, write_it):
    source = changed(changed(solution("train"), *IN_BRIEF), old, new)
    train = defined(source, "train", write_it | {"Model": Model})
    assert sentence in exercises.check_training(train, few(write_it["digits"]))


WHOLE = "            _, z = model(pair.flatten(0, 1))\n"
APART = "            z = model.head(model.encoder(pair.flatten(0, 1)))\n"
STEP = """            optimiser.zero_grad()
            loss.backward()
"""
IN_PARTS = """            optimiser.zero_grad()
            for part in pair.split(64, dim=1):
                z = model(part.flatten(0, 1))[1]
                losses.nt_xent(z.unflatten(0, (2, 64)), temperature).backward()
"""
VIEW_BY_VIEW = """            optimiser.zero_grad()
            for part in pair.split(64, dim=1):
                z = torch.stack([model(view)[1] for view in part])
                losses.nt_xent(z, temperature).backward()
"""
LOSS = "            loss = losses.nt_xent(z.unflatten(0, (2, batch)), temperature)  # or your own\n"
OTHER_LOOPS = {
    "encoder and head apart": (WHOLE, APART),
    "a named argument": (WHOLE, WHOLE.replace("model(", "model(x=")),
    "each view alone": (WHOLE, "            z = torch.cat([model(view)[1] for view in pair])\n"),
    "a look before": (
        "    model.train()\n",
        "    model.train()\n    print(model(torch.zeros(3, 3, 32, 32))[1].shape)\n",
    ),
    "in parts": (LOSS + STEP, IN_PARTS),
    "in parts, view by view": (LOSS + STEP, VIEW_BY_VIEW),
}


@pytest.mark.parametrize("way", OTHER_LOOPS)
def test_a_loop_is_not_told_of_mistakes_that_it_has_not(way, write_it):
    source = changed(changed(solution("train"), *IN_BRIEF), *OTHER_LOOPS[way])
    train = defined(source, "train", write_it)
    said = exercises.check_training(train, few(write_it["digits"]))
    assert said.startswith("Not yet: kNN is right"), said


def test_views_that_share_their_hue_are_seen_in_what_is_learnt(write_it):
    source = changed(solution("train"), "epochs=10", "epochs=2")
    train = defined(source, "train", write_it | {"recipe": RECIPES["digits"]})
    said = exercises.check_training(train, write_it["digits"])
    assert "What do its two views share?" in said


@pytest.fixture(scope="module")
def h_of_run(write_it):
    """h of the package's run, by the notebook's own cells."""
    names = dict(write_it)
    for source in cells_of("19_write_it")[0]:
        if source.startswith(("run = pretrain(", "h = {")):
            exec(source, names)
    return names["h"]


def test_the_solution_of_the_probe_passes(write_it, h_of_run):
    probe = defined(solution("probe"), "probe", write_it)
    assert exercises.check_probe(probe, h_of_run, write_it["digits"]).startswith("Passed. ")


@pytest.mark.parametrize("penalty", ["0.1", "0.0"])
def test_a_penalty_far_from_the_best_costs_more_than_a_point(penalty, write_it, h_of_run):
    probe = defined(changed(solution("probe"), "0.001", penalty), "probe", write_it)
    assert exercises.check_probe(probe, h_of_run, write_it["digits"]).startswith("Not yet: ")


ANSWER = "linear((asked - mean) / scale).argmax(1)"
OF_PROBE = [
    (ANSWER, ANSWER.removesuffix(".argmax(1)"), "these are scores of the classes"),
    (ANSWER, "linear((x - mean) / scale).argmax(1)", "these are answers for the known images"),
    (ANSWER, ANSWER.replace("(1)", "(0)"), "Wrong shape: it must return (359,)"),
    (ANSWER, f"{ANSWER}.float()", "The classes must be integers"),
    (ANSWER, "torch.zeros(359).long()", "a class for each, not (359,)"),  # whoever is asked
    (ANSWER, f"{ANSWER}.tolist()", "It must return a tensor of classes, not a list"),
    (ANSWER, "linear((asked - asked.mean(0)) / asked.std(0)).argmax(1)", "asked beside it"),
    ("max_iter=500", "max_iter=2", "Not yet: "),
    ("x.shape[1], 10", "x.shape[1], 9", "It raises IndexError"),
]


@pytest.mark.parametrize("old, new, sentence", OF_PROBE, ids=lambda text: text[:30])
def test_a_mistake_in_the_probe_is_told(old, new, sentence, write_it):
    digits = write_it["digits"]
    probe = defined(changed(solution("probe"), old, new), "probe", write_it)
    assert sentence in exercises.check_probe(probe, untrained_features(digits), digits)


# --- find the fault


@pytest.fixture(scope="module")
def find_it():
    return begun("20_find_the_fault")


def loop(number: int) -> str:
    """The source of a loop as the notebook has it; 0: the sound one."""
    name = f"loop_{number}" if number else "sound"
    (cell,) = (source for source in cells_of("20_find_the_fault")[0] if f"def {name}(" in source)
    return cell


def said_of(source: str, names: dict) -> str:
    (name,) = re.findall(r"^def (\w+)", source, re.M)
    arguments = (names[key] for key in ("train", "val", "plain"))
    return exercises.check_loop(defined(source, name, names), *arguments)


SYMPTOMS = {
    1: "gives an image another h when other images are measured beside it",
    2: "The two views of an image are the same picture",
    3: "The neighbours of the trained network are right in",
    4: "NT-Xent of these z is",
    5: "The rate must fall along a cosine",
    6: "the nearest embedding is the partner for",
}
UNRELATED = [("lr=2e-3", "lr=1e-3"), ("loss.backward()", "loss.backward()  # downhill")]


def test_the_sound_loop_passes(find_it):
    assert said_of(loop(0), find_it) == "Passed."


def test_a_loop_differs_from_the_sound_one_in_its_fault_alone():
    sound = set(loop(0).splitlines()[1:])
    for number in SYMPTOMS:
        lines = loop(number).splitlines()[1:]
        assert len(set(lines) - sound) <= 2 and len(sound - set(lines)) <= 1, number


@pytest.mark.parametrize("number", SYMPTOMS)
def test_a_fault_is_found_and_no_other_change_hides_it(number, find_it):
    source = loop(number)
    assert SYMPTOMS[number] in said_of(source, find_it)
    for old, new in UNRELATED:
        source = changed(source, old, new)
    assert SYMPTOMS[number] in said_of(source, find_it)


def mended(number: int) -> str:
    """A loop with what its solution says: in place of one piece of code another."""
    text = "\n".join(cells_of("20_find_the_fault")[1])
    part = text.partition(f"## Fault {number}\n")[2].partition("## ")[0]
    old, new = re.findall(r"```python\n(.*?)```", part, re.S)
    source = loop(number)
    indent = re.search(r"^( *)" + re.escape(old.splitlines()[0]), source, re.M).group(1)
    return changed(source, textwrap.indent(old, indent), textwrap.indent(new, indent))


@pytest.mark.parametrize("number", SYMPTOMS)
def test_a_solution_mends_its_loop(number, find_it):
    assert said_of(mended(number), find_it) == "Passed."


NEGATIVES = "(z @ z.T * temperature).fill_diagonal_(-torch.inf)"
EXCLUDED = "(z @ z.T / temperature).masked_fill(torch.eye(2 * batch) > 0, -torch.inf)"
ORDER = "order = torch.randperm(len(train))"
SECOND = "second = views(images, recipe, seed=0"
OTHER_WAYS = {
    "in the call": (1, "(model, train.images", "(model.eval(), train.images"),
    "another seed": (2, SECOND, SECOND.replace("0", "1")),
    "no shuffling": (3, ORDER, "order = torch.arange(len(train))"),
    "another side": (4, NEGATIVES, "(z / temperature @ z.T).fill_diagonal_(-torch.inf)"),
    "stepped within": (5, "        schedule.step()\n", "            schedule.step()\n"),
    "a mask": (6, "z @ z.T / temperature", EXCLUDED),
}


@pytest.mark.parametrize("way", OTHER_WAYS)
def test_another_way_to_mend_a_loop_passes(way, find_it):
    number, old, new = OTHER_WAYS[way]
    assert said_of(changed(loop(number), old, new), find_it) == "Passed."


def test_a_loop_that_measures_a_copy_passes(find_it):
    asleep = "copy.deepcopy(model).eval()"
    source = changed(loop(1), "(model, train.", f"({asleep}, train.")
    source = changed(source, "(model, val.", f"({asleep}, val.")
    assert said_of(source, find_it | {"copy": copy}) == "Passed."


NOTED = 'curves["loss"].append(loss.item())'
RIGHT = "F.cross_entropy((z @ z.T / temperature).fill_diagonal_(-torch.inf), partner)"
ENCODED = "_, z = model(torch.cat([first, second]))"
HALF_DETACHED = (
    "z = torch.cat([model(first)[1], model(views(images, recipe, 1, step, 1)[0])[1].detach()])"
)
FOOLING = [
    (4, NOTED, f'curves["loss"].append({RIGHT}.item())', "the gradient is another one's"),
    (5, "get_last_lr()[0])", "get_last_lr()[0] * 0)", "The rate must fall"),
    (3, "(answers == val.labels).float().mean().item()", "0.97", "the curve says 97 %"),
    (6, "(logits.argmax(1) == partner)", "(partner == partner)", "the curve says 100 %"),
    (2, "second = views(images", "second = views(images.roll(1, 0)", "not of one image"),
    (1, "        model.train()\n", "        model.eval()\n", "in evaluation mode while it trains"),
    (2, ENCODED, HALF_DETACHED, "No gradient comes back to z"),
    (1, 'curves["kNN"].append(', "print(", "The curve 'kNN' has 0 values in place of 5"),
    (1, "    return curves", "", "The loop must return its curves"),
    (1, "    return curves", "    return curves | {'loss': None}", "must be a list of numbers"),
    (1, "    return curves", "    return curves | {'loss': [None]}", "must be a list of numbers"),
]


@pytest.mark.parametrize("number, old, new, sentence", FOOLING, ids=lambda x: str(x)[:30])
def test_a_check_is_not_fooled(number, old, new, sentence, find_it):
    assert sentence in said_of(changed(loop(number), old, new), find_it)


FROZEN = "optimiser = torch.optim.AdamW(model.head.parameters()"
SPOILT = [
    ("lr=2e-3", "lr=1e-12", "have hardly moved"),
    ("optimiser = torch.optim.AdamW(model.parameters()", FROZEN, "The weights of the encoder have"),
    (
        "schedule.get_last_lr()[0]",
        "2e-3",
        "In step 20 the rate is 0.0000, and the curve says 0.0020",
    ),
]


@pytest.mark.parametrize("old, new, sentence", SPOILT, ids=lambda x: x[:30])
def test_the_sound_loop_can_be_spoilt(old, new, sentence, find_it):
    assert sentence in said_of(changed(loop(0), old, new), find_it)
