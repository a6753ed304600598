"""How long the chapters train with a profile: every time of a GPU that the pages promise.

By estimate (``lib.evidence.estimates``), until records tell.
"""

from collections.abc import Iterable
from dataclasses import replace

from lib.config import Config
from lib.evidence import estimates, experiments
from lib.presets import preset
from lib.settings import Settings, filled_in, load_profile
from tools.book import BOOK, Book, chapters, parameters

# what published cross-entropy leaves out of a recipe, in chapter 10
WEAKER = {"tinted": "digits", "supcontrast": "crop-flip"}


def runs(chapter: str, chosen: Settings) -> list[Config]:
    """What a chapter trains, by its settings; runs without epochs are left out."""
    made: list[Config] = []
    match chapter:
        case "03_simclr" | "07_head" | "16_speed":
            made = [preset(chosen.simclr, **chosen.delta)]
        case "04_shortcut":
            tinted = preset("simclr-tinted-digits", **chosen.delta)
            made = [replace(tinted, recipe=recipe) for recipe in ("digits", "tinted")]
        case "06_epochs":
            longer = preset(chosen.simclr, **chosen.delta)
            made = [longer, replace(longer, epochs=max(1, longer.epochs // chosen.ratio))]
        case "05_evaluation":
            own_length = chosen.delta | {"epochs": preset(chosen.ce).epochs}
            baseline = preset(chosen.ce, **own_length)
            return [*_seeds(chosen, [preset(chosen.simclr, **chosen.delta)]), baseline]
        case "10_supcon":
            supcon, ce = _both(chosen)
            recipe = WEAKER.get(ce.recipe, ce.recipe)
            made = [supcon, ce, replace(ce, epochs=supcon.epochs // 2, recipe=recipe)]
        case "11_geometry":
            simclr = preset(chosen.simclr, **chosen.delta)
            lengths = [n for n in (1, 2, 5, 10) if n < simclr.epochs] + [simclr.epochs]
            made = [replace(simclr, epochs=n) for n in lengths] + _both(chosen)
    return _seeds(chosen, made)


def _seeds(chosen: Settings, configs: list[Config]) -> list[Config]:
    """Each for every seed; a chapter without such a parameter has one."""
    seeds = getattr(chosen, "seeds", None)
    if seeds is None:
        return configs
    return [replace(config, seed=seed) for config in configs for seed in range(seeds)]


def _both(chosen: Settings) -> list[Config]:
    """SupCon, and cross-entropy at as many views unless its length is given."""
    supcon = preset(chosen.supcon, **chosen.delta)
    epochs = 2 * supcon.epochs if chosen.ce_epochs is None else chosen.ce_epochs
    return [supcon, preset(chosen.ce, **chosen.delta | {"epochs": epochs})]


def of_profile(profile: str, book: Book = BOOK) -> dict[str, list[Config]]:
    """What each chapter trains that trains what a profile says, by its name."""
    values = load_profile(profile, book.profiles)
    made = {}
    for path in chapters(book):
        names = parameters(path)
        if "runs" in names and "folder" not in names:  # one's own pictures are no profile's
            names.pop("profile")
            chosen = filled_in(values, path.stem, profile, dict.fromkeys(names))
            made[path.stem] = runs(path.stem, chosen)
    return made


def minutes(configs: Iterable[Config], device: str) -> float:
    """Of training all of them on a GPU of that name, equal ones once."""
    total = 0.0
    for config in dict.fromkeys(configs):
        needed = estimates.minutes(config, device)
        assert needed is not None, f"nothing tells how long {config.name} takes on {device}"
        total += needed
    return total


def of_experiments(scale: str) -> list[Config]:
    """The runs of the experiments of a scale, each once."""
    decisive: dict[str, Config] = {}
    for experiment in experiments.choose(scale=scale):
        for config in experiment.configs:
            decisive.setdefault(str(config.decisive), config)
    return list(decisive.values())


def in_words(minutes: float) -> str:
    """As the pages say it: in fives of minutes, half hours or hours."""
    if minutes < 100:
        return f"{5 * max(1, round(minutes / 5))} minutes"
    hours = minutes / 60
    if hours < 10:
        return f"{round(2 * hours) / 2:g} hours"
    return f"{hours:.0f} hours"


def main() -> None:
    """Print them all."""
    for profile, device in (("colab", "T4"), ("paper", "H100")):
        by_chapter = of_profile(profile)
        for chapter, configs in by_chapter.items():
            print(f"{profile}, {chapter} alone, {device}: {in_words(minutes(configs, device))}")
        every = [config for configs in by_chapter.values() for config in configs]
        print(f"{profile}, together, {device}: {in_words(minutes(every, device))}")
    full = in_words(minutes(of_experiments("full"), "H100"))
    print(f"experiments --scale full, H100: {full}")


if __name__ == "__main__":
    main()
