import json
import math
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import loss, measure, pictures, probe, training, views
from lib import InputError
from lib.augmentations import RECIPES
from lib.data import decoding, load
from lib.hardware import choose_precision
from lib.presets import preset
from lib.runs import records
from lib.training import build_model
from tools import chromium

ONE = {"min": 1, "median": 1, "max": 1}  # the ratio of a thing to itself


@pytest.fixture
def rows_of(tmp_path):
    """Runs a benchmark by its command line; returns the rows of its record."""

    def run(name: str, *options: str, **given) -> list[dict]:
        arguments = [name, *options, "--results", str(tmp_path)]
        args = command.build_parser().parse_args(arguments)
        args.module.run(args, **given)
        return records.benchmark(f"{name}-cpu", tmp_path)["rows"]

    return run


def test_a_small_benchmark_from_end_to_end(tmp_path, capsys):
    """The views, with the peers."""
    options = ["--images", "6", "--repetitions", "2", "--results", str(tmp_path)]
    assert command.main(["views", *options]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "views-cpu.json")

    record = records.benchmark("views-cpu", tmp_path)
    assert record["settings"]["repetitions"] == 2
    assert record["versions"]["kornia"] and record["device"]["threads"]
    for case in views.CASES:
        libraries = [row["library"] for row in record["rows"] if row["case"] == case]
        assert libraries == ["ours", "batched", "PIL", "kornia"]
    for row in record["rows"]:
        rate = row["views_per_second"]
        assert 0 < rate["min"] <= rate["median"] <= rate["max"]
        if row["library"] == "ours":
            assert row["times_ours"] == ONE


def test_every_loss_is_measured_at_every_size(rows_of):
    rows = rows_of("loss", "--sizes", "12", "40", "--repetitions", "3", memory=lambda *_: 1)
    cases = {(f"{row['loss']} {row['library']}", row["m"]) for row in rows}
    for m in (12, 40):
        names = [*loss.cases(m, torch.device("cpu")), "all product"]
        assert {name for name, size in cases if size == m} == set(names)

    for row in rows:
        seconds, library = row["seconds"], row["library"]
        assert 0 < seconds["min"] <= seconds["median"] <= seconds["max"]
        assert ("times_the_product" in row) == (library == "ours")
        assert ("times_ours" in row) == (library not in ("ours", "product"))


def test_memory_is_measured_by_the_case_that_is_timed(rows_of):
    asked = []

    def memory(*arguments: str) -> int:
        asked.append(arguments)
        return len(asked)

    rows = rows_of("loss", "--sizes", "12", "--repetitions", "1", memory=memory)
    measured = [row for row in rows if row["library"] != "product"]
    assert [row["extra_bytes"] for row in measured] == list(range(1, len(asked) + 1))
    for row, arguments in zip(measured, asked, strict=True):
        assert arguments == ("loss", "--memory-of", row["loss"], row["library"], "12")


def test_the_encoders_from_end_to_end(rows_of, toy_root, monkeypatch):
    monkeypatch.setenv("DATA_ROOT", str(toy_root))
    rows = rows_of("encoders", "--data", "toy", "--minutes", "0.001", "--repetitions", "2")
    by_name = {row["encoder"]: row for row in rows}
    assert by_name["resnet9"]["parameters"] == 463_552
    assert by_name["slim"]["times_slim"] == ONE

    for row in rows:
        learned = row["learned"]
        assert learned["epochs"] >= 1 and learned["minutes"] > 0
        for reader in ("linear", "knn", "classifier"):
            assert 0 <= learned[reader] <= 1


@pytest.mark.skipif(not chromium.found(), reason="no Chromium found")
def test_the_page_from_end_to_end(rows_of):
    page, peer = rows_of("page", "--repetitions", "1")
    assert (page["library"], peer["library"]) == ("page", "PyTorch")
    ratio = page["seconds_a_view"]["median"] / peer["seconds_a_view"]["median"]
    assert page["times_pytorch"]["median"] == pytest.approx(ratio)
    assert 0 < page["farthest"] < 1e-4
    assert page["bytes"] < 5e6


