"""What the slices' records say beside baselines that they lacked: the plan's "recorded", as tables.

    python -m tools.recorded

Everything is computed from results/. Differences are in points, over paired seeds, with 95 %
intervals.
"""

import pandas as pd

from lib import losses
from lib.config import Config
from lib.evidence.comparisons import Comparison, over_pairs
from lib.evidence.statistics import differences, over_seeds, over_strata
from lib.evidence.tables import corruption_table, matching, table
from lib.presets import preset
from lib.runs import records

ON_H = {"features": "h", "probe": "linear"}
DATA = ("cifar10", "imagenette96")
CHANGES = ("rotation", "grey", "noise")
# what the slices have as their preset has it
USUAL = (
    "encoder",
    "stem",
    "epochs",
    "temperature",
    "recipe",
    "batch_size",
    "optimiser",
    "precision",
)
# SupCon and cross-entropy at equal views and augmentation, and how many epochs that takes
EPOCHS = {"supcon": 20, "ce": 40}
EQUAL = ON_H | {
    "data": "cifar10",
    "encoder": "slim",
    "recipe": "supcontrast",
    "positives": "out",
    "batch_size": 256,
    "precision": "float32",
}


def slices(table: pd.DataFrame, data: str, head: str = "mlp") -> pd.DataFrame:
    """SimCLR's slices as their preset has them, but for the head."""
    usual = preset(f"simclr-{data}-slim")
    wanted = {"data": data, "images": usual.images, "method": "simclr", "head": head}
    return matching(table, wanted | {name: getattr(usual, name) for name in USUAL})


def untrained(table: pd.DataFrame, data: str) -> pd.DataFrame:
    """The slim encoder before training, with the same head."""
    usual = preset(f"simclr-{data}-slim")
    wanted = {name: getattr(usual, name) for name in ("data", "images", "encoder", "head")}
    return matching(table, wanted | {"method": "untrained"})


def baselines(table: pd.DataFrame) -> pd.DataFrame:
    """Accuracy of the linear probe on h, by data and how many images were seen."""
    on_h = matching(table, ON_H)
    without_training = on_h.method.isin(["pixels", "untrained", "kmeans"])
    whole = {"data": "cifar10", "method": "simclr", "encoder": "slim", "images": 50_000}
    wanted = [on_h[without_training & on_h.data.isin(DATA)], matching(on_h, whole)]
    for data in DATA:
        wanted.append(slices(on_h, data))

    by = ["data", "images", "method", "encoder", "epochs"]
    rows = []
    for setting, group in pd.concat(wanted).drop_duplicates("id").groupby(by):
        accuracies = group.drop_duplicates("seed").accuracy
        rows.append((*setting, len(accuracies), over_seeds(accuracies).percent()))
    return pd.DataFrame(rows, columns=[*by, "seeds", "accuracy, %"])


def descent(kept: list[dict]) -> pd.DataFrame:
    """How far SupCon's loss came from chance to its floor, and how alike the classes stayed."""
    rows = []
    for record in kept:
        config = Config(**record["config"])
        if config.method != "supcon" or config.encoder != "slim" or "failed" in record:
            continue
        if config.precision != "float32" or config.positives != "out":
            continue

        m = 2 * config.batch_size
        # of an image's class, as often as expected
        positives = round((m - 2) / len(record["data"]["classes"])) + 1
        chance, floor = losses.chance(m), losses.floor(m, positives, config.temperature)

        last = record["curves"][-1]
        loss = last["loss"] / config.factor
        rows.append(
            {
                "data": record["data"]["name"],
                "trained on": record["data"]["pool"],
                "epochs": config.epochs,
                "chance": chance,
                "floor": floor,
                "loss": loss,
                "of the way, %": 100 * (chance - loss) / (chance - floor),
                "cosine of negatives": last["negative"],
            }
        )
    return pd.DataFrame(rows).groupby(["data", "trained on", "epochs"]).mean().reset_index()


