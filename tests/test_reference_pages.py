"""The reference pages agree with what they tell of: configurations, and the chapters' traps."""

import json
import re

import pytest
from torch import nn

from lib.augmentations import RECIPES
from lib.config import Config, difference
from lib.data.dataset import VAL_SHARE
from lib.encoders import ENCODERS
from lib.evidence import plan
from lib.methods import METHODS
from lib.presets import PRESETS, preset
from lib.probes.published import PROTOCOLS, SIMCLR_RATE
from lib.training import batch_sizes
from tools import book
from tools.book import BOOK

# --- protocols side by side

# official training images, and how the page calls the data
DATA = {
    "cifar10": (50_000, "CIFAR-10"),
    "imagenette96": (9_469, "Imagenette, {size} x {size}"),
}
NAMES = {"resnet9": "narrow ResNet-9", "slim": "small CNN"}
# which arms of an entry a table has; of two, what differs is said of the second
ARMS = {
    "SimCLR on large images": ["simclr"],
    "SimCLR on CIFAR-10": ["simclr"],
    "SupCon and cross-entropy": ["supcon", "ce"],
}
# rows that no configuration decides
PROSE = {
    "$r = h$ before the head",
    "BatchNorm's statistics",
    "pixels of a view",
    "accuracy",
    "which epoch is kept",
}


def tables(name: str) -> dict[str, dict[str, dict[str, str]]]:
    """The tables of a page: by heading, then column, then row, the cells' texts."""
    found = {}
    for section in (BOOK.source / name).read_text(encoding="utf-8").split("\n## ")[1:]:
        heading, _, text = section.partition("\n")
        lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| ")]
        cells = [[cell.strip() for cell in line] for line in lines]
        if cells:
            (_, *columns), *rows = cells
            assert all(len(row) == len(columns) + 1 for row in rows), heading
            found[heading] = {
                column: {row[0]: row[place] for row in rows}
                for place, column in enumerate(columns, start=1)
            }
    return found


def power(value: float) -> str:
    """``$10^{-4}$``, ``$2 \\cdot 10^{-4}$``."""
    digit, exponent = f"{value:.0e}".split("e")
    factor = "" if digit == "1" else rf"{digit} \cdot "
    return f"${factor}10^{{{int(exponent)}}}$"


def images(config: Config) -> int:
    """How many are trained on."""
    total = config.images or DATA[config.data][0]
    return total - round(total * VAL_SHARE)


def stem(encoder: nn.Module) -> str:
    """The first convolution, and what pools at once after it."""
    convolution, *after = [
        layer for layer in encoder.modules() if isinstance(layer, nn.Conv2d | nn.MaxPool2d)
    ]
    side = convolution.kernel_size[0]
    words = f"{side} x {side} stem with stride {convolution.stride[0]}"
    return f"{words} and max-pool" if isinstance(after[0], nn.MaxPool2d) else words


