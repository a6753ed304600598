"""Commands for pictures and weights of one's own: export, import, embed, neighbours, predict."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from lib import InputError, as_command, counted
from lib.commands.line import (
    DataRoot,
    Device,
    Features,
    Mean,
    Size,
    Std,
    command,
    data_root_option,
    tell_device,
)


@command("export")
def export(
    weights: Annotated[
        str, typer.Argument(metavar="RUN", help="A run's folder, or any weights, as for embed.")
    ],
    out: Annotated[
        Path,
        typer.Option(
            metavar="FOLDER", help="Or a file: .pth (torchvision), .onnx or .pt2 (torch.export)."
        ),
    ],
    float32: Annotated[
        bool, typer.Option("--float32", help="A folder's weights not in half precision.")
    ] = False,
    licence: Annotated[
        str | None,
        typer.Option(help="For a folder's model card and the registry (default none stated)."),
    ] = None,
    size: Size = None,
    mean: Mean = None,
    std: Std = None,
    data_root: DataRoot = None,
) -> None:
    """Write an encoder for others.

    A folder with half-precision weights, its head and a model card, or a file by its ending.
    """
    from lib import data
    from lib import weights as registry
    from lib.weights.foreign import StatedView
    from lib.weights.registry import refuse_a_stated_view

    if out.suffix and not out.is_dir():
        options = {"--float32": float32, "--licence": licence is not None}
        given = [option for option, is_given in options.items() if is_given]
        if given:
            raise InputError(
                f"{out} is a file: leave out {' and '.join(given)}, meant for a folder"
            )
        using = registry.load(weights, data_root, size=size, mean=mean, std=std)
        print(f"{out}: {using.write(out)}")
        if using.about:
            print(using.about)
        return
    run = registry.run(weights, data_root)
    refuse_a_stated_view(weights, StatedView(size=size, mean=mean, std=std))
    dataset = data.load(run.config.data, data_root)
    terms = licence or "none stated"
    entry = registry.export(run, out, dataset, half=not float32, licence=terms)
    print(
        f"{out}: use it as --weights {shlex.quote(str(out))}, or by a name, from an address, as "
        "in weights/registry.yml:"
    )
    print("- " + "\n  ".join(f"{field}: {value}" for field, value in entry.items()))


@command("import")
def import_(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER", help="A folder for each class; or .npz, or Hugging Face's."
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            metavar="NAME.npz",
            help="A path; in the folder of data sets, data/, it is found as --data NAME.",
        ),
    ],
    size: Annotated[int, typer.Option(help="Side in pixels.")] = 96,
    replace: Annotated[
        bool, typer.Option("--replace", help="Put it in the place of another one of that name.")
    ] = False,
) -> None:
    """Make a data set of pictures. Broken ones are skipped and named."""
    from lib.data import data_root, pictures

    counts, report = pictures.make(source, size, out, replace)
    made = ", ".join(f"{n} {split}" for split, n in counts.items())
    print(f"{out}: {made}\n{report}")
    words = [*pictures.first_try(counts, size), "--data", out.stem]
    if out.resolve().parent != data_root().resolve():
        words += data_root_option(out.parent)
    print(f"a first try: {as_command('pretrain', *words)}")


@command("embed")
def embed(
    source: Annotated[
        Path,
        typer.Argument(metavar="IMAGES", help="As for import; a folder may be without classes."),
    ],
    weights: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Registered or exported weights, a run's folder, or another project's checkpoint.",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="FEATURES.npz")],
    size: Size = None,
    mean: Mean = None,
    std: Std = None,
    data_root: DataRoot = None,
    device: Device = None,
) -> None:
    """Write pictures' h and z as an .npz.

    With the names and labels of their files.
    """
    from lib.files import refuse_unwritable
    from lib.weights import estimator, load

    if out.suffix != ".npz":
        raise InputError(f"--out must be FEATURES.npz, got {out}")
    using = load(weights, data_root, size=size, mean=mean, std=std)
    refuse_unwritable(out)  # before all is computed
    tell_device(device, "float32")
    features, report = estimator.embed(source, using, device)
    estimator.write(out, features)
    print(f"{out}: h {features['h'].shape}, z {features['z'].shape}")
    for line in (using.about, str(report)):
        if line:
            print(line)


@command("neighbours")
def neighbours(
    source: Features,
    file: Annotated[
        str, typer.Argument(help="Of which picture, as it was named below the folder.")
    ],
    count: Annotated[int, typer.Option(help="How many.")] = 5,
) -> None:
    """List the pictures whose h is most alike that of one of them.

    Each with its cosine.
    """
    from lib.weights import estimator

    for name, cosine in estimator.neighbours(estimator.read(source), file, count):
        print(f"{cosine:.3f}  {name}")


@command("predict")
def predict(
    source: Features,
    train: Annotated[
        Path, typer.Option(metavar="LABELLED.npz", help="Features too, with classes.")
    ],
) -> None:
    """Say each picture's likeliest class and its probability.

    By the linear probe on h of labelled ones. Where classes are known, how many are right, but for
    pictures that the probe has learnt from.
    """
    from lib.evidence.statistics import binomial
    from lib.weights import estimator

    labelled, features = estimator.read(train), estimator.read(source)
    known = int((features["labels"] >= 0).sum())
    tell_device("cpu", "float32")
    predicted = estimator.predict(labelled, features)
    for file, name, probability in predicted:
        print(f"{file}  {name}  {probability:.3f}")
    right = estimator.rights(features, [name for _, name, _ in predicted], labelled)
    if len(right):
        share = binomial(int(right.sum()), len(right))
        new = f"{counted(len(right), 'picture')} of known class"
        account = f"{share.percent()} % right, of {new} that the probe has not learnt from"
        print(account, file=sys.stderr)
    elif known:
        print(
            f"how many are right can't be said: of {counted(known, 'picture')} of known class the "
            "probe has learnt from all; embed others",
            file=sys.stderr,
        )
