"""Commands for runs: train, probe, compare, publish."""

import ast
import functools
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from lib import InputError, as_command, counted
from lib.commands.line import (
    DataRoot,
    Device,
    Runs,
    Wait,
    command,
    data_root_option,
    for_each,
    tell_device,
)


@command("pretrain")
def pretrain(
    preset: Annotated[str, typer.Argument(help="A preset's name; 'list' prints them.")],
    epochs: Annotated[
        int | None, typer.Option(help="Instead of the preset's; 0: the untrained encoder.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of initialisation, order and views.")] = None,
    data: Annotated[str | None, typer.Option(help="A data set instead of the preset's.")] = None,
    set: Annotated[
        list[str],
        typer.Option(
            metavar="FIELD=VALUE",
            help="Change any other field of lib/config.py, as encoder=slim; may be repeated.",
        ),
    ] = [],  # noqa: B006
    runs: Runs = None,
    data_root: DataRoot = None,
    device: Device = None,
    wait: Wait = True,
) -> None:
    """Train a preset with its changes.

    A run that is done is only shown, one that is half done goes on.
    """
    from lib import distributed, presets
    from lib.data import load
    from lib.data.oddities import oddities, unused_images
    from lib.methods import METHODS
    from lib.runs import RUNS
    from lib.runs import pretrain as train

    if preset == "list":
        for config in presets.PRESETS.values():
            print(
                f"{config.name:28} {config.method:7} {config.data:12} {config.encoder:9} "
                f"{config.epochs:5} epochs, batch {config.batch_size}"
            )
        return
    options = {"epochs": epochs, "seed": seed, "data": data}
    named = {field: value for field, value in options.items() if value is not None}
    changes = parse(set)
    for field in named.keys() & changes.keys():
        raise InputError(f"{field} is told twice: by --{field}, and by --set")
    config = presets.preset(preset, **changes | named)
    with distributed.joined(device) as chosen:
        with distributed.rank_0_first():  # who downloads
            dataset = load(config.data, data_root)
        precision = config.precision if config.epochs else "float32"
        tell_device(device, precision, chosen=chosen)
        taken = dataset.take(config.images)
        images = counted(taken.pool_size(config.pool), "image")
        pool = taken.pool_name(config.pool)
        print(f"{config.name} on {images} of {dataset.name} ({pool})", flush=True)
        notes = oddities(taken)
        if not METHODS[config.method].needs_labels:
            notes += unused_images(taken, config.pool)
        for line in notes:
            print(f"note: {line}", flush=True)
        run = train(config, dataset, runs or RUNS, chosen, wait=wait)
        if run.curves:
            loss = run.curves[-1]["loss"] / config.factor
            outcome = f"{counted(config.epochs, 'epoch')}, loss {loss:.3f} nats, {run.cost}"
        else:
            from lib.evidence import answers

            outcome = answers.summary(run.record)
        print(f"{run.folder}: {outcome}")
        print(f"next: {as_command('probe', run.folder, *data_root_option(data_root))}")


def parse(assignments: list[str]) -> dict:
    """``["epochs=5", "data=mine"]`` as changes: numbers, None, true or True, tuples, else text."""
    delta = {}
    for assignment in assignments:
        field, equals, text = assignment.partition("=")
        if not equals:
            raise InputError(f"--set takes field=value, got '{assignment}'")
        if field in delta:
            raise InputError(f"{field} is told twice, by --set {assignment} and before")
        delta[field] = _value(text)
    return delta


def _value(text: str) -> Any:
    """What Python reads in a text, without its warnings about the spelling; else the text."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.literal_eval(text.title() if text in ("true", "false") else text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


@command("probe")
def probe(
    run: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Folders of runs; registered or exported weights."),
    ],
    with_: Annotated[
        list[str],
        typer.Option(
            "--with",
            metavar="PROBE",
            help="Also uva, supcontrast: linear classifiers as published. labels: few of them. "
            "fine-tuning: with few labels, beside from scratch. quadrants: of h as four means, one "
            "of each quarter of the image. rotation, grey, noise: which of these a view has. "
            "calibration, calibration-by-log-loss. corruptions: of the test images. May be "
            "repeated.",
        ),
    ] = [],  # noqa: B006
    only: Annotated[
        list[str],
        typer.Option(
            metavar="PROBE",
            help="This alone, without the linear probe and kNN. --only validation reads val alone, "
            "for a choice between runs: test stays unseen. May be repeated.",
        ),
    ] = [],  # noqa: B006
    data_root: DataRoot = None,
    device: Device = None,
    wait: Wait = True,
) -> None:
    """Say what runs' h and z know, by a linear probe and kNN.

    The probe's L2 is chosen on val. --with asks more, --only less. All with 95 % intervals.
    """
    from lib import data, distributed, probes, runs, weights
    from lib.evidence import answers

    load_data = functools.cache(lambda name: data.load(name, data_root))  # once for many runs
    if with_ and only:
        raise InputError(
            "--with adds to the linear probe and kNN, --only leaves them out: tell one"
        )
    wanted = only or ["linear", "knn", *with_]
    probes.refuse_unknown(wanted)
    with distributed.joined(device) as chosen:
        # at most once, and only where there is something to compute
        tell_once = functools.cache(lambda: tell_device(device, "float32", chosen=chosen))

        def probe_one(folder: Path) -> None:
            if weights.are_weights(folder):
                finished = weights.run(folder, data_root)
            else:
                finished = runs.load(folder)
            if probes.unasked(finished.record, wanted):
                tell_once()
                finished.evaluate(load_data(finished.config.data), chosen, wanted, wait)
            print("\n".join(answers.in_lines(finished.record)), flush=True)

        for_each(run, probe_one)


@command("compare")
def compare(
    first: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run's folder, its record, or weights.")
    ],
    second: Annotated[Path, typer.Argument(metavar="OTHER", help="What it is compared with.")],
) -> None:
    """Say by how much one run is better than another.

    On the same test images, image by image.
    """
    from lib import weights
    from lib.evidence import answers
    from lib.runs import records

    def record_of(path: Path) -> dict:
        if weights.are_weights(path):
            return weights.run(path).record
        return records.read(records.file_of(path))

    print("\n".join(answers.compared(record_of(first), record_of(second))))


@command("publish")
def publish(
    run: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...", help="Folders of runs, their record.json, or replications."
        ),
    ],
) -> None:
    """Copy finished runs' records into results/.

    There the chapters read them. A run is published once it has been evaluated.
    """
    from lib.evidence import replication
    from lib.runs import records

    def publish_one(path: Path) -> None:
        if replication.is_one(path):
            print(replication.publish(path))
        else:
            print(records.publish(path))

    for_each(run, publish_one)