def described(config: Config, open_fields: set[str]) -> dict[str, str]:
    """The rows of a configuration. open_fields: those that trials are still to choose."""

    def unless_open(field: str, text: str) -> str:
        return "to be tuned" if field in open_fields else text

    recipe = RECIPES[config.recipe]
    encoder, width = ENCODERS[config.encoder](config.stem)
    head = f"{width}-{width}-{config.embedding}, no BatchNorm"
    optimiser = {"sgd": f"SGD, momentum {config.momentum:g}", "adamw": "AdamW"}[config.optimiser]
    temperature, factor = f"{config.temperature:g}", f"{config.factor:g}"
    if METHODS[config.method].classifier:
        temperature = "-"
    if config.factor == 1:
        factor = "none"
    if "temperature" in open_fields and config.base_temperature is not None:
        factor = rf"$\tau / {config.base_temperature:g}$"

    warmup = "no warm-up"
    if config.warmup:
        warmup = f"{config.warmup:g} epoch{'s' * (config.warmup > 1)} of warm-up"
    end = f"1/{1 / config.final_rate:g}" if config.final_rate else "0"
    total = images(config)
    seen = DATA[config.data][1].format(size=config.size)
    return {
        "images": f"{total:,} of {seen}",
        "encoder": f"{NAMES[config.encoder]}, {stem(encoder)}, $h$ {width}-d",
        "head": {"mlp": head, "linear": "linear classifier"}[config.head],
        "crops, share of the area": f"{100 * recipe.crop_scale[0]:g} to 100 %",
        "colour jitter": ", ".join(f"{strength:g}" for strength in recipe.jitter),
        "grey": unless_open("recipe", f"{recipe.greyscale:g}"),
        "blur": "every view" if recipe.blur_sigma else "none",
        "temperature": unless_open("temperature", temperature),
        "factor on the loss": factor,
        "optimiser": f"{optimiser}, weight decay {power(config.weight_decay)}",
        "learning rate": unless_open("learning_rate", f"{config.learning_rate:g}"),
        "schedule": f"{warmup}, cosine by the epoch to {end}",
        "label smoothing": unless_open("label_smoothing", f"{config.label_smoothing:g}"),
        "batch": unless_open("batch_size", f"{config.batch_size:,}"),
        "epochs": f"{config.epochs}",
        "steps": f"{config.epochs * len(batch_sizes(config, total)):,}",
    }


def of_arm(entry: plan.Entry, name: str) -> dict[str, str]:
    """The rows of an arm of the plan: its lengths, and what trials choose or have chosen."""
    arm = entry.arms[name]
    open_fields: set[str] = set()
    if not arm.is_settled:
        (trials,) = [e.trials[arm.tuned] for e in plan.read() if arm.tuned in e.trials]
        open_fields = {"batch_size", "learning_rate"}.union(*trials.then) - trials.among.keys()

    by_length = [described(arm.config(epochs=epochs), open_fields) for epochs in arm.seeds]
    seeds = [f"{epochs} ({count} seeds)" for epochs, count in arm.seeds.items()]
    steps = [length["steps"] for length in by_length]
    return by_length[-1] | {"epochs": ", ".join(seeds), "steps": "; ".join(steps)}


def expected(heading: str, name: str) -> dict[str, str]:
    """The rows of what is run here, by the name of a preset or of an entry of the plan."""
    if name in PRESETS:
        return described(preset(name), set())

    (entry,) = [entry for entry in plan.read() if entry.name == name]
    first, *others = (of_arm(entry, arm) for arm in ARMS[heading])
    for other in others:
        for row in first.keys() - {"temperature", "factor on the loss"}:
            if other[row] != first[row]:
                first[row] += f"; cross-entropy: {other[row]}"
        first["label smoothing"] = f"cross-entropy: {other['label smoothing']}"
    return first


OURS = [  # headed by an entry of the plan or by a preset
    (heading, column, named[1])
    for heading, columns in tables("protocols.md").items()
    for column in columns
    if (named := re.fullmatch(r"(?:here: )?`(.+)`", column))
]


@pytest.mark.parametrize("heading, column, name", OURS)
def test_what_is_run_here_stands_on_the_page_as_it_is_configured(heading, column, name):
    cells = tables("protocols.md")[heading][column]
    wanted = expected(heading, name)
    assert len(cells) > 8
    assert cells.keys() <= wanted.keys() | PROSE
    for row in cells.keys() - PROSE:
        assert cells[row] == wanted[row], f"protocols.md, {heading}, {column}, {row}"


