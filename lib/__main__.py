"""The command line: ``python -m lib``, or ``contrastive`` once it is installed."""

import ast
import functools
import io
import os
import shlex
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from tqdm import tqdm
from typer.main import get_command

from lib import SCRIPT, InputError, as_command, counted, in_a_line, unknown
from lib.files import as_path

EXAMPLES = """examples:
  python -m lib pretrain simclr-digits                       half a minute, without any download
  python -m lib pretrain supcon-cifar10 --epochs 100 --set encoder=resnet18
  python -m lib pretrain simclr-digits --epochs 0            the untrained encoder, to compare with
  python -m lib probe runs/RUN                               what do its h and z know?
  python -m lib probe runs/RUN --with uva --with labels      as published, and with few labels
  python -m lib probe runs/A runs/B --only validation        which setting is better?
  python -m lib compare runs/RUN runs/OTHER                  is one better, or is it noise?
  python -m lib publish runs/RUN                             put its record where chapters read it
  python -m lib experiments --budget-minutes 60              what is missing, most valuable first
  python -m lib experiments --only heads-slice --plan        what is there of one of them
  python -m lib tune tuning                                  what a plan's entry tries, all of it
  python -m lib replicate report-head --minutes 30           compute again what a claim rests on
  python -m lib records                                      every published accuracy
  python -m lib headline                                     the first page's table anew
  python -m lib export runs/RUN --out weights/mine           weights and a model card, for others
  python -m lib import photos --size 96 --out data/mine.npz  a folder becomes --data mine
  python -m lib embed photos --weights runs/RUN --out h.npz  features; also by a .pth or .ckpt
  python -m lib neighbours h.npz cats/1.jpg                  the pictures most alike one of them
  python -m lib predict new.npz --train h.npz                classes, by a probe on labelled ones
  python -m lib book --profile cpu --only 03                 run chapter 03 on a slice of CIFAR-10
"""
ENDS_WITH_A_CHECKPOINT = ("pretrain", "probe", "experiments", "tune", "replicate")
GOES_ON = (*ENDS_WITH_A_CHECKPOINT, "book")
WRITES_SEVERAL = ("publish", "export", "headline")  # files, one after the other
RUNS_ON_RANKS = ("pretrain", "probe")
SEVERAL_RUNS = " where a run does not say its precision"  # said of the device of several
UsageError: Any = typer.BadParameter.__bases__[0]  # typer's own, for a wrong command line

app = typer.Typer(
    help="Contrastive learning, reproduced.",
    epilog="\b\n" + EXAMPLES,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"max_content_width": 100, "help_option_names": ["-h", "--help"]},
)


