"""What do the features know? Linear probes and nearest neighbours on frozen h and z.

Features are computed once, in eval mode, without augmentation. Every choice of ours (the probe's L2
strength) is made on val; the chosen probe is refitted on train + val, and test is looked at once.
An encoder whose pool was train + val (the published presets) has seen val before, with its labels
under supcon and ce; then val favours weak penalties a little. Test stays untouched either way. The
published probes choose by test accuracy, as published; their last epoch stands beside the best one.
"""

from dataclasses import replace

import torch
from torch import Tensor

from lib import distributed, probes, records, statistics
from lib.augmentations import RECIPES, Recipe, apply, draw, luma
from lib.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from lib.data import Dataset, Split, first, stratified, subsets
from lib.encoders import Model
from lib.hardware import memory_format
from lib.shares import Share, room_for

BATCH_PIXELS = 2**19  # of a batch, 512 images of 32 x 32: larger ones were not faster, nor smaller
PER_CLASS = (
    10,
    20,
    50,
    100,
    200,
    400,
)  # labels per class in the sweep: UvA's, and 400; "all" is evaluate's own
SUBSETS = 5  # random ones of each size
READ_OUT = 2_000  # images of each split, at most, from which a transformation is read
TRANSFORMATIONS = {  # images (N, 3, H, W) uint8 -> their versions, which a probe must tell apart
    "rotation": lambda x: [x.rot90(turns, (2, 3)) for turns in range(4)],
    "grey": lambda x: [x, luma(x.float()).round().to(torch.uint8).expand(-1, 3, -1, -1)],
    "noise": lambda x: [
        x,
        (x + 25 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0)))
        .round()
        .clamp(0, 255)
        .to(torch.uint8),
    ],
}
CORRUPTED = 2_000  # test images, at most, that are corrupted: a stratified part of them
TABLES = {  # fields of a record
    "labels": "label_sweep",
    "calibration": "calibration",
    "calibration-by-log-loss": "calibration_by_log_loss",
    "corruptions": "corruptions",
    "validation": "validation",
}
PROBES = ("linear", "knn", *probes.PROTOCOLS, *TRANSFORMATIONS, *TABLES)


