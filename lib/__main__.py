"""The command line: ``python -m lib``."""

import argparse
import contextlib
import functools
import os
import signal
import sys
from pathlib import Path

from lib import InputError

EXAMPLES = """examples:
  python -m lib pretrain simclr-digits                       half a minute, without any download
  python -m lib pretrain supcon-cifar10 --epochs 100 --set encoder=resnet18
  python -m lib pretrain simclr-digits --epochs 0            the untrained encoder, to compare with
  python -m lib probe runs/RUN                               what do its h and z know?
  python -m lib probe runs/RUN --with uva --with labels      as published, and with few labels
  python -m lib publish runs/RUN                             put its record where chapters read it
  python -m lib experiments --budget-minutes 60              what is missing, most valuable first
  python -m lib records                                      every published accuracy
  python -m lib export runs/RUN --out weights/mine           weights and a model card, for others
  python -m lib import photos --size 96 --out data/mine.npz  a folder becomes --data mine
  python -m lib embed photos --weights runs/RUN --out h.npz  features; also by a .pth or .ckpt
  python -m lib neighbours h.npz cats/1.jpg                  the pictures most alike one of them
  python -m lib predict new.npz --train h.npz                classes, by a probe on labelled ones
  python -m lib book --profile cpu --only 03                 run chapter 03 on a slice of CIFAR-10
"""


def main(arguments: list[str] | None = None) -> int:
    """Parse, run, and turn an InputError into one line and exit status 2."""
    args = _parser().parse_args(arguments)
    if args.run not in (
        _pretrain,
        _probe,
        _experiments,
    ):  # which end with a checkpoint; here what was begun
        signal.signal(
            signal.SIGTERM, lambda *_: sys.exit(143)
        )  # is cleared away, and who was started is ended
    try:
        with _ranks(args) as device:
            args.device = device or getattr(args, "device", None)
            args.run(args)
            sys.stdout.flush()
    except BrokenPipeError:  # "| head" has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        resumes = args.run in (_pretrain, _probe, _experiments, _book)
        print(
            "interrupted; "
            + (
                "the same command goes on from the last checkpoint or finished chapter"
                if resumes
                else "nothing was written"
            ),
            file=sys.stderr,
        )
        return 130
    finally:
        signal.signal(
            signal.SIGTERM, signal.SIG_DFL
        )  # or it would be told as an error at the very end
    return 0


