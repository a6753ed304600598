import json
import math
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import loss, measure, pictures, probe, training, views
from lib import InputError, data, images, records
from lib.config import preset


@pytest.fixture
def kept(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "BENCHMARKS", tmp_path)
    return tmp_path


def test_a_small_benchmark_from_end_to_end(kept, capsys, monkeypatch):
    monkeypatch.setattr(measure, "in_own_process", lambda *arguments: len(arguments))
    assert command.main(["loss", "--sizes", "12", "40", "--repetitions", "3"]) == 0
    record = records.benchmark("loss-cpu")
    assert capsys.readouterr().out.splitlines()[-1] == str(kept / "loss-cpu.json")
    assert (
        record["settings"]["repetitions"] == 3
        and record["versions"]["lightly"]
        and record["device"]["threads"]
    )
    names = {(row["loss"], row["library"], row["m"]) for row in record["rows"]}
    assert names == {
        (*name.split(), m)
        for m in (12, 40)
        for name in [*loss.cases(m, torch.device("cpu")), "all product"]
    }
    for row in record["rows"]:
        assert 0 < row["seconds"]["min"] <= row["seconds"]["median"] <= row["seconds"]["max"]
        assert ("times_the_product" in row) == (row["library"] == "ours")
        assert ("times_ours" in row) == (row["library"] not in ("ours", "product"))


def test_the_encoders_from_end_to_end(kept, toy_root, monkeypatch):
    monkeypatch.setenv("DATA_ROOT", str(toy_root))
    assert (
        command.main(["encoders", "--data", "toy", "--minutes", "0.001", "--repetitions", "2"]) == 0
    )
    rows = {row["encoder"]: row for row in records.benchmark("encoders-cpu")["rows"]}
    assert rows["resnet9"]["parameters"] == 463_552 and rows["slim"]["times_slim"] == {
        "min": 1,
        "median": 1,
        "max": 1,
    }
    for row in rows.values():
        assert (
            row["learned"]["epochs"] >= 1
            and 0 <= row["learned"]["linear"] <= 1
            and row["learned"]["minutes"] > 0
        )


def test_all_cases_of_a_loss_give_the_same_gradient():
    """What is compared is the same function."""
    gradients = {name: case() for name, case in loss.cases(40, torch.device("cpu")).items()}
    for name in ("nt_xent", "sup_con"):
        ours = gradients[f"{name} ours"]
        for other in (other for other in gradients if other.startswith(f"{name} ")):
            assert torch.allclose(gradients[other], ours, atol=1e-6), other
    assert not torch.allclose(gradients["sup_con_in ours"], gradients["sup_con ours"], atol=1e-6)


def test_the_views_from_end_to_end(kept):
    """Small, with the peers; what is measured leaves our own form as it was."""
    form = views.augmentations.kernels
    assert command.main(["views", "--images", "6", "--repetitions", "2"]) == 0
    assert views.augmentations.kernels is form
    rows = records.benchmark("views-cpu")["rows"]
    assert {(row["case"], row["library"]) for row in rows} == {
        (case, library) for case in views.CASES for library in ("ours", "batched", "PIL", "kornia")
    }
    for row in rows:
        assert (
            0
            < row["views_per_second"]["min"]
            <= row["views_per_second"]["median"]
            <= row["views_per_second"]["max"]
        )
        assert row["library"] != "ours" or row["times_ours"] == {"min": 1, "median": 1, "max": 1}


def test_pictures_from_end_to_end(kept, monkeypatch, tmp_path):
    """Both ways find the same files whole, and make the same pixels of those that no decoder may
    make smaller."""
    monkeypatch.setattr(measure, "in_own_process", lambda *arguments: 1)
    assert command.main(["pictures", "--files", "200", "--repetitions", "1"]) == 0
    rows = records.benchmark("pictures-cpu")["rows"]
    assert [(row["library"], row["whole"]) for row in rows] == [
        ("ours", 50),
        ("ImageFolder", 50),
        ("ours", 198),
        ("ImageFolder", 198),
    ]
    pictures.write(tmp_path / "files", data.load("digits"), 100)
    theirs = pictures.of_torchvision(tmp_path / "files")
    alike = [
        (path, there)
        for (path, _), (there, _) in zip(theirs.samples, theirs)
        if there is not None and path.endswith("jpg")
    ]
    assert len(alike) > 50
    for path, there in alike:
        ours = images.decode(Path(path), 96)
        assert np.abs(ours.astype(int) - np.asarray(there)).mean() < 1


def test_the_probes_from_end_to_end(kept, monkeypatch):
    short = replace(probe.probes.PROTOCOLS["uva"], epochs=2, look_every=1)
    monkeypatch.setattr(probe.probes, "PROTOCOLS", {"uva": short})
    assert command.main(["probe", "--scale", "0.02", "--repetitions", "1"]) == 0
    rows = {(row["case"], row["library"]): row for row in records.benchmark("probe-cpu")["rows"]}
    assert {library for case, library in rows if case == "linear probe"} == {
        "ours",
        "scikit-learn",
        "UvA",
        "UvA, plain",
    }
    assert {library for case, library in rows if case == "nearest neighbours"} == {
        "ours",
        "product",
        "lightly",
    }
    right = {
        library: row["correct"] / row["n"] for (_, library), row in rows.items() if "correct" in row
    }
    assert abs(right["ours"] - right["scikit-learn"]) <= 0.1 and right["ours"] > 0.2