def h_minus_z(table: pd.DataFrame) -> pd.DataFrame:
    """What the head costs, before training and after, and the difference of the two."""
    linear = matching(table, {"probe": "linear"})
    added = []
    rows = []
    for data in DATA:
        after = _gap(slices(linear, data))
        before = _gap(untrained(linear, data))
        learned = after.sub(before).dropna()
        added.append(learned)
        rows.append((data, *map(_points, (after, before, learned))))

    rows.append(("both", "", "", _points_over_both(added)))
    return pd.DataFrame(rows, columns=["data", "trained", "untrained", "trained - untrained"])


def _gap(runs: pd.DataFrame) -> pd.Series:
    """h's accuracy minus z's, by seed."""
    return differences(matching(runs, {"features": "h"}), matching(runs, {"features": "z"}))


def _points(pairs: pd.Series) -> str:
    """Differences by seed in words."""
    comparison = over_pairs(pairs)
    if comparison is None:
        return "-"
    return comparison.points()


def _points_over_both(groups: list[pd.Series]) -> str:
    """The mean difference over both data sets, each with the same weight."""
    return Comparison(*over_strata(groups), sum(map(len, groups))).points()


def heads(table: pd.DataFrame) -> pd.DataFrame:
    """The head's kind, over both data sets."""
    on_h = matching(table, ON_H)
    rows = []
    for other in ("linear", "none"):
        groups = [differences(slices(on_h, data), slices(on_h, data, other)) for data in DATA]
        rows.append((f"mlp - {other}", *map(_points, groups), _points_over_both(groups)))
    return pd.DataFrame(rows, columns=["heads", *DATA, "over both"])


def changes(table: pd.DataFrame) -> pd.DataFrame:
    """How well a change of the image is read from h and from z, before training and after."""
    rows = []
    for data in DATA:
        stages = {"untrained": untrained(table, data), "trained": slices(table, data)}
        for change in CHANGES:
            row = {"data": data, "change": change}
            for stage, runs in stages.items():
                for features in ("h", "z"):
                    probed = matching(runs, {"probe": change, "features": features})
                    accuracies = probed.drop_duplicates("seed").accuracy
                    row[f"{stage} {features}"] = over_seeds(accuracies).percent()
            rows.append(row)
    return pd.DataFrame(rows)


def corruption_errors(kept: list[dict]) -> pd.DataFrame:
    """SupCon minus cross-entropy at equal views and augmentation: errors under corruption.

    Absolute, and beyond those on clean images (the paper's relative error, before its division by
    AlexNet's).
    """
    rows = []
    for images, group in matching(corruption_table(kept), EQUAL).groupby("images"):
        supcon, ce = (_errors(group, method) for method in EPOCHS)
        for kind in ("corrupted", "beyond clean"):
            gap = differences(supcon.assign(accuracy=supcon[kind]), ce.assign(accuracy=ce[kind]))
            rows.append(
                {
                    "images": images,
                    "error": kind,
                    "supcon, %": 100 * supcon[kind].mean(),
                    "ce, %": 100 * ce[kind].mean(),
                    "supcon - ce": _points(gap),
                }
            )
    return pd.DataFrame(rows)


def _errors(table: pd.DataFrame, method: str) -> pd.DataFrame:
    """A method's errors under corruption by seed: corrupted, and beyond clean."""
    runs = matching(table, {"method": method, "epochs": EPOCHS[method]})
    error = 1 - runs.accuracy
    is_clean = runs.corruption == "none"

    clean = error[is_clean].groupby(runs.seed).mean()
    corrupted = error[~is_clean].groupby(runs.seed).mean()
    errors = pd.DataFrame({"corrupted": corrupted, "beyond clean": corrupted - clean})
    return errors.rename_axis("seed").reset_index()


def main() -> None:
    kept = records.load_all()
    accuracies = table(kept)
    tables = {
        "Baselines": baselines(accuracies),
        "SupCon's way down": descent(kept),
        "h minus z": h_minus_z(accuracies),
        "Heads": heads(accuracies),
        "Changes read from the features, %": changes(accuracies),
        "Errors under corruption, points": corruption_errors(kept),
    }
    for name, rows in tables.items():
        print(f"{name}\n{rows.to_string(index=False, float_format='{:.2f}'.format)}\n")


if __name__ == "__main__":
    main()
