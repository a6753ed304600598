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

from lib import ROOT, evaluation
from lib.__main__ import main
from lib.distributed.group import Share, _tell_of_idle_gpus, agree, rank, world
from lib.runs import checkpoints, identity, pretrain, records
from lib.runs.session import ENDED, begin
from lib.training import Batches, Step, build_model, recipe_for, train
from tests import ranks
from tests.ranks import CASES, CPU, TWELVE_STEPS, config, toy

FORKS = multiprocessing.get_context("forkserver")  # its server imports once, ranks are forked
FORKS.set_forkserver_preload(["tests.ranks"])


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def spawned(count, folder, task, *words):
    """Exit statuses of so many processes, as torchrun would start them, and the stderr of each."""
    port = free_port()
    processes = []
    ending = time.monotonic() + 600  # of a busy machine
    try:
        for number in range(count):
            arguments = (number, count, port, task, folder, *map(str, words))
            process = FORKS.Process(target=ranks.forked, args=arguments)
            process.start()
            processes.append(process)
        for process in processes:
            process.join(max(0, ending - time.monotonic()))
    finally:
        for process in processes:
            process.kill()
            process.join(60)
    statuses = [process.exitcode for process in processes]
    return statuses, [
        (folder / f"{number}.err").read_text(encoding="utf-8") for number in range(count)
    ]


def torchrun(*words, machines=0):
    """torchrun here; or so many of it, as on so many machines, which meet at a port of this one."""
    start = ["--standalone"]
    if machines:
        meet = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{free_port()}"]
        start = ["--nnodes", machines, *meet]
    command = [sys.executable, "-m", "torch.distributed.run", *map(str, [*start, *words])]
    agents = []
    try:
        for _ in range(machines or 1):
            agent = subprocess.Popen(
                command,
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                encoding="utf-8",
            )
            agents.append(agent)
        outputs = [agent.communicate(timeout=900) for agent in agents]
    finally:
        for agent in agents:
            agent.kill()
    assert [agent.returncode for agent in agents] == [0] * len(agents), outputs
    return outputs[0][0]


