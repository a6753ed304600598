"""Ranks against one process, which is the oracle: real processes, Gloo, float64."""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch

from lib import (
    ROOT,
    InputError,
    checkpoints,
    distributed,
    evaluation,
    records,
    sessions,
    shares,
    training,
)
from lib.__main__ import main
from tests import ranks
from tests.ranks import CASES, config, toy

CLOSE = {"rtol": 0, "atol": 1e-10}


@pytest.fixture
def double(monkeypatch):
    ranks.in_double(monkeypatch.setattr)


FORKS = multiprocessing.get_context(
    "forkserver"
)  # its server imports once, ranks are forked from it
FORKS.set_forkserver_preload(["tests.ranks"])


def spawned(world, folder, task, *words):
    """Exit statuses of so many processes, as torchrun would start them, and what each said."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranked = [
        FORKS.Process(target=ranks.forked, args=(rank, world, port, task, folder, *map(str, words)))
        for rank in range(world)
    ]
    for process in ranked:
        process.start()
    ending = time.monotonic() + 600  # of a busy machine
    for process in ranked:
        process.join(max(0, ending - time.monotonic()))
        process.kill()
        process.join()
    return [process.exitcode for process in ranked], [
        (folder / f"{rank}.err").read_text() for rank in range(world)
    ]


def torchrun(*words, machines=0):
    """torchrun here; or so many of it, as on so many machines, which meet at a port of this one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        meet = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{probe.getsockname()[1]}"]
    start = ["--nnodes", machines, *meet] if machines else ["--standalone"]
    command = [sys.executable, "-m", "torch.distributed.run", *map(str, [*start, *words])]
    agents = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        for _ in range(machines or 1)
    ]
    try:
        done = [agent.communicate(timeout=900) for agent in agents]
    finally:
        for agent in agents:
            agent.kill()
    assert [agent.returncode for agent in agents] == [0] * len(agents), done
    return done[0][0]


@pytest.fixture(scope="module", params=[2, 4])
def spread(request, tmp_path_factory):
    """What every rank of two and of four found."""
    folder = tmp_path_factory.mktemp(f"ranks{request.param}")
    statuses, said = spawned(request.param, folder, "steps")
    assert statuses == [0] * request.param, said
    return [torch.load(folder / f"{rank}.pt") for rank in range(request.param)], said


def alone(case):
    """The oracle: the whole batch in one process, by the step that knows nothing of ranks and
    chunks."""
    chosen, model, optimiser, x, labels = ranks.batch(case)
    model.train()
    return ranks.found(
        model,
        *training.train_step(
            chosen, model, optimiser, torch.amp.GradScaler("cpu", enabled=False), x, labels
        ),
    )


def differ(one, other):
    return [
        name
        for name in one
        if not torch.allclose(one[name].double(), other[name].double(), **CLOSE)
    ]


@pytest.mark.parametrize("case", [case for case in CASES if not ("norm" in case and "k=3" in case)])
def test_loss_and_every_gradient_are_those_of_one_process(case, spread):
    """13 images on 2 ranks are 6 and 7, on 4 are 3, 3, 3 and 4; BatchNorm's statistics are of all
    of them."""
    wanted = alone(case)
    assert all(value.abs().max() > 0 for value in wanted.values())
    assert [differ(wanted, of_rank[case]) for of_rank in spread[0]] == [[]] * len(spread[0])


@pytest.mark.parametrize("case", [case for case in CASES if "k=3" in case])
def test_chunks_give_the_gradient_of_the_whole_batch(case):
    """In one process; with BatchNorm not, for it sees a chunk at a time, the same one on any number
    of ranks."""
    wanted, chunked = alone(case), ranks.step(case)
    different = differ(wanted, chunked)
    assert bool(different) == ("norm" in case), different
    _, model, _, x, _ = ranks.batch(case)  # running sums: every chunk counts, and once
    for places in shares.Share(x.shape[1], 3).own:
        model.train()(x[:, places].flatten(0, 1))
    assert not any(differ({name: value}, chunked) for name, value in model.named_buffers())


