"""The command line: ``python -m lib``, or ``contrastive`` once it is installed."""

import io
import os
import signal
import sys
import warnings
from typing import Any

import typer
from tqdm import tqdm
from typer.main import get_command

from lib import SCRIPT, InputError, as_command, in_a_line
from lib.commands import app
from lib.commands.line import refuse

ENDS_WITH_A_CHECKPOINT = ("pretrain", "probe", "experiments", "tune", "replicate")
GOES_ON = (*ENDS_WITH_A_CHECKPOINT, "book")
WRITES_SEVERAL = ("publish", "export", "headline")  # files, one after the other
RUNS_ON_RANKS = ("pretrain", "probe")
UsageError: Any = typer.BadParameter.__bases__[0]  # typer's own, for a wrong command line


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
        return refuse(str(error))
    except OSError as error:  # of a path that nobody looked at before, or of a full output
        return refuse(_out_of_reach(error))
    except (MemoryError, RuntimeError) as error:
        return refuse(_too_large(error, name))
    except UsageError as error:
        known = [name] if name in getattr(commands, "commands", ()) else []
        return refuse(f"{error.format_message()} ({as_command(*known)} --help tells more)")
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


if __name__ == "__main__":
    sys.exit(main())