@torch.no_grad()
def features(model: Model, images: Tensor, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """h (N, width) and z (N, D), float32, of images (N, 3, H, W) uint8, on the model's device.

    recipe: the view that evaluation sees, usually ``RECIPES["none"]`` with the run's size and
    normalisation. Ranks (lib.distributed) compute a part each, and all get all.
    """
    distributed.barrier()  # patient: what ranks do between two calls takes them unequally long
    model.eval()
    device = next((p.device for p in model.parameters()), images.device)
    h, z, size, share = [], [], recipe.size or images.shape[2], Share(len(images))
    for batch in images[share.own[0]].split(max(1, BATCH_PIXELS // size**2)):
        x = apply(batch.to(device), draw(recipe, len(batch), 0, 0)).contiguous(
            memory_format=memory_format(device)
        )
        for out, rows in zip((h, z), model(x)):
            out.append(rows.float())
    return tuple(share.gather(torch.cat(rows)[None])[0] for rows in (h, z))


def knn_on_val(model: Model, dataset: Dataset, recipe: Recipe) -> float:
    """kNN accuracy of h, train against val: cheap enough to follow a run by, and test stays
    untouched."""
    device = next(model.parameters()).device
    train, val = dataset.train, dataset.val
    predicted = probes.knn(
        features(model, train.images, recipe)[0],
        train.labels.to(device),
        features(model, val.images, recipe)[0],
        len(dataset.classes),
    )
    return float((predicted == val.labels.to(device)).float().mean())


def classified(model: Model, split: Split, recipe: Recipe) -> int:
    """How many images of a split a cross-entropy model's own classifier gets right."""
    logits = features(model, split.images, recipe)[1]
    return int((logits.argmax(1) == split.labels.to(logits.device)).sum())


def evaluate(
    model: Model,
    dataset: Dataset,
    recipe: Recipe,
    method: str = "simclr",
    wanted: tuple[str, ...] = ("linear", "knn"),
) -> dict:
    """Probe h and z (where the head makes them differ): ``{"h": {"linear": ..., "knn": ...}, "z":
    ...}``.

    method: where it is "ce", z are logits, and "z" holds their own predictions as "classifier"
    instead; SupContrast's probe has the learning rate 1 for "simclr" and 5 else, and reads h only.
    wanted: which of PROBES. Each result: n test images, how many were correct, which ones (packed
    bits), and for a linear probe the L2 strength and the accuracy on val it was chosen by. A
    published probe gives two: the epoch best on test under its own name, with its curve, and the
    last epoch as "NAME-last". A transformation ("rotation") is read by a linear probe that must say
    how an image was changed (SimCLR section 4.2, table 3); its n counts versions of images.
    """
    splits = {name: getattr(dataset, name) for name in ("train", "val", "test")}
    both = {name: features(model, split.images, recipe) for name, split in splits.items()}
    kinds = ("h",) if isinstance(model.head, torch.nn.Identity) or method == "ce" else ("h", "z")
    result = {}
    for place, kind in enumerate(kinds):
        data = {
            name: (pair[place], splits[name].labels.to(pair[place].device))
            for name, pair in both.items()
        }
        result[kind] = _probed(data, len(dataset.classes), wanted)
        if "supcontrast" in wanted and kind == "h":
            protocol = replace(
                probes.PROTOCOLS["supcontrast"], learning_rate=1.0 if method == "simclr" else 5.0
            )
            batch = _augmented(model, dataset.train + dataset.val, recipe, protocol)
            result[kind] |= _published("supcontrast", protocol, batch, data, len(dataset.classes))
    for name in (name for name in TRANSFORMATIONS if name in wanted):
        for kind, found in _transformation(
            model, splits, recipe, TRANSFORMATIONS[name], kinds
        ).items():
            result[kind][name] = found
    if method == "ce":
        result["z"] = {"classifier": _result(both["test"][1].argmax(1), data["test"][1])}
    return result


def label_sweep(model: Model, dataset: Dataset, recipe: Recipe) -> list[dict]:
    """h read with few labels: PER_CLASS of every class, as many sizes as the training images allow.

    The converged probe ("linear") on random subsets, its L2 strength cross-validated within each;
    at 100 per class on the data set's own folds where it has them (STL-10). UvA's probe on the
    first images of each class, as published, its best epoch by test accuracy ("uva") and its last
    one. Returns one row each: features, probe, per_class, labels, subset, n, correct.
    """
    pool, classes = dataset.pool("train+val"), len(dataset.classes)
    x, x_test = (
        features(model, pool.images, recipe)[0],
        features(model, dataset.test.images, recipe)[0],
    )
    y, y_test = pool.labels.to(x.device), dataset.test.labels.to(x.device)
    rows = []

    def add(probe: str, per_class: int, subset: str, of: Tensor, predicted: Tensor) -> None:
        rows.append(
            {
                "features": "h",
                "probe": probe,
                "per_class": per_class,
                "labels": len(of),
                "subset": subset,
                "n": len(y_test),
                "correct": int((predicted == y_test).sum()),
            }
        )

    for size in (size for size in PER_CLASS if size < int(pool.labels.bincount().min())):
        official = size == 100 and dataset.folds
        for number, of in enumerate(
            _folds(dataset, pool) if official else subsets(pool, size, SUBSETS)
        ):
            probe = probes.cross_validated_probe(x[of], y[of], classes)
            add(
                "linear",
                size,
                f"{'fold' if official else 'random'} {number}",
                of,
                probe.predict(x_test),
            )
        of = first(pool, size).to(x.device)
        best, last, _ = probes.published_probe(
            probes.PROTOCOLS["uva"],
            lambda rows, _, of=of: x[of[rows]],
            y[of],
            (x_test, y_test),
            classes,
        )
        add("uva", size, "first", of, best)
        add("uva-last", size, "first", of, last)
    return rows


def tables(
    model: Model, dataset: Dataset, recipe: Recipe, method: str, wanted: tuple[str, ...]
) -> dict:
    """Those of TABLES that are wanted, by the record's field: each a list of rows.

    label_sweep: see there. calibration: how sure and how right the converged probe on h is (and,
    for "ce", the model's own classifier), in bins of confidence (statistics.reliability).
    calibration_by_log_loss: the same of a probe whose L2 strength did best on val by its
    log-likelihood, which asks for honest probabilities. corruptions: how many of CORRUPTED test
    images each gets right under each corruption, for severities 1 to 5; "none" are the same images
    as they are. The probe is fitted on clean images alone. validation: see there.
    """
    found = {}
    if "labels" in wanted:
        found["label_sweep"] = label_sweep(model, dataset, recipe)
    if {"calibration", "calibration-by-log-loss", "corruptions"} & {*wanted}:
        labelled = [_labelled(model, split, recipe) for split in (dataset.train, dataset.val)]
    if {"calibration", "corruptions"} & {*wanted}:
        readers = _readers(labelled, len(dataset.classes), method)
    if "calibration" in wanted:
        found["calibration"] = _calibration(model, dataset.test, recipe, readers)
    if "calibration-by-log-loss" in wanted:
        by_log_loss = _readers(labelled, len(dataset.classes), method, probes.log_likelihood)
        found["calibration_by_log_loss"] = _calibration(model, dataset.test, recipe, by_log_loss)
    if "validation" in wanted:
        found["validation"] = validation(model, dataset, recipe, method)
    if "corruptions" in wanted:
        part = dataset.test[stratified(dataset.test.labels, min(CORRUPTED, len(dataset.test)))]
        found["corruptions"] = []
        for name in ("none", *CORRUPTIONS):
            images = (
                [part.images]
                if name == "none"
                else (corrupt(part.images, name, level) for level in SEVERITIES)
            )
            pairs = [features(model, changed, recipe) for changed in images]
            found["corruptions"] += [
                {
                    "features": kind,
                    "probe": probe,
                    "corruption": name,
                    "n": len(part),
                    "correct": [
                        int((read(*pair).argmax(1).cpu() == part.labels).sum()) for pair in pairs
                    ],
                }
                for (kind, probe), read in readers.items()
            ]
    return found


def validation(model: Model, dataset: Dataset, recipe: Recipe, method: str) -> list[dict]:
    """What is chosen by: accuracies on val of readers fitted on train. Nothing here looks at test.

    One row each, as far as the model has them: the converged probe on h and on z, at the L2
    strength that did best on val; kNN on h; a cross-entropy model's own classifier. Each has
    features, probe, n and correct.
    """
    classes, n = len(dataset.classes), len(dataset.val)
    train, val = (features(model, split.images, recipe) for split in (dataset.train, dataset.val))
    y, truth = (split.labels.to(val[0].device) for split in (dataset.train, dataset.val))
    rows = []

    def add(kind: str, probe: str, accuracy: float) -> None:
        rows.append({"features": kind, "probe": probe, "n": n, "correct": round(accuracy * n)})

    kinds = ("h",) if isinstance(model.head, torch.nn.Identity) or method == "ce" else ("h", "z")
    for kind, on_train, on_val in zip(kinds, train, val):
        add(kind, "linear", probes.linear_probe((on_train, y), (on_val, truth), classes)[1])
    add("h", "knn", float((probes.knn(train[0], y, val[0], classes) == truth).float().mean()))
    if method == "ce":
        add("z", "classifier", float((val[1].argmax(1) == truth).float().mean()))
    return rows


def _calibration(model: Model, split: Split, recipe: Recipe, readers: dict) -> list[dict]:
    """A row for each reader: its reliability on a split."""
    pair, rows = features(model, split.images, recipe), []
    for (kind, probe), read in readers.items():
        confidence, predicted = read(*pair).softmax(1).cpu().max(1)
        bins = statistics.reliability(confidence, predicted == split.labels)
        rows.append({"features": kind, "probe": probe, "n": len(split)} | bins)
    return rows


def _labelled(model: Model, split: Split, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """h and labels of a split, on the model's device."""
    h = features(model, split.images, recipe)[0]
    return h, split.labels.to(h.device)


def _readers(
    labelled: list[tuple[Tensor, Tensor]], classes: int, method: str, score=probes.accuracy
) -> dict:
    """What turns h and z into logits: the converged probe on h, and z themselves where they are a
    classifier's.

    labelled: h and labels of train and of val. score: by which the probe's L2 strength is chosen.
    """
    probe, _ = probes.linear_probe(*labelled, classes, score)
    readers = {("h", "linear"): lambda h, z: probe.logits(h)}
    return readers | ({("z", "classifier"): lambda h, z: z} if method == "ce" else {})


def _folds(dataset: Dataset, pool: Split) -> list[Tensor]:
    """The data set's folds as rows of the pool, whose images are in another order."""
    rows = torch.empty_like(pool.places).scatter_(0, pool.places, torch.arange(len(pool)))
    return [rows[fold] for fold in dataset.folds]


def _probed(data: dict[str, tuple[Tensor, Tensor]], classes: int, wanted: tuple[str, ...]) -> dict:
    """Every probe that reads features computed once. data: features and labels of train, val and
    test."""
    both, (test, truth), result = _both(data), data["test"], {}
    if "linear" in wanted:
        result["linear"] = _linear(data, classes)
    if "knn" in wanted:
        result["knn"] = _result(probes.knn(*both, test, classes), truth)
    if "uva" in wanted:
        result |= _published(
            "uva", probes.PROTOCOLS["uva"], lambda rows, _: both[0][rows], data, classes
        )
    return result


def _transformation(
    model: Model, splits: dict[str, Split], recipe: Recipe, versions, kinds: tuple[str, ...]
) -> dict:
    """The linear probe's result on each kind of features, the class being the version of an
    image."""
    data = {kind: {} for kind in kinds}
    for name, split in splits.items():
        changed = versions(split.images[stratified(split.labels, min(READ_OUT, len(split)))])
        pairs = [features(model, images, recipe) for images in changed]
        for place, kind in enumerate(data):
            x = torch.cat([pair[place] for pair in pairs])
            data[kind][name] = (
                x,
                torch.arange(len(changed), device=x.device).repeat_interleave(
                    len(x) // len(changed)
                ),
            )
    return {kind: _linear(of_kind, len(changed)) for kind, of_kind in data.items()}


def _linear(data: dict[str, tuple[Tensor, Tensor]], classes: int) -> dict:
    probe, on_val = probes.linear_probe(data["train"], data["val"], classes)
    x, truth = data["test"]
    return _result(probe.predict(x), truth) | {"l2": probe.l2, "val_accuracy": on_val}


def _published(name: str, protocol: probes.Protocol, batch, data: dict, classes: int) -> dict:
    best, last, curve = probes.published_probe(
        protocol, batch, _both(data)[1], data["test"], classes
    )
    truth = data["test"][1]
    return {name: _result(best, truth) | {"curve": curve}, f"{name}-last": _result(last, truth)}


def _both(data: dict[str, tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Features and labels of train + val."""
    return tuple(torch.cat(pair) for pair in zip(data["train"], data["val"]))


def _augmented(model: Model, pool: Split, recipe: Recipe, protocol: probes.Protocol):
    """h of new views of the pool's images in every step, as SupContrast's linear stage sees
    them."""
    device = next(model.parameters()).device
    images = (
        pool.images.to(device)
        if pool.images.nbytes <= room_for(pool.images, device)
        else pool.images
    )
    views = replace(RECIPES[protocol.augment], size=recipe.size, mean=recipe.mean, std=recipe.std)

    @torch.no_grad()
    def batch(rows: Tensor, step: int) -> Tensor:
        x = apply(images[rows.to(images.device)].to(device), draw(views, len(rows), 0, step))
        return model.encoder(x.contiguous(memory_format=memory_format(device))).float()

    return batch


def _result(predicted: Tensor, truth: Tensor) -> dict:
    correct = (predicted == truth).cpu()
    return {"n": len(correct), "correct": int(correct.sum()), "bits": records.pack_bits(correct)}
