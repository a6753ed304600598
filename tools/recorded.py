"""What the slices' records say beside baselines that they lacked: the entry "recorded" of the plan,
as tables.

    python -m tools.recorded

Everything is computed from results/. Differences are in points, over paired seeds, with 95 %
intervals.
"""

import pandas as pd

from lib import losses, records
from lib.claims import matching
from lib.config import Config, preset
from lib.records import corruption_table
from lib.statistics import differences, over_seeds, over_strata

ON_H = {"features": "h", "probe": "linear"}
DATA = ("cifar10", "imagenette96")
CHANGES = ("rotation", "grey", "noise")


def slices(table: pd.DataFrame, data: str, head: str = "mlp") -> pd.DataFrame:
    """SimCLR's slices as their preset has them, but for the head."""
    usual = preset(f"simclr-{data}-slim")
    fields = (
        "encoder",
        "stem",
        "epochs",
        "temperature",
        "recipe",
        "batch_size",
        "optimiser",
        "precision",
    )
    return matching(
        table,
        {"data": data, "images": usual.images, "method": "simclr", "head": head}
        | {name: getattr(usual, name) for name in fields},
    )


def untrained(table: pd.DataFrame, data: str) -> pd.DataFrame:
    """The slim encoder before training, with the same head."""
    usual = preset(f"simclr-{data}-slim")
    return matching(
        table,
        {
            "data": data,
            "images": usual.images,
            "method": "untrained",
            "encoder": usual.encoder,
            "head": usual.head,
        },
    )


def baselines(table: pd.DataFrame) -> pd.DataFrame:
    """Accuracy of the linear probe on h, by data and how many images encoder and probe have
    seen."""
    found = matching(table, ON_H)
    wanted = pd.concat(
        [
            found[found.method.isin(["pixels", "untrained", "kmeans"]) & found.data.isin(DATA)],
            *(slices(found, data) for data in DATA),
            matching(
                found, {"data": "cifar10", "method": "simclr", "encoder": "slim", "images": 50_000}
            ),
        ]
    )
    wanted = wanted.drop_duplicates("id")
    rows = []
    for keys, group in wanted.groupby(["data", "images", "method", "encoder", "epochs"]):
        runs = group.drop_duplicates("seed")
        rows.append(
            dict(zip(("data", "images", "method", "encoder", "epochs"), keys))
            | {"seeds": len(runs), "accuracy, %": over_seeds(runs.accuracy).percent()}
        )
    return pd.DataFrame(rows)


def descent(found: list[dict]) -> pd.DataFrame:
    """How far from chance to its floor SupCon's loss came, and how alike different classes'
    embeddings stayed."""
    rows = []
    for record in found:
        config = Config(**record["config"])
        slim = (
            config.encoder == "slim" and config.precision == "float32" and config.positives == "out"
        )
        if config.method != "supcon" or not slim or "failed" in record:
            continue
        m = 2 * config.batch_size
        positives = (
            round((m - 2) / len(record["data"]["classes"])) + 1
        )  # of an image's class, as often as expected
        chance, floor = losses.chance(m), losses.floor(m, positives, config.temperature)
        last = record["curves"][-1]
        rows.append(
            {
                "data": record["data"]["name"],
                "trained on": record["data"]["pool"],
                "epochs": config.epochs,
                "chance": chance,
                "floor": floor,
                "loss": last["loss"] / config.factor,
                "of the way, %": 100 * (chance - last["loss"] / config.factor) / (chance - floor),
                "cosine of negatives": last["negative"],
            }
        )
    return pd.DataFrame(rows).groupby(["data", "trained on", "epochs"]).mean().reset_index()