def test_with_batchnorm_chunks_are_the_same_on_any_number_of_ranks(spread):
    for case in (case for case in CASES if "norm" in case and "k=3" in case):
        wanted = ranks.step(case)
        assert [differ(wanted, of_rank[case]) for of_rank in spread[0]] == [[]] * len(spread[0])


@pytest.mark.parametrize(
    "method, where", [("simclr", "device"), ("supcon", "ranks"), ("ce", "host")]
)
def test_five_steps_end_at_the_same_weights_wherever_the_images_lie(
    method, where, spread, double, tmp_path
):
    """180 images by 40: the fifth batch has 20."""
    run = training.pretrain(config(method), toy(), tmp_path, "cpu", progress=False)
    wanted = run.model.state_dict() | {"losses": torch.tensor([row["loss"] for row in run.curves])}
    found, said = spread
    assert [differ(wanted, of_rank[f"run {method}"]) for of_rank in found] == [[]] * len(found)
    words = {
        "device": "whole on cpu",
        "ranks": f"shared out over {len(found)} ranks",
        "host": "one step ahead",
    }[where]
    assert (
        sum(words in of_rank for of_rank in said) == 1 and f"{len(found)} ranks by gloo" in said[0]
    )


def test_the_record_says_how_many_ranks_and_the_identity_does_not(spread):
    found, _ = spread
    record = found[0]["record simclr"]
    assert record["id"] == training.identity(config(), toy()) and record["bit_exact"] is False
    assert f"ran on {len(found)} ranks" in record["inexact_because"]
    assert record["segments"][0]["ranks"] == {
        "world": len(found),
        "backend": "gloo",
        "batch_norm": "of the whole batch, by sums over ranks (SyncBatchNorm needs a GPU)",
    }


def test_evaluation_counts_every_image_once(spread, double):
    model, recipe = (
        training.build_model(config(), toy()).eval(),
        training.recipe_for(config(), toy(), "none"),
    )
    for n in (1, 3, 60):
        wanted = torch.stack(evaluation.features(model, toy().test.images[:n], recipe)[1:])
        assert all(
            torch.allclose(of_rank[f"features {n}"], wanted, atol=1e-6) for of_rank in spread[0]
        )
    counts = [of_rank["evaluation"]["h"]["linear"] for of_rank in spread[0]]
    assert (
        all(of_rank == counts[0] and of_rank["n"] == 60 for of_rank in counts)
        and counts[0]["correct"] > 20
    )


def test_a_run_goes_on_with_other_numbers_of_ranks(double, tmp_path, monkeypatch):
    """Two ranks, one process, four ranks: the same order and views, hence the same weights. Six
    steps an epoch."""
    whole = training.pretrain(
        config(epochs=2, batch_size=30), toy(), tmp_path / "whole", "cpu", progress=False
    )
    statuses, said = spawned(2, tmp_path, "go_on", 4)
    assert statuses == [0, 0] and not (tmp_path / "0.pt").exists(), said
    taken, train_step = [], training.train_step

    def stopping(*parts):
        taken.append(parts)
        if len(taken) == 4:
            raise KeyboardInterrupt
        return train_step(*parts)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(training, "train_step", stopping)
        patched.setattr(training, "CHECKPOINT_SECONDS", 0)
        training.pretrain(
            config(epochs=2, batch_size=30), toy(), tmp_path / "runs", "cpu", progress=False
        )
    statuses, said = spawned(4, tmp_path, "go_on")
    assert statuses == [0] * 4, said
    wanted = whole.model.state_dict() | {
        "losses": torch.tensor([row["loss"] for row in whole.curves])
    }
    for rank in range(4):
        assert differ(wanted, torch.load(tmp_path / f"{rank}.pt")) == []
    record = records.read(tmp_path / "runs" / whole.folder.name / "record.json")
    assert [segment["steps"] for segment in record["segments"]] == [[0, 4], [4, 7], [7, 12]]
    assert "ran on 2, 1, 4 ranks" in record["inexact_because"]