def _ranks(args):
    """The group of processes that torchrun started, where it did; gives the device each is to
    use."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return contextlib.nullcontext()
    from lib import distributed

    if args.run not in (_pretrain, _probe):
        raise InputError("torchrun is for pretrain and probe; run this command without it")
    return distributed.joined(args.device)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lib",
        description="Contrastive learning, reproduced.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(function, name: str, help: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=function.__doc__)
        sub.set_defaults(run=function)
        return sub

    sub = command(_pretrain, "pretrain", "train a preset, or go on with it")
    sub.add_argument("preset", help="a preset's name; 'list' prints them")
    sub.add_argument("--epochs", type=int, help="instead of the preset's; 0: the untrained encoder")
    sub.add_argument("--seed", type=int, help="of initialisation, order and views")
    sub.add_argument("--data", help="a data set instead of the preset's")
    sub.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="change any other field of lib/config.py, as encoder=slim or batch_size=64",
    )
    _where(sub, runs=True)
    _alone(sub)

    sub = command(_probe, "probe", "linear probe and kNN on a run's h and z")
    sub.add_argument("run_folder", metavar="RUN", type=Path, nargs="+", help="a run's folder")
    sub.add_argument(
        "--with",
        dest="wanted",
        action="append",
        default=[],
        metavar="PROBE",
        help="also uva or supcontrast (as published), or labels (the sweep); may be repeated",
    )
    _where(sub)
    _alone(sub)

    sub = command(_publish, "publish", "copy runs' records into results/")
    sub.add_argument(
        "run_folder", metavar="RUN", type=Path, nargs="+", help="a run's folder or its record.json"
    )

    sub = command(_experiments, "experiments", "run the book's experiments that have no record yet")
    sub.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="NAME",
        help="these experiments alone, of any scale",
    )
    sub.add_argument(
        "--scale",
        help="slice (for a CPU), plan (what decides the questions, days on a CPU; several "
        "processes share it) or full (default full where there is a GPU, else slice)",
    )
    sub.add_argument(
        "--budget-minutes", type=float, metavar="M", help="begin no run that would not fit"
    )
    sub.add_argument(
        "--plan",
        action="store_true",
        help="only say what is done, what is missing and how long it takes",
    )
    _where(sub, runs=True)

    sub = command(_records, "records", "list the published accuracies")
    sub.add_argument("--json", action="store_true", help="as JSON, one object a line")

    command(_headline, "headline", "write README.md's table anew from claims and records")

    sub = command(_export, "export", "write an encoder for others")
    sub.add_argument("weights", metavar="RUN", help="a run's folder, or any weights, as for embed")
    sub.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="or a file: .pth (torchvision), .onnx or .pt2 (torch.export)",
    )
    sub.add_argument(
        "--float32", action="store_true", help="a folder's weights not in half precision"
    )
    sub.add_argument("--licence", default="none stated", help="for the model card and the registry")
    _where(sub)

    sub = command(_import, "import", "make a data set of pictures")
    sub.add_argument(
        "source",
        metavar="FOLDER",
        type=Path,
        help="a folder for each class; or .npz, or Hugging Face's",
    )
    sub.add_argument("--size", type=int, default=96, help="side in pixels (default 96)")
    sub.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="NAME.npz",
        help="a path; in the folder of data sets, data/, it is found as --data NAME",
    )

    sub = command(_embed, "embed", "features of pictures")
    sub.add_argument(
        "source", metavar="IMAGES", type=Path, help="as for import; a folder may be without classes"
    )
    sub.add_argument(
        "--weights",
        required=True,
        metavar="NAME",
        help="registered or exported weights, a run's folder, or another project's checkpoint",
    )
    sub.add_argument("--out", type=Path, required=True, metavar="FEATURES.npz")
    _where(sub)

    sub = command(_neighbours, "neighbours", "the pictures most alike one of them")
    sub.add_argument("source", metavar="FEATURES.npz", type=Path)
    sub.add_argument("file", help="of which picture, as it was named below the folder")
    sub.add_argument("--count", type=int, default=5, help="how many (default 5)")

    sub = command(_predict, "predict", "classes of pictures, by a probe on labelled ones")
    sub.add_argument("source", metavar="FEATURES.npz", type=Path)
    sub.add_argument(
        "--train",
        type=Path,
        required=True,
        metavar="LABELLED.npz",
        help="features too, with classes",
    )

    sub = command(_book, "book", "run the chapters and build the site")
    sub.add_argument("--profile", default="quick", help="a file in book/profiles (default quick)")
    sub.add_argument("--only", metavar="NN", help="run only the chapters whose name starts so")
    _alone(sub)
    return parser


def _where(parser: argparse.ArgumentParser, runs: bool = False) -> None:
    if runs:
        parser.add_argument(
            "--runs", type=Path, metavar="DIR", help="folder of all runs (default runs/)"
        )
    parser.add_argument(
        "--data-root", metavar="DIR", help="folder of data sets (default DATA_ROOT, else data/)"
    )
    parser.add_argument("--device", help="cuda, mps or cpu (default the best there is)")


def _alone(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--no-wait",
        dest="wait",
        action="store_false",
        help="leave with an error where another process is at the same work, instead of waiting",
    )


def _pretrain(args) -> None:
    """Train a preset with its changes. A run that is done is only shown, one that is half done goes
    on."""
    from lib import config, data, distributed, training

    if args.preset == "list":
        print(
            "\n".join(
                f"{c.name:24} {c.method:7} {c.data:9} {c.encoder:9} {c.epochs:5} epochs, batch "
                f"{c.batch_size}"
                for c in config.PRESETS.values()
            )
        )
        return
    named = {
        field: getattr(args, field)
        for field in ("epochs", "seed", "data")
        if getattr(args, field) is not None
    }
    chosen = config.preset(args.preset, **config.parse(args.set) | named)
    with distributed.first():  # who downloads
        dataset = data.load(chosen.data, args.data_root)
    images = len(dataset.take(chosen.images).pool(chosen.pool))
    what = chosen.pool if dataset.unlabeled is not None or chosen.pool == "train" else "train+val"
    print(f"{chosen.name} on {images:,} images of {dataset.name} ({what})", flush=True)
    run = training.pretrain(
        chosen, dataset, args.runs or training.RUNS, args.device, wait=args.wait
    )
    print(
        f"{run.folder}: "
        + (
            f"{chosen.epochs} epochs, loss {run.curves[-1]['loss']:.3f}, {run.cost}"
            if run.curves
            else "untrained"
        )
    )
    print(f"next: python -m lib probe {run.folder}")


def _probe(args) -> None:
    """Evaluate runs: linear probe (L2 chosen on val) and kNN on h and z, and what --with adds, with
    95 % intervals."""
    from lib import data, records, statistics, training

    load = functools.cache(lambda name: data.load(name, args.data_root))  # once for many runs
    for folder in args.run_folder:
        run = training.load_run(folder)
        wanted = ("linear", "knn", *args.wanted)
        if training.missing(run.record, wanted):
            training.evaluate(run, load(run.config.data), args.device, wanted, args.wait)
        for features, probes in run.record["evaluation"].items():
            for probe, result in probes.items():
                interval = statistics.binomial(result["correct"], result["n"])
                print(
                    f"{run.folder.name}  {features}  {probe:16}  {interval.percent()} %  n = "
                    f"{result['n']}"
                )
        for row in statistics.summarise_labels(records.label_table([run.record]), []).itertuples():
            interval = statistics.Interval(row.mean, row.low, row.high)
            print(
                f"{run.folder.name}  h  {row.probe:8} {row.per_class:4} labels a class  "
                f"{interval.percent()} %  "
                f"over {row.interval}"
            )


def _publish(args) -> None:
    """Copy the records of finished, evaluated runs into results/, which the chapters read."""
    from lib import records

    for folder in args.run_folder:
        print(records.publish(folder))


def _experiments(args) -> None:
    """Train, evaluate and publish what results/ has no record of, most valuable first; stopped, it
    goes on."""
    from lib import experiments, records, training

    runs = args.runs or training.RUNS
    ledger = experiments.Ledger(
        args.data_root, records.RESULTS, runs, args.device, download=not args.plan
    )
    if args.scale == experiments.PLAN:
        return _plan(args, ledger)
    chosen = experiments.choose(args.only, args.scale)
    if not args.plan:
        return experiments.run(chosen, ledger, args.budget_minutes, args.device)
    print(*experiments.told(experiments.plan(chosen, ledger, args.device), ledger), sep="\n")


def _plan(args, ledger) -> None:
    """The same for the entries of the plan: the queue, which several processes may share."""
    from lib import plan
    from lib.config import unknown
    from lib.queue import Queue

    entries = plan.read()
    for name in args.only:
        if name not in [entry.name for entry in entries]:
            raise InputError(unknown("entry of the plan", name, [entry.name for entry in entries]))
    queue = Queue(
        [entry for entry in entries if not args.only or entry.name in args.only],
        ledger,
        args.device,
    )
    if not args.plan:
        return queue.work(args.budget_minutes)
    table = queue.table()
    print(table.to_string(index=False, float_format="{:.1f}".format, na_rep="?"))
    print(
        f"{table.done.sum()} of {table.runs.sum()} runs are done; {table.hours.sum():.1f} hours "
        "are left for one "
        f"process of {ledger.device['threads']} threads"
    )
    for line in (*queue.choices(), *(f"note: {why}" for why in ledger.missing.values())):
        print(line)


def _records(args) -> None:
    """List every published accuracy."""
    from lib import records

    table = records.table(records.load_all())
    if args.json:
        print(table.to_json(orient="records", lines=True), end="")
    else:
        print(
            table.drop(columns=["correct", "variant", "name", *records.RUN_COLUMNS[-4:]]).to_string(
                index=False
            )
            if len(table)
            else "no records yet; see: python -m lib publish --help"
        )


def _headline(args) -> None:
    """Write README.md's table of the main questions anew, from book/claims.yml and results/."""
    from lib import ROOT, claims, records

    claims.write_headline(ROOT / "README.md", claims.measures(records.load_all()))


