"""What a GPU does first, with commands that are noted and not run."""

import pytest

from lib import InputError
from tests.conftest import small, trained
from tools import gpu


def test_the_smoke_test_comes_first_and_the_export_last(toy, tmp_path):
    runs, commands = tmp_path / "runs", []
    for delta in ({"epochs": 1}, {"epochs": 2}, {"epochs": 2, "seed": 1}):
        trained(small(**delta), toy, runs)
    trained(small("ce", epochs=1), toy, runs)

    def note(command: list[str]) -> int:
        commands.append(command)
        return 0

    gpu.work(15, ["--scale", "full"], runs, tmp_path / "weights", note)
    assert [command[0] for command in commands] == ["pytest", "benchmarks", "lib", "lib", "lib"]
    _, _, experiments, simclr, ce = commands
    assert commands[0] == ["pytest", "-m", "device"]
    assert experiments[1:3] == ["experiments", "--budget-minutes"]
    assert 13 < float(experiments[3]) <= 14 and experiments[4:] == ["--scale", "full"]
    assert simclr[1] == ce[1] == "export"
    assert "-e2-s0-" in simclr[2] and "-e1-s0-" in ce[2]  # the longest, of the first seed


def test_a_device_that_computes_something_wrong_leaves_no_record(tmp_path):
    commands = []

    def fail(command: list[str]) -> int:
        commands.append(command)
        return 1

    with pytest.raises(InputError, match="smoke test failed"):
        gpu.work(15, [], tmp_path, tmp_path, fail)
    assert len(commands) == 1