@pytest.fixture(scope="module", params=[2, 4])
def group(request, tmp_path_factory):
    """What came out on every rank of two and of four, and what each said."""
    folder = tmp_path_factory.mktemp(f"ranks{request.param}")
    statuses, errors = spawned(request.param, folder, "everything")
    assert statuses == [0] * request.param, errors
    return [torch.load(folder / f"{number}.pt") for number in range(request.param)], errors


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of twelve steps by one process that nothing interrupts."""
    folder = tmp_path_factory.mktemp("whole")
    return pretrain(config(**TWELVE_STEPS), toy(), folder, "cpu", progress=False)


def alone(case):
    """The oracle: the whole batch in one process, by the step that knows nothing of ranks."""
    return ranks.after_step(Step, *ranks.batch(case))


def differ(one, other):
    names = []
    for name in one:
        a, b = one[name].double(), other[name].double()
        if not torch.allclose(a, b, rtol=0, atol=1e-10):
            names.append(name)
    return names


def test_ranks_go_on_with_the_run_that_rank_0_finds(group):
    assert {made["settled"] for made in group[0]} == {"bfloat16"}


IN_CHUNKS = [case for case in CASES if "k=3" in case]
NORM_IN_CHUNKS = [case for case in IN_CHUNKS if "norm" in case]


@pytest.mark.parametrize("case", [case for case in CASES if case not in NORM_IN_CHUNKS])
def test_loss_and_every_gradient_are_those_of_one_process(case, group):
    """13 images on 2 ranks are 6 and 7, on 4 are 3, 3, 3 and 4; BatchNorm sees all of them."""
    wanted = alone(case)
    assert all(value.abs().max() > 0 for value in wanted.values())
    for made in group[0]:
        assert differ(wanted, made[case]) == []


@pytest.mark.parametrize("case", IN_CHUNKS)
def test_chunks_give_the_gradient_of_the_whole_batch(case):
    """In one process. With BatchNorm they do not, for it sees a chunk at a time."""
    chunked = ranks.shared_step(case)
    different = differ(alone(case), chunked)
    assert bool(different) == ("norm" in case), different

    _, model, x, _ = ranks.batch(case)  # running sums: every chunk counts, and once
    for places in Share(x.shape[1], 3).own:
        model.train()(x[:, places].flatten(0, 1))
    assert differ(dict(model.named_buffers()), chunked) == []


@pytest.mark.parametrize("case", NORM_IN_CHUNKS)
def test_with_batchnorm_chunks_are_the_same_on_any_number_of_ranks(case, group):
    wanted = ranks.shared_step(case)
    for made in group[0]:
        assert differ(wanted, made[case]) == []


@pytest.mark.parametrize(
    "method, home", [("simclr", "device"), ("supcon", "ranks"), ("ce", "host")]
)
def test_five_steps_end_at_the_same_weights_wherever_the_images_lie(method, home, group):
    """180 images by 40: the fifth batch has 20."""
    wanted = ranks.trained(method)
    for made in group[0]:
        assert differ(wanted, made[f"{method} {home}"]) == []


def test_images_lie_where_the_rank_with_the_least_room_has_room(group):
    everyones, _ = group
    for made in everyones:
        words, sentences = zip(*made["homes"])
        assert words == ("device", "ranks", "ranks", "host")
        assert "whole on cpu" in sentences[0]
        assert f"shared out over {len(everyones)} ranks" in sentences[1]
        assert "one step ahead" in sentences[3]


def test_a_run_finds_by_itself_where_its_images_lie(group, tmp_path):
    """By the room that there is for them; one rank says so."""
    everyones, errors = group
    run = pretrain(config("supcon"), toy(), tmp_path, "cpu", progress=False)
    wanted = ranks.result(run.model, run.curves)
    for made in everyones:
        for home in ("device", "ranks", "host"):
            assert differ(wanted, made[f"pretrained {home}"]) == []

    told = [f"shared out over {len(everyones)} ranks", "read from the host's memory one step ahead"]
    for words in told:
        assert [error.count(words) for error in errors] == [1] + [0] * (len(errors) - 1)


def test_a_batch_too_small_for_the_ranks_is_refused(group):
    """Of 180 images by 178 two are left: too few for four ranks."""
    everyones, _ = group
    wanted = ""
    if len(everyones) == 4:
        wanted = (
            "a batch of 2 in 1 chunks leaves some of 4 ranks without any; set drop_last=True, "
            "another batch_size or fewer ranks"
        )
    assert [made["refusal"] for made in everyones] == [wanted] * len(everyones)


def test_a_whole_run_is_that_of_one_process_and_one_rank_says_how_it_goes(group, tmp_path):
    everyones, errors = group
    run = pretrain(config(), toy(), tmp_path, "cpu", progress=False)
    for made in everyones:
        assert differ(ranks.result(run.model, run.curves), made["run"]) == []
    assert f"{len(everyones)} ranks by gloo" in errors[0]
    assert ["whole on cpu" in error for error in errors] == [True] + [False] * (len(errors) - 1)


def test_the_record_says_how_many_ranks_and_the_identity_does_not(group):
    everyones, _ = group
    record = everyones[0]["record"]
    assert record["id"] == identity(config(), toy())
    assert record["bit_exact"] is False
    assert f"ran on {len(everyones)} ranks" in record["inexact_because"]
    assert record["segments"][0]["ranks"] == {
        "world": len(everyones),
        "backend": "gloo",
        "batch_norm": "of the whole batch, by sums over ranks",
    }


def test_evaluation_counts_every_image_once(group):
    everyones, _ = group
    model = build_model(config(), toy()).eval()
    recipe = recipe_for(config(), toy(), "none")
    for n in (1, 3, 60):
        _, wanted = evaluation.features(model, toy().test.images[:n], recipe)
        for made in everyones:
            torch.testing.assert_close(made["features"][n], wanted, rtol=0, atol=1e-6)

    results = [made["evaluation"]["h"]["linear"] for made in everyones]
    assert results == [results[0]] * len(results)
    assert results[0]["n"] == 60 and results[0]["correct"] > 20


def test_a_run_goes_on_with_other_numbers_of_ranks(whole, tmp_path):
    """Two ranks, one process, four ranks: the same order and views, hence the same weights."""
    statuses, errors = spawned(2, tmp_path, "go_on", 4)
    assert statuses == [0, 0] and not (tmp_path / "0.pt").exists(), errors
    three_steps_in_one_process(tmp_path / "runs" / whole.folder.name)
    statuses, errors = spawned(4, tmp_path, "go_on")
    assert statuses == [0] * 4, errors

    wanted = ranks.result(whole.model, whole.curves)
    for number in range(4):
        assert differ(wanted, torch.load(tmp_path / f"{number}.pt")) == []
    record = records.read(tmp_path / "runs" / whole.folder.name / "record.json")
    assert [segment["steps"] for segment in record["segments"]] == [[0, 4], [4, 7], [7, 12]]
    assert "ran on 2, 1, 4 ranks" in record["inexact_because"]


def three_steps_in_one_process(folder):
    """From where two ranks left the run, over the end of its first epoch."""
    chosen = config(**TWELVE_STEPS)
    session = begin(chosen, toy(), folder, CPU, plan={})
    step = Step(chosen, session.model, session.optimiser, session.scaler)
    steps = train(chosen, Batches(chosen, toy(), CPU), step, session.progress)
    while session.progress.step < 7:
        next(steps)
    session.save()


def test_a_killed_rank_ends_the_job_in_a_line_and_loses_nothing(tmp_path):
    statuses, errors = spawned(2, tmp_path, "go_on", 5, int(signal.SIGKILL))
    assert statuses == [1, -9], errors
    (line,) = [line for line in errors[0].splitlines() if line.startswith("error: ")]
    assert "rank 0 lost another of 2 ranks" in line and "checkpoint is kept" in line

    (folder,) = (tmp_path / "runs").iterdir()
    assert checkpoints.read(folder / checkpoints.NEWEST)[1].step == 5
    assert "lost another" in json.loads((folder / ENDED).read_text(encoding="utf-8"))["ended"]
    killed = (tmp_path / "once").stat().st_mtime
    assert 0 <= (folder / ENDED).stat().st_mtime - killed < 60


@pytest.mark.parametrize(
    "number, status, ended",
    [(signal.SIGTERM, -15, "stopped by SIGTERM"), (signal.SIGINT, 0, "KeyboardInterrupt")],
)
def test_a_signal_to_one_rank_stops_all_after_the_same_step(number, status, ended, tmp_path):
    statuses, errors = spawned(2, tmp_path, "go_on", 5, int(number))
    assert statuses == [status, status], errors
    (folder,) = (tmp_path / "runs").iterdir()
    assert checkpoints.read(folder / checkpoints.NEWEST)[1].step == 6
    assert json.loads((folder / ENDED).read_text(encoding="utf-8"))["ended"] == ended


@pytest.mark.parametrize("machines", [0, 2])
def test_torchrun_starts_a_killed_rank_again_and_the_run_goes_on(machines, whole, tmp_path):
    """Among machines too, whose torchruns keep a store with the addresses of the dead."""
    ranks_here = 1 if machines else 2
    start = ["--nproc-per-node", ranks_here, "--max-restarts", 1]
    task = ["-m", "tests.ranks", "go_on", tmp_path, 5, int(signal.SIGKILL)]
    torchrun(*start, *task, machines=machines)

    assert differ(whole.model.state_dict(), torch.load(tmp_path / "0.pt")) == []
    record = records.read(tmp_path / "runs" / whole.folder.name / "record.json")
    assert [segment["steps"] for segment in record["segments"]] == [[0, 5], [5, 12]]


def test_torchrun_from_the_command_line(toy_root, tmp_path, capsys):
    """With BatchNorm, in float32; then its probe, to which one process that asks adds nothing."""
    on_two_ranks = ["--nproc-per-node", 2, "-m", "lib"]
    where = ["--data-root", toy_root, "--device", "cpu"]
    small = ["--data", "toy", "--epochs", 1, "--set", "batch_size=32", "--runs", tmp_path / "runs"]
    output = torchrun(*on_two_ranks, "pretrain", "simclr-digits", *small, *where)
    (folder,) = (tmp_path / "runs").iterdir()
    assert output.count("next: ") == 1 and output.count(str(folder)) == 2
    names = sorted(path.name for path in folder.iterdir())
    assert names == [".lock", "model.safetensors", "record.json"]

    output = torchrun(*on_two_ranks, "probe", folder, *where)
    assert main(["probe", str(folder), "--data-root", str(tmp_path)]) == 0
    assert output == capsys.readouterr().out
    assert output.count("n = 60") == 4


def test_torchrun_is_refused_for_other_commands(monkeypatch, capsys):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
    assert main(["records"]) == 2
    assert "error: torchrun is for pretrain and probe" in capsys.readouterr().err


def test_one_process_needs_no_group():
    assert (world(), rank(), agree(3, -1)) == (1, 0, [3, -1])
    share = Share(7)
    assert share.own == [slice(0, 7)] and share.sizes == [7]


def test_idle_gpus_are_told_of(capsys):
    _tell_of_idle_gpus(None, 8)
    said = capsys.readouterr().err
    assert "one of 8 GPUs is used" in said and "torchrun --standalone --nproc-per-node 8" in said
    _tell_of_idle_gpus(None, 1)
    _tell_of_idle_gpus("cpu", 8)
    assert not capsys.readouterr().err