def test_all_cases_of_a_loss_give_the_same_gradient():
    """What is compared is the same function."""
    gradients = {name: case() for name, case in loss.cases(40, torch.device("cpu")).items()}
    for name in ("nt_xent", "sup_con"):
        alike = [case for case in gradients if case.startswith(f"{name} ")]
        assert len(alike) > 1
        for case in alike:
            assert torch.allclose(gradients[case], gradients[f"{name} ours"], atol=1e-6), case
    assert not torch.allclose(gradients["sup_con_in ours"], gradients["sup_con ours"], atol=1e-6)


def test_views_in_batches_are_the_same_views():
    images = views.smooth(6, 32)
    ours = views.views(images, RECIPES["supcontrast"], 0, 3)
    batched = views.views_in_batches(images, RECIPES["supcontrast"], 3)
    assert torch.allclose(batched, ours, atol=1e-5)


def test_pictures_from_end_to_end(rows_of):
    """Both ways find the same files whole."""
    rows = rows_of("pictures", "--files", "200", "--repetitions", "1", memory=lambda *_: 1)
    assert [(row["library"], row["whole"]) for row in rows] == [
        ("ours", 50),
        ("ImageFolder", 50),
        ("ours", 198),
        ("ImageFolder", 198),
    ]


def test_both_ways_make_the_same_pixels(tmp_path):
    """Of files that no decoder may make smaller."""
    pictures.write(tmp_path, load("digits"), 100)
    theirs = pictures.of_torchvision(tmp_path)
    alike = 0
    for (path, _), (image, _) in zip(theirs.samples, theirs):
        if image is None or not path.endswith("jpg"):
            continue
        ours = decoding.decode(Path(path), pictures.SIZE)
        assert np.abs(ours.astype(int) - np.asarray(image)).mean() < 1
        alike += 1
    assert alike > 50


def test_rows_are_kept_where_a_later_comparison_fails(rows_of, tmp_path):
    """One image: steps can be timed, on views that are there, and no run."""
    small = ["--images", "1", "--batch", "16", "--encoders", "slim", "--repetitions", "1"]
    with pytest.raises(InputError, match="every class needs two training images"):
        rows_of("training", *small, "--side", "32")
    rows = records.benchmark("training-cpu", tmp_path)["rows"]
    assert {row["kind"] for row in rows} == {"step"}
    assert {row["case"].partition(",")[0] for row in rows} == {"32x32"}


def test_the_probes_from_end_to_end(rows_of):
    rows = rows_of("probe", "--scale", "0.02", "--epochs", "2", "--repetitions", "1")
    linear = {row["library"]: row for row in rows if row["case"] == "linear probe"}
    nearest = {row["library"] for row in rows if row["case"] == "nearest neighbours"}
    assert linear.keys() == {"ours", "scikit-learn", "UvA", "UvA, plain"}
    assert nearest == {"ours", "product", "lightly"}

    share = {library: row["correct"] / row["n"] for library, row in linear.items()}
    assert abs(share["ours"] - share["scikit-learn"]) <= 0.1 and share["ours"] > 0.2


def test_training_from_end_to_end(rows_of):
    """Small; every way of a step and of a run.

    With ratios and, for steps, the share of the matrix rate.
    """
    small = ["--images", "32", "--batch", "16", "--encoders", "slim", "--repetitions", "1"]
    rows = rows_of("training", *small)
    for case in training.CASES:
        ways = {(row["kind"], row["way"]): row for row in rows if row["case"] == case}
        fast = choose_precision("auto", torch.device("cpu"))
        assert ways.keys() == {
            ("step", "ours float32"),
            ("step", "ours bfloat16"),
            ("step", "plain float32"),
            ("step", "product float32"),
            ("step", "product bfloat16"),
            ("run", "ours float32"),
            ("run", f"ours {fast}"),
            ("run", "plain loop"),
            ("run", "Lightning"),
        }
        step, product = ways["step", "ours float32"], ways["step", "product float32"]
        assert step["views"] == 32 and ways["run", "plain loop"]["views"] == 128
        share = step["flops_per_second"]["median"] / product["flops_per_second"]["median"]
        assert step["share_of_matrix_rate"]["median"] == pytest.approx(share)
        assert ways["run", "Lightning"]["times_ours"]["median"] > 0