def test_published_probes_stand_on_the_page_as_they_are_kept():
    names = {"AdamW": "adamw", "SGD": "sgd"}
    by_source = zip(tables("protocols.md")["Probes"].values(), PROTOCOLS.values(), strict=False)
    for cells, protocol in by_source:
        name, rate = re.match(r"(\w+), rate ([\d.]+)", cells["optimiser"]).groups()
        assert (names[name], float(rate)) == (protocol.optimiser, protocol.learning_rate)
        assert cells["batch"] == f"{protocol.batch_size}"
        assert cells["epochs"] == f"{protocol.epochs}"

        decay = f"weight decay {protocol.weight_decay:g}" if protocol.weight_decay else "none"
        assert cells["penalty"] == decay
        falls = ", ".join(map(str, protocol.milestones))
        assert cells["rate"] == f"to 1/{1 / protocol.factor:g} after {falls}"
        every = "epoch" if protocol.look_every == 1 else f"{protocol.look_every} epochs"
        assert cells["accuracy"] == f"best on test, every {every}"
    assert cells["optimiser"].endswith(f"; {SIMCLR_RATE:g} for SimCLR")


def test_what_the_page_says_in_words_of_presets_is_so():
    named = ("simclr-cifar10-slim", "supcon-cifar10-slim")
    assert difference(*map(preset, named)) == {
        "method": ("simclr", "supcon"),
        "temperature": (0.5, 0.1),
    }
    changed = difference(preset("ce-stl10"), preset("ce-imagenette96-resnet9"))
    assert changed.keys() == {"data", "pool", "size", "encoder", "test_every", "seed"}


# --- traps

TRAP = re.compile(r'^> \*\*Trap (\d+): (.+?)(?:\.|(?<=\?))\*\*<a id="([\w-]+)"></a> ', re.M)
ROW = re.compile(r"^\| (\d+)\. \[(.+?)\]\(notebooks/(\w+)\.ipynb#(trap-[\w-]+)\) \|", re.M)
LINK = re.compile(r"\[[Tt]rap (\d+)\]\((?:notebooks/)?(?:(\w+)\.ipynb)?#(trap-[\w-]+)\)")


def markdown(path) -> str:
    """What a page says, of a notebook its cells of text."""
    content = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb":
        return content
    cells = json.loads(content)["cells"]
    texts = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
    return "\n\n".join(texts)


def told() -> list[tuple[int, str, str, str]]:
    """The traps in the order of the book: number, name, chapter, anchor."""
    found = []
    for path in book.chapters():
        for number, name, anchor in TRAP.findall(markdown(path)):
            found.append((int(number), name, path.stem, anchor))
    return found


def test_traps_are_numbered_by_their_place_in_the_book():
    traps = told()
    assert len(traps) > 20
    for place, (number, name, chapter, anchor) in enumerate(traps, start=1):
        assert number == place, f"{chapter}: trap {number}, {name}, is the {place}th"
        words = re.findall("[a-z0-9]+", name.lower())
        assert anchor == "-".join(["trap", *words]), f"{chapter}: the anchor of trap {number}"
    for path in book.chapters():  # a trap that is written in another way is not overlooked
        text = markdown(path)
        assert len(re.findall(r"\*\*Trap", text)) == len(TRAP.findall(text)), path.stem


def test_the_list_of_traps_has_each_once_in_order():
    rows = ROW.findall(markdown(BOOK.source / "traps.md"))
    assert [(int(number), *rest) for number, *rest in rows] == told()


def test_links_to_traps_name_their_numbers():
    numbers = {(chapter, anchor): number for number, _, chapter, anchor in told()}
    seen = 0
    for path in [*BOOK.source.glob("*.md"), *book.chapters()]:
        for number, chapter, anchor in LINK.findall(markdown(path)):
            assert numbers[chapter or path.stem, anchor] == int(number), f"{path.name}: {anchor}"
            seen += 1
    assert seen > 2


def test_what_was_kept_is_there_under_its_name():
    page = (BOOK.source / "kept.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:simclr|supcon|ce)-[\w-]+)`", page)
    assert {"simclr-stl10", "simclr-stl10-100", "supcon-cifar10-report"} <= set(named)
    assert set(named) <= set(PRESETS)
