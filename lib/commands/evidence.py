"""Commands for the evidence: what is missing, tuning, all records, claims computed again."""

from typing import Annotated

import typer

from lib import InputError, as_command, unknown
from lib.commands.line import SEVERAL_RUNS, DataRoot, Device, Runs, command, tell_device


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
        tell_device(device, note=SEVERAL_RUNS)
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
        tell_device(device, note=SEVERAL_RUNS)
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
    tell_device(device, note=SEVERAL_RUNS)
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
    tell_device(device, note=SEVERAL_RUNS)
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