def test_training_from_end_to_end(kept):
    """Small; every way of a step and of a run, with ratios and, for steps, the share of the matrix
    rate."""
    small = ["--images", "32", "--batch", "16", "--encoders", "slim", "--repetitions", "1"]
    assert command.main(["training", *small]) == 0
    rows = records.benchmark("training-cpu")["rows"]
    for case in training.CASES:
        ways = {(row["kind"], row["way"]): row for row in rows if row["case"] == case}
        assert ways.keys() == {
            ("step", "ours float32"),
            ("step", "ours bfloat16"),
            ("step", "plain float32"),
            ("step", "product float32"),
            ("step", "product bfloat16"),
            ("run", "ours float32"),
            ("run", "plain loop"),
            ("run", "Lightning"),
        }
        step, product = ways["step", "ours float32"], ways["step", "product float32"]
        assert step["views"] == 32 and ways["run", "plain loop"]["views"] == 128
        assert step["share_of_matrix_rate"]["median"] == pytest.approx(
            step["flops_per_second"]["median"] / product["flops_per_second"]["median"]
        )
        assert ways["run", "Lightning"]["times_ours"]["median"] > 0


def test_accumulation_from_end_to_end(kept, monkeypatch):
    monkeypatch.setattr(measure, "in_own_process", lambda *arguments: int(arguments[-1]))
    assert (
        command.main(["accumulation", "--batch", "16", "--encoder", "slim", "--repetitions", "1"])
        == 0
    )
    rows = records.benchmark("accumulation-cpu")["rows"]
    assert [(row["chunks"], row["extra_bytes"]) for row in rows] == [
        (1, 1),
        (2, 2),
        (4, 4),
        (8, 8),
        (16, 16),
    ]
    assert rows[0]["times_at_once"] == {"min": 1, "median": 1, "max": 1}


def test_a_plain_step_and_ours_go_to_the_same_place():
    """What is compared is the same function: one step of each from the same weights on the same
    views."""
    config = preset(
        "simclr-cifar10-slim", temperature=loss.TEMPERATURE, optimiser="sgd", data="smooth"
    )
    dataset, x, models = training.of_smooth(16, 16), torch.randn(2, 8, 3, 16, 16), []
    for plain in (True, False):
        model = training.training.build_model(config, dataset).train()
        if plain:
            training.plain_step(model, training.plain_optimiser(config, model), x)
        else:
            training.training.train_step(
                config,
                model,
                training.build_optimiser(config, model),
                torch.amp.GradScaler("cpu", enabled=False),
                x,
                None,
            )
        models.append(model.state_dict())
    assert all(torch.allclose(models[0][key], models[1][key], atol=1e-5) for key in models[0])


def test_a_case_in_a_context_is_timed_in_its_midst():
    calls = []

    @contextmanager
    def around():
        calls.append("in")
        yield
        calls.append("out")

    measure.interleaved({"a": lambda: calls.append("a")}, 1, {"a": around})
    assert calls == ["in", "a", "a", "out"] * 2


def test_ours_finds_lightlys_neighbours():
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(90) % probe.CLASSES
    train, test = (torch.randn(n, 16, generator=draw) + labels[:n, None] / 4 for n in (90, 40))
    found = probe.neighbours(train, labels, test)
    assert torch.equal(found["ours"](), found["lightly"]())


def test_cases_take_turns_and_the_first_round_does_not_count():
    calls = []
    seconds = measure.interleaved(
        {name: lambda name=name: calls.append(name) for name in "abc"}, repetitions=4
    )
    assert {name: len(times) for name, times in seconds.items()} == {"a": 4, "b": 4, "c": 4}
    rounds = [calls[start : start + 3] for start in range(0, 15, 3)]
    assert (
        all(sorted(names) == ["a", "b", "c"] for names in rounds)
        and len({tuple(names) for names in rounds}) > 1
    )


def test_ratios_are_taken_round_by_round():
    assert measure.ratios([2.0, 8.0, 3.0], [1.0, 2.0, 3.0]) == {"min": 1, "median": 2, "max": 4}


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["loss", "--sizes", "7"], "must be even numbers"),
        (["loss", "--repetitions", "0"], "at least 1"),
    ],
)
def test_bad_options_are_one_line(arguments, words, capsys):
    assert command.main(arguments) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_a_missing_peer_and_a_failed_process_are_named():
    with pytest.raises(
        InputError, match="the peer no-such-package is not installed; run: pip install"
    ):
        measure.installed("no-such-package")
    with pytest.raises(
        InputError, match="python -m benchmarks loss --memory-of .* failed: KeyError"
    ):
        measure.in_own_process("loss", "--memory-of", "no", "case", "8")


@pytest.mark.parametrize(
    "content, words",
    [
        (None, "missing or damaged"),
        ("{", "missing or damaged"),
        ("[]", "missing or damaged"),
        ('{"schema": 1}', "missing or damaged"),
        (
            json.dumps(
                {"schema": 9, "settings": {}, "versions": {}, "device": {}, "code": {}, "rows": [1]}
            ),
            "this version",
        ),
    ],
)
def test_a_damaged_record_is_named(content, words, kept):
    if content is not None:
        (kept / "loss-cpu.json").write_text(content)
    with pytest.raises(InputError, match=f"loss-cpu.json.*{words}"):
        records.benchmark("loss-cpu")


def test_the_published_benchmarks_say_where_they_come_from():
    paths = sorted(records.BENCHMARKS.glob("*.json"))
    assert paths
    for path in paths:
        record = records.benchmark(path.stem)
        assert record["benchmark"] == path.stem.rpartition("-")[0] and record["code"]["commit"]
        timed = "repetitions" in record["settings"]
        assert record["code"]["changed"] is False and timed == (record["benchmark"] != "faults")
        assert not timed or record["settings"]["repetitions"] >= 7
        for row in record["rows"]:
            assert all(
                math.isfinite(value)
                for spread in row.values()
                if isinstance(spread, dict)
                for value in spread.values()
            )