def command(name: str):
    """Make a function a command of that name; its examples stand in its help.

    Its paths may begin with ~.
    """
    lines = EXAMPLES.splitlines()
    own = [line for line in lines if line.startswith(f"  python -m lib {name} ")]
    register = app.command(name, epilog="\n".join(["\b", lines[0], *own]))

    def registered(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def with_homes(**values: Any) -> None:
            function(**{parameter: _with_homes(value) for parameter, value in values.items()})

        return register(with_homes)

    return registered


def _with_homes(value: Any) -> Any:
    """A path, or those in a list, with ~ as people mean it; any other value as it is."""
    if isinstance(value, list):
        return [_with_homes(entry) for entry in value]
    if isinstance(value, Path):
        return as_path(value)
    return value


def main(arguments: list[str] | None = None) -> int:
    """Parse, run, and turn an InputError into one line and status 2.

    So are a path out of reach, and memory that is too small.
    """
    if arguments is None:  # the process is ours
        arguments = sys.argv[1:]
        warnings.showwarning = _note
    arguments = [str(argument) for argument in arguments]
    _escape_what_stdout_can_not_say()
    if f"_{SCRIPT.upper()}_COMPLETE" in os.environ:  # a shell asks what may follow
        app(prog_name=SCRIPT)
    name = next((word for word in arguments if not word.startswith("-")), "")
    if name not in ENDS_WITH_A_CHECKPOINT:
        # what was begun is cleared away, and who was started is ended
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))

    commands = get_command(app)
    try:
        if "TORCHELASTIC_RUN_ID" in os.environ and name not in RUNS_ON_RANKS:
            raise InputError("torchrun is for pretrain and probe; run this command without it")
        with commands.make_context(as_command(), arguments) as context:
            commands.invoke(context)
        sys.stdout.flush()
    except typer.Exit as done:  # after --help
        return done.exit_code
    except BrokenPipeError:  # "| head" has seen enough
        _drop_output()
        return 141
    except InputError as error:
        return _refused(str(error))
    except OSError as error:  # of a path that nobody looked at before, or of a full output
        return _refused(_out_of_reach(error))
    except (MemoryError, RuntimeError) as error:
        return _refused(_too_large(error, name))
    except UsageError as error:
        known = [name] if name in getattr(commands, "commands", ()) else []
        return _refused(f"{error.format_message()} ({as_command(*known)} --help tells more)")
    except KeyboardInterrupt:
        print(f"interrupted; {_outlook(name)}", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # or it would be an error at the very end
    return 0


def _outlook(name: str) -> str:
    """What is left of a command that was interrupted."""
    if name in GOES_ON:
        return "the same command goes on from the last checkpoint or finished chapter"
    if name in WRITES_SEVERAL:
        return "what was written before is kept, and the same command writes the rest"
    return "nothing was written"


def _note(message: Warning | str, *_: Any, **__: Any) -> None:
    """A warning in one line, without its place in the sources, above a bar that is shown."""
    with tqdm.external_write_mode(file=sys.stderr):
        print(f"note: {message}", file=sys.stderr)


def _escape_what_stdout_can_not_say() -> None:
    """A name may have letters that its encoding lacks; a stream in its place, a test's, stays."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _out_of_reach(error: OSError) -> str:
    """In a sentence; an error that is neither of a path nor of the output is raised again."""
    if error.filename is not None:
        return f"can't use {error.filename} ({error.strerror}): name another path, or allow its use"
    if _output_is_lost():
        return f"can't write the output ({error.strerror})"
    raise error


def _too_large(error: Exception, name: str) -> str:
    """What to lower, in a sentence; an error that is not of memory is raised again.

    name: the command's.
    """
    from lib.runs.trouble import out_of_memory

    if not out_of_memory(error):
        raise error
    ways = "free some, or take fewer or smaller images"
    if name == "pretrain":
        ways = "lower batch_size, embedding, size or images by --set, or choose a smaller encoder"
    return f"out of memory ({in_a_line(error, 120)}): {ways}"


def _output_is_lost() -> bool:
    """Whether not even a line's end finds a place; what waits is dropped, or it'd fail at exit."""
    try:
        print(flush=True)
    except OSError:
        _drop_output()
        return True
    return False


def _drop_output() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _refused(error: str) -> int:
    print(f"error: {error}", file=sys.stderr)
    return 2


def _for_each(folders: list[Path], work: Callable[[Path], None]) -> None:
    """As runs/* may hold what is unfinished or no run, one that is refused keeps no other back."""
    refused = 0
    for folder in folders:
        try:
            work(folder)
        except InputError as error:
            if len(folders) == 1:
                raise
            _refused(str(error))
            refused += 1
    if refused:
        raise InputError(f"{refused} of {len(folders)} were refused, see above; the rest is done")


Runs = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Folder of all runs (default runs/).")
]
DataRoot = Annotated[
    str | None,
    typer.Option(metavar="DIR", help="Folder of data sets (default DATA_ROOT, else data/)."),
]
Size = Annotated[
    int | None,
    typer.Option(
        metavar="PIXELS",
        help="Side of the images that another project's checkpoint sees, where its file does not "
        "say it.",
    ),
]
Mean = Annotated[
    tuple[float, float, float] | None,
    typer.Option(metavar="R G B", help="The mean that it takes off their pixels in [0, 1]."),
]
Std = Annotated[
    tuple[float, float, float] | None,
    typer.Option(metavar="R G B", help="The deviation that it divides them by."),
]
Device = Annotated[str | None, typer.Option(help="cuda, mps or cpu (default the best there is).")]
Wait = Annotated[
    bool,
    typer.Option(
        " /--no-wait",
        help="Leave with an error where another process is at the same work, instead of waiting.",
    ),
]
Features = Annotated[Path, typer.Argument(metavar="FEATURES.npz")]


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
        _tell_device(device, precision, chosen=chosen)
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
        print(f"next: {as_command('probe', run.folder, *_at(data_root))}")


def _tell_device(
    asked: str | None, precision: str = "auto", note: str = "", chosen: str | None = None
) -> None:
    """On stderr what computes, and why no GPU does where there is one.

    asked: the device of the command line; chosen: this rank's.
    """
    from lib import hardware
    from lib.distributed.group import rank

    if rank():
        return
    unusable = hardware.unusable_gpu() if asked is None else None
    device = hardware.choose_device(chosen or asked)
    print(f"device: {hardware.in_words(device, precision)}{note}", file=sys.stderr, flush=True)
    if unusable:
        print(f"note: {unusable}", file=sys.stderr, flush=True)


def _at(data_root: str | Path | None) -> list[str]:
    """The option that names the folder of data sets, where one was named."""
    if not data_root:
        return []
    return ["--data-root", str(data_root)]


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
    run: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs.")],
    with_: Annotated[
        list[str],
        typer.Option(
            "--with",
            metavar="PROBE",
            help="Also uva, supcontrast: linear classifiers as published. labels: few of them. "
            "fine-tuning: with few labels, beside from scratch. rotation, grey, noise: which of "
            "these a view has. calibration, calibration-by-log-loss. corruptions: of the test "
            "images. May be repeated.",
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
    from lib import data, distributed, probes
    from lib.evidence import answers
    from lib.runs import load

    load_data = functools.cache(lambda name: data.load(name, data_root))  # once for many runs
    if with_ and only:
        raise InputError(
            "--with adds to the linear probe and kNN, --only leaves them out: tell one"
        )
    wanted = only or ["linear", "knn", *with_]
    probes.refuse_unknown(wanted)
    with distributed.joined(device) as chosen:
        # at most once, and only where there is something to compute
        tell_device = functools.cache(lambda: _tell_device(device, "float32", chosen=chosen))

        def probe_one(folder: Path) -> None:
            finished = load(folder)
            if probes.unasked(finished.record, wanted):
                tell_device()
                finished.evaluate(load_data(finished.config.data), chosen, wanted, wait)
            print("\n".join(answers.in_lines(finished.record)), flush=True)

        _for_each(run, probe_one)


@command("compare")
def compare(
    first: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, or its record.")],
    second: Annotated[Path, typer.Argument(metavar="OTHER", help="What it is compared with.")],
) -> None:
    """Say by how much one run is better than another.

    On the same test images, image by image.
    """
    from lib.evidence import answers
    from lib.runs import records

    one, other = (records.read(records.file_of(path)) for path in (first, second))
    print("\n".join(answers.compared(one, other)))


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

    _for_each(run, publish_one)


@command("experiments")
def experiments(
    only: Annotated[
        list[str],
        typer.Option(metavar="NAME", help="This experiment alone, of any scale; may be repeated."),
    ] = [],  # noqa: B006
    scale: Annotated[
        str | None,
        typer.Option(
            help="slice (for a CPU), plan (what decides the questions, days on a CPU; several "
            "processes share it) or full (default full where there is a GPU, else slice)."
        ),
    ] = None,
    budget_minutes: Annotated[
        float | None, typer.Option(metavar="M", min=0, help="Begin no run that would not fit.")
    ] = None,
    plan: Annotated[
        bool,
        typer.Option(
            "--plan", help="Only say what is done, what is missing and how long it takes."
        ),
    ] = False,
    runs: Runs = None,
    data_root: DataRoot = None,
    device: Device = None,
) -> None:
    """Train, evaluate and publish what results/ lacks.

    Most valuable first. Stopped, it goes on.
    """
    from lib.evidence.experiments import PLAN, choose, in_words, overview, work
    from lib.evidence.ledger import Ledger
    from lib.runs import RUNS, records

    ledger = Ledger(data_root, records.RESULTS, runs or RUNS, device, download=not plan)
    if scale == PLAN:
        _queue(only, ledger, device, budget_minutes, plan)
        return
    chosen = choose(only, scale)
    if plan:
        print(*in_words(overview(chosen, ledger, device), ledger), sep="\n")
    else:
        _tell_device(device, note=SEVERAL_RUNS)
        work(chosen, ledger, budget_minutes, device)


def _queue(only: list[str], ledger, device: str | None, budget: float | None, plan: bool) -> None:
    """The same for the entries of the plan: the queue, which several processes may share."""
    from lib.evidence.plan import read
    from lib.evidence.queue import Queue

    entries = read()
    names = [entry.name for entry in entries]
    for name in only:
        if name not in names:
            raise InputError(unknown("entry of the plan", name, names))
    queue = Queue(entries, ledger, device, only=only)
    if plan:
        print(*queue.in_words(), sep="\n")
    else:
        _tell_device(device, note=SEVERAL_RUNS)
        queue.work(budget)


@command("tune")
def tune(
    entry: Annotated[str, typer.Argument(help="Of book/experiments.yml, with trials.")],
    budget_minutes: Annotated[
        float | None, typer.Option(metavar="M", min=0, help="Begin no trial that would not fit.")
    ] = None,
    runs: Runs = None,
    data_root: DataRoot = None,
    device: Device = None,
) -> None:
    """Try the settings that an entry declares, on validation.

    All are written down. Stopped, it goes on.
    """
    from lib.evidence import plan
    from lib.evidence.ledger import Ledger
    from lib.evidence.queue import Queue
    from lib.files import write_atomically
    from lib.runs import RUNS, records

    entries = plan.read()
    tried = {known.name: known for known in entries if known.trials}
    if entry not in tried:
        raise InputError(unknown("entry with trials", entry, tried))
    ledger = Ledger(data_root, records.RESULTS, runs or RUNS, device, download=True)
    queue = Queue(entries, ledger, device, only=[entry])
    _tell_device(device, note=SEVERAL_RUNS)
    queue.work(budget_minutes)
    for arm, trials in queue.trials(tried[entry]).items():
        path = ledger.runs / "tuning" / f"{entry}-{arm}.csv"
        write_atomically(path, trials.to_csv(index=False).encode())
        chosen = plan.choice(tried[entry], arm, queue.score)
        print(f"{arm}\n{trials.to_string(index=False, na_rep='?')}")
        print(f"{path}; chosen: {chosen or 'nothing yet, trials are missing'}")


@command("records")
def records(
    json: Annotated[bool, typer.Option("--json", help="As JSON, one object a line.")] = False,
) -> None:
    """List every published accuracy."""
    from lib.evidence import tables
    from lib.runs.records import load_all

    table = tables.table(load_all())
    if json:
        print(table.to_json(orient="records", lines=True), end="")
    elif len(table):
        print(table.drop(columns=tables.NOT_LISTED).to_string(index=False))
    else:
        print(f"no records yet; see: {as_command('publish', '--help')}")


@command("replicate")
def replicate(
    claim: Annotated[str, typer.Argument(help="Its id in book/claims.yml.")],
    minutes: Annotated[
        float, typer.Option(metavar="M", help="Of training; the largest size that fits is run.")
    ] = 30.0,
    precision: Annotated[
        str | None,
        typer.Option(help="In which the runs are trained (default that of the recorded ones)."),
    ] = None,
    runs: Runs = None,
    data_root: DataRoot = None,
    device: Device = None,
) -> None:
    """Compute again what a claim rests on, with a new seed.

    Says beforehand which runs, how long, and what would count as agreement.
    """
    from lib.data import load
    from lib.evidence import claims, plan, replication, tables
    from lib.hardware import choose_device
    from lib.runs import RUNS
    from lib.runs.records import load_all

    stated = {entry["id"]: entry for entry in claims.read()}
    asked = [name for name, entry in stated.items() if "ours" in entry]
    if claim not in asked:
        raise InputError(unknown("claim of a size that can be run here", claim, asked))
    measured = tables.measures(load_all())
    replication.recorded_sizes(stated[claim], measured)  # before any data is loaded
    dataset = load(str(stated[claim]["ours"]["like_for_like"]["data"]), data_root)
    _tell_device(device, note=SEVERAL_RUNS)
    prepared = replication.prepare(
        stated[claim],
        measured,
        plan.read(),
        dataset,
        choose_device(device),
        minutes,
        precision=precision,
    )
    print(*prepared.in_words(), sep="\n", flush=True)
    record = replication.compute(prepared, dataset, runs or RUNS, device)
    path = replication.write(record, runs or RUNS)
    print(replication.conclusion(record))
    print(f"{path}: add it to the evidence with: {as_command('publish', path)}")


@command("headline")
def headline() -> None:
    """Write the first page's table of questions anew.

    In README.md, and for the book.
    """
    from lib.evidence import claims, headline, tables
    from lib.runs.records import load_all

    headline.write(claims.read(), tables.measures(load_all()))


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
        words += _at(out.parent)
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
    _tell_device(device, "float32")
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
    _tell_device("cpu", "float32")
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


@command("book")
def book(
    profile: Annotated[str, typer.Option(help="A file in book/profiles.")] = "quick",
    only: Annotated[
        str | None, typer.Option(metavar="NN", help="Run only the chapters whose name starts so.")
    ] = None,
    wait: Wait = True,
) -> None:
    """Run the chapters that are not done yet and build the site."""
    from lib import ROOT

    if not (ROOT / "tools" / "book.py").is_file():
        raise InputError(
            f"{ROOT} is no checkout of the book, which is needed to run it: clone the repository "
            "and install it there with pip install -e ."
        )
    from tools import book as builder

    builder.run(profile, only, wait)
    print(f"open {builder.build(profile, wait)}")


if __name__ == "__main__":
    sys.exit(main())