def test_a_killed_rank_ends_the_job_in_a_line_and_loses_nothing(tmp_path):
    statuses, said = spawned(2, tmp_path, "go_on", 5, int(signal.SIGKILL))
    assert statuses == [1, -9], said
    lines = [line for line in said[0].splitlines() if line.startswith("error: ")]
    assert (
        len(lines) == 1
        and "rank 0 lost another of 2 ranks" in lines[0]
        and "checkpoint is kept" in lines[0]
    )
    (folder,) = (tmp_path / "runs").iterdir()
    assert checkpoints.read(folder / checkpoints.NEWEST)[1].step == 5
    assert "lost another" in json.loads((folder / sessions.ENDED).read_text())["ended"]
    killed, noticed = (
        (path / name).stat().st_mtime
        for path, name in ((tmp_path, "once"), (folder, sessions.ENDED))
    )
    assert 0 <= noticed - killed < 60


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_one_rank_stops_all_after_the_same_step(number, tmp_path):
    statuses, said = spawned(2, tmp_path, "go_on", 5, int(number))
    assert statuses == ([-15, -15] if number == signal.SIGTERM else [0, 0]), said
    (folder,) = (tmp_path / "runs").iterdir()
    assert checkpoints.read(folder / checkpoints.NEWEST)[1].step == 6
    ended = "stopped by SIGTERM" if number == signal.SIGTERM else "KeyboardInterrupt"
    assert json.loads((folder / sessions.ENDED).read_text())["ended"] == ended


@pytest.mark.parametrize("machines", [0, 2])
def test_torchrun_starts_a_killed_rank_again_and_the_run_goes_on(double, machines, tmp_path):
    """Among machines too, whose torchruns keep a store with the addresses of the dead."""
    torchrun(
        "--nproc-per-node",
        1 if machines else 2,
        "--max-restarts",
        1,
        "-m",
        "tests.ranks",
        "go_on",
        tmp_path,
        5,
        int(signal.SIGKILL),
        machines=machines,
    )
    whole = training.pretrain(
        config(epochs=2, batch_size=30), toy(), tmp_path / "whole", "cpu", progress=False
    )
    wanted = whole.model.state_dict()
    assert differ(wanted, torch.load(tmp_path / "0.pt")) == []
    record = records.read(tmp_path / "runs" / whole.folder.name / "record.json")
    assert [segment["steps"] for segment in record["segments"]] == [[0, 5], [5, 12]]


def test_torchrun_from_the_command_line(toy_root, tmp_path, capsys):
    """With BatchNorm, in float32; then its probe, which one process asked again has nothing to add
    to."""
    where = ["--data-root", toy_root, "--device", "cpu"]
    done = torchrun(
        "--nproc-per-node",
        2,
        "-m",
        "lib",
        "pretrain",
        "simclr-digits",
        "--data",
        "toy",
        "--epochs",
        1,
        "--set",
        "batch_size=32",
        "--runs",
        tmp_path / "runs",
        *where,
    )
    (folder,) = (tmp_path / "runs").iterdir()
    assert done.count("next: ") == 1 and done.count(str(folder)) == 2
    assert sorted(path.name for path in folder.iterdir()) == [
        ".lock",
        "model.safetensors",
        "record.json",
    ]
    done = torchrun("--nproc-per-node", 2, "-m", "lib", "probe", folder, *where)
    assert main(["probe", str(folder), "--data-root", str(tmp_path)]) == 0
    assert done == capsys.readouterr().out and done.count("n = 60") == 4


def test_torchrun_is_refused_for_other_commands(monkeypatch, capsys):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
    assert (
        main(["records"]) == 2
        and "error: torchrun is for pretrain and probe" in capsys.readouterr().err
    )


def test_one_process_needs_no_group():
    assert (distributed.world(), distributed.rank(), distributed.agree(3, -1)) == (1, 0, [3, -1])
    share = shares.Share(7)
    assert share.own == [slice(0, 7)] and share.sizes == [7]
    with pytest.raises(
        InputError, match="a batch of 3 in 1 chunks leaves some of 4 ranks without any"
    ):
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(shares, "world", lambda: 4)
            shares.refuse_idle([shares.Share(3)])