def h_minus_z(table: pd.DataFrame) -> pd.DataFrame:
    """What the head costs, before training and after, and the difference of the two."""
    linear, rows, added = matching(table, {"probe": "linear"}), [], []
    for data in DATA:
        gaps = {}
        for name, runs in (
            ("trained", slices(linear, data)),
            ("untrained", untrained(linear, data)),
        ):
            gaps[name] = differences(
                matching(runs, {"features": "h"}), matching(runs, {"features": "z"})
            )
        learned = gaps["trained"].sub(gaps["untrained"]).dropna()
        added.append(learned)
        rows.append(
            {"data": data}
            | {name: over_seeds(gap).percent() for name, gap in gaps.items()}
            | {"trained - untrained": over_seeds(learned).percent(), "seeds": len(learned)}
        )
    rows.append(
        {
            "data": "both",
            "trained": "",
            "untrained": "",
            "trained - untrained": over_strata(added).percent(),
            "seeds": sum(map(len, added)),
        }
    )
    return pd.DataFrame(rows)


def heads(table: pd.DataFrame) -> pd.DataFrame:
    """The head's kind, over both data sets."""
    found, rows = matching(table, ON_H), []
    for other in ("linear", "none"):
        groups = {
            data: differences(slices(found, data), slices(found, data, other)) for data in DATA
        }
        rows.append(
            {"heads": f"mlp - {other}"}
            | {data: over_seeds(group).percent() for data, group in groups.items()}
            | {"over both": over_strata(list(groups.values())).percent()}
        )
    return pd.DataFrame(rows)


def changes(table: pd.DataFrame) -> pd.DataFrame:
    """How well a change of the image is read from h and from z, before training and after."""
    rows = []
    for data in DATA:
        for change in CHANGES:
            row = {"data": data, "change": change}
            for name, runs in (
                ("untrained", untrained(table, data)),
                ("trained", slices(table, data)),
            ):
                read = matching(runs, {"probe": change})
                for features in ("h", "z"):
                    values = matching(read, {"features": features}).drop_duplicates("seed").accuracy
                    row[f"{name} {features}"] = over_seeds(values).percent()
            rows.append(row)
    return pd.DataFrame(rows)


def corruption_errors(found: list[dict]) -> pd.DataFrame:
    """SupCon minus cross-entropy at equal views and augmentation: errors under corruption, absolute
    and beyond those on clean images (the paper's relative error, before its division by
    AlexNet's)."""
    table = matching(
        corruption_table(found),
        ON_H
        | {
            "data": "cifar10",
            "encoder": "slim",
            "recipe": "supcontrast",
            "positives": "out",
            "batch_size": 256,
            "precision": "float32",
        },
    )
    table = table.assign(error=1 - table.accuracy)
    rows = []
    for images, part in table.groupby("images"):
        errors = {}
        for method, epochs in (("supcon", 20), ("ce", 40)):
            runs = matching(part, {"method": method, "epochs": epochs})
            clean = runs[runs.corruption == "none"].groupby("seed").error.mean()
            corrupted = runs[runs.corruption != "none"].groupby("seed").error.mean()
            errors[method] = pd.DataFrame(
                {"corrupted": corrupted, "beyond clean": corrupted - clean}
            )
        for kind in ("corrupted", "beyond clean"):
            gap = errors["supcon"][kind].sub(errors["ce"][kind]).dropna()
            rows.append(
                {
                    "images": images,
                    "error": kind,
                    "supcon, %": 100 * errors["supcon"][kind].mean(),
                    "ce, %": 100 * errors["ce"][kind].mean(),
                    "supcon - ce": over_seeds(gap).percent(),
                }
            )
    return pd.DataFrame(rows)


def main() -> None:
    found = records.load_all()
    table = records.table(found)
    for name, part in (
        ("Baselines", baselines(table)),
        ("SupCon's way down", descent(found)),
        ("h minus z", h_minus_z(table)),
        ("Heads", heads(table)),
        ("Changes read from the features, %", changes(table)),
        ("Errors under corruption, points", corruption_errors(found)),
    ):
        print(f"{name}\n{part.to_string(index=False, float_format='{:.2f}'.format)}\n")


if __name__ == "__main__":
    main()