def _export(args) -> None:
    """Write an encoder and its head: a folder with half-precision weights and a model card, or a
    file by its ending."""
    from lib import data, weights

    if args.out.suffix:
        return print(f"{args.out}: {weights.load(args.weights, args.data_root).write(args.out)}")
    run = weights.run(args.weights, args.data_root)
    entry = weights.export(
        run, args.out, data.load(run.config.data, args.data_root), not args.float32, args.licence
    )
    print(
        f"{args.out}: use it as --weights {args.out}, or by a name, from an address, as in "
        "weights/registry.yml:\n- "
        + "\n  ".join(f"{field}: {value}" for field, value in entry.items())
    )


def _import(args) -> None:
    """Make a data set of pictures. Broken ones are skipped and named."""
    from lib import data, images

    counts, report = images.make(args.source, args.size, args.out)
    print(f"{args.out}: {', '.join(f'{n} {split}' for split, n in counts.items())}\n{report}")
    where = f" --data-root {args.out.parent}" * (
        args.out.resolve().parent != data.data_root().resolve()
    )
    print(
        f"a first try: python -m lib pretrain {images.first_try(counts, args.size)} --data "
        f"{args.out.stem}{where}"
    )


def _embed(args) -> None:
    """Write h, z, the files' names and labels of pictures as an .npz."""
    from lib import estimator, weights

    if args.out.suffix != ".npz":
        raise InputError(f"--out must be FEATURES.npz, got {args.out}")
    using = weights.load(args.weights, args.data_root)
    found, report = estimator.embed(args.source, using, args.device)
    estimator.write(args.out, found)
    told = f"{args.out}: h {found['h'].shape}, z {found['z'].shape}", using.about, str(report)
    print(*filter(None, told), sep="\n")


def _neighbours(args) -> None:
    """List the pictures whose h is most alike that of one of them, each with its cosine."""
    from lib import estimator

    for file, cosine in estimator.neighbours(estimator.read(args.source), args.file, args.count):
        print(f"{cosine:.3f}  {file}")


def _predict(args) -> None:
    """Say each picture's likeliest class and its probability, by the converged linear probe on h of
    labelled ones."""
    from lib import estimator

    for file, name, probability in estimator.predict(
        estimator.read(args.train), estimator.read(args.source)
    ):
        print(f"{file}  {name}  {probability:.3f}")


def _book(args) -> None:
    """Run the chapters of a profile that are not done yet, then build the site."""
    from lib import book

    book.run(args.profile, args.only, args.wait)
    print(f"open {book.build(args.profile, args.wait)}")


if __name__ == "__main__":
    sys.exit(main())