def test_accumulation_from_end_to_end(rows_of):
    """A row for each number of chunks, its memory that of a step in so many."""
    small = ["--batch", "16", "--encoder", "slim", "--repetitions", "1"]
    rows = rows_of("accumulation", *small, memory=lambda *arguments: int(arguments[-1]))
    for chunks, row in zip((1, 2, 4, 8, 16), rows, strict=True):
        assert (row["chunks"], row["extra_bytes"]) == (chunks, chunks)
    assert rows[0]["times_at_once"] == ONE


def test_a_plain_step_and_ours_go_to_the_same_place():
    """What is compared is the same function: a step of each from equal weights on equal views."""
    config = preset(
        "simclr-cifar10-slim", temperature=loss.TEMPERATURE, optimiser="sgd", data="smooth"
    )
    dataset = training.of_smooth(16, 16)
    x = torch.randn(2, 8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    start = build_model(config, dataset).state_dict()
    plain, ours = build_model(config, dataset).train(), build_model(config, dataset).train()
    training.plain_step(plain, training.plain_optimiser(config, plain), x)
    training.step_of(config, ours, x)()

    moved = 0
    for name, value in ours.state_dict().items():
        assert torch.allclose(plain.state_dict()[name], value, atol=1e-5), name
        moved += not torch.equal(start[name], value)
    assert moved > 10


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
    train = torch.randn(90, 16, generator=draw) + labels[:, None] / 4
    test = torch.randn(40, 16, generator=draw) + labels[:40, None] / 4
    ways = probe.neighbours(train, labels, test)
    assert torch.equal(ways["ours"](), ways["lightly"]())


def test_cases_take_turns_and_the_first_round_does_not_count():
    calls = []
    cases = {name: lambda name=name: calls.append(name) for name in "abc"}
    seconds = measure.interleaved(cases, repetitions=4)
    assert {name: len(times) for name, times in seconds.items()} == {"a": 4, "b": 4, "c": 4}

    rounds = [tuple(calls[start : start + 3]) for start in range(0, 15, 3)]
    assert {"".join(sorted(names)) for names in rounds} == {"abc"}
    assert len(set(rounds)) > 1


def test_ratios_are_taken_round_by_round():
    assert measure.ratios([2.0, 8.0, 3.0], [1.0, 2.0, 3.0]) == {"min": 1, "median": 2, "max": 4}


@pytest.mark.parametrize(
    "arguments, words",
    [
        (
            ["loss", "--repetitions", "0"],
            "--repetitions: must be a whole number from 1 up, got '0'",
        ),
        (["training", "--batch", "0"], "--batch: must be a whole number from 1 up, got '0'"),
        (["training", "--images", "1.5"], "--images: must be a whole number from 1 up, got '1.5'"),
        (["accumulation", "--batch", "-1"], "must be a whole number from 1 up, got '-1'"),
    ],
)
def test_counts_of_nothing_are_no_counts(arguments, words, capsys):
    with pytest.raises(SystemExit, match="2"):
        command.main(arguments)
    assert words in capsys.readouterr().err


def test_bad_options_are_one_line(capsys):
    assert command.main(["loss", "--sizes", "7"]) == 2
    error = capsys.readouterr().err
    assert "must be even numbers" in error and error.count("\n") == 1


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
                {
                    "schema": 9,
                    "settings": {},
                    "versions": {},
                    "device": {},
                    "code": {},
                    "rows": [{}],
                }
            ),
            "this version",
        ),
    ],
)
def test_a_damaged_record_is_named(content, words, tmp_path):
    if content is not None:
        (tmp_path / "loss-cpu.json").write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=f"loss-cpu.json.*{words}"):
        records.benchmark("loss-cpu", tmp_path)


@pytest.mark.parametrize("path", sorted(records.BENCHMARKS.glob("*.json")), ids=lambda p: p.stem)
def test_a_published_benchmark_says_where_it_comes_from(path):
    record = records.benchmark(path.stem)
    assert record["benchmark"] == path.stem.rpartition("-")[0]
    assert record["code"]["commit"] and record["code"]["changed"] is False
    if record["benchmark"] in ("faults", "fuzz", "inputs"):  # they time nothing
        assert "repetitions" not in record["settings"]
        return
    assert record["settings"]["repetitions"] >= 7
    assert record["rows"]
    for row in record["rows"]:
        for value in row.values():
            if isinstance(value, dict):
                assert all(map(math.isfinite, value.values()))
