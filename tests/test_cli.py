import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.main import get_command

from lib import ROOT
from lib.__main__ import main
from lib.commands import app
from lib.commands.line import EXAMPLES
from lib.commands.runs import parse
from lib.compute import drivers
from lib.probes import PROBES
from lib.runs import records
from tests.conftest import wait_for

PATH = os.pathsep.join(
    [os.path.dirname(sys.executable), os.environ["PATH"]]
)  # "python" is this one


def test_the_whole_path_from_the_command_line(toy_root, tmp_path, capsys, monkeypatch):
    where = ["--data-root", str(toy_root), "--device", "cpu"]
    assert (
        main(
            [
                "pretrain",
                "simclr-digits",
                "--data",
                "toy",
                "--epochs",
                "1",
                "--seed",
                "3",
                "--set",
                "batch_size=32",
                "--runs",
                str(tmp_path / "runs"),
                *where,
            ]
        )
        == 0
    )
    folder = next((tmp_path / "runs").iterdir())
    said = capsys.readouterr().out
    assert folder.name.startswith("simclr-digits-e1-s3-") and str(folder) in said
    assert re.search(r"[\d,]+ views/s, \d+ % of the device's matrix rate, [\d,]+ MB at most", said)
    assert main(["probe", str(folder), *where]) == 0
    shown = capsys.readouterr().out
    assert "n = 60" in shown
    assert (
        main(["probe", str(folder), "--data-root", str(tmp_path / "gone")]) == 0
    )  # done: no data is needed
    assert capsys.readouterr().out == shown
    monkeypatch.setattr(records.publish, "__defaults__", (tmp_path / "results",))
    monkeypatch.setattr(records.load_all, "__defaults__", (tmp_path / "results",))
    assert main(["publish", str(folder)]) == 0
    capsys.readouterr()
    assert main(["records", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {row["data"] for row in rows} == {"toy"} and len(rows) == 4
    assert main(["records"]) == 0 and "toy" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["pretrain", "simclr"], "unknown preset 'simclr'"),
        (["pretrain", "simclr-digits", "--data", "nothing"], "unknown data set 'nothing'"),
        (
            ["pretrain", "simclr-digits", "--data", "data/mine.npz"],
            "a data set's name is its file's without .npz, 'mine'",
        ),
        (["pretrain", "simclr-digits", "--set", "epoch=1"], "unknown field 'epoch'"),
        (["pretrain", "simclr-digits", "--set", "temperature=0"], "temperature must be"),
        (["pretrain", "simclr-digits", "--set", "batch_size=1"], "batch_size must be at least 2"),
        (
            ["pretrain", "simclr-digits", "--device", "toaster"],
            "unknown device 'toaster'; known: cuda, mps, cpu",
        ),
        (
            ["pretrain", "simclr-digits", "--epochs", "0", "--runs", "/proc/none"],
            "can't write /proc/none",
        ),
        (
            ["pretrain", "simclr-digits", "--device", "cpu", "--set", "embedding=1000000000000"],
            "lower batch_size, embedding, size or images by --set",
        ),
        (["probe", "runs/none"], "there is no file or folder of that name"),
        (["publish", "README.md"], "README.md is not JSON"),
        (["replicate", "report-head2"], "did you mean 'report-head'?"),
        (["replicate", "simclr-cifar10"], "unknown claim of a size that can be run here"),
        (["tune", "tunings"], "unknown entry with trials 'tunings'; did you mean 'tuning'?"),
        (["book", "--profile", "fast"], "unknown profile 'fast'"),
        (["book", "--only", "99"], "unknown chapter '99'"),
        (
            ["import", "none", "--out", "none.npz"],
            "none is neither a folder, nor a picture, nor an .npz file",
        ),
        (["embed", "book", "--weights", "none", "--out", "none.npz"], "unknown weights 'none'"),
        (
            ["embed", "book", "--weights", "none", "--out", "none"],
            "--out must be FEATURES.npz, got none",
        ),
        (["neighbours", "none.npz", "x"], "can't read none.npz (No such file or directory)"),
        (["export", "none", "--out", "none"], "unknown weights 'none'"),
        (
            ["export", "none", "--out", "x.pth", "--float32"],
            "x.pth is a file: leave out --float32, meant for a folder",
        ),
        (
            ["export", "none", "--out", "x.pt2", "--float32", "--licence", "MIT"],
            "x.pt2 is a file: leave out --float32 and --licence, meant for a folder",
        ),
        (["export", "none", "--out", "x", "--device", "cpu"], "No such option: --device"),
    ],
)
def test_bad_input_is_one_line_and_status_2(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    if "pretrain" in arguments and "--runs" not in arguments:
        arguments = [*arguments, "--runs", str(tmp_path)]
    assert main(arguments) == 2
    *before, captured = capsys.readouterr().err.splitlines()
    assert captured.startswith("error: ") and words in captured
    assert all(line.startswith("device: ") for line in before[:1]) and not before[1:]


def test_what_computes_is_told_first_and_not_on_stdout(toy_root, tmp_path, capsys, monkeypatch):
    """Also why a GPU does not; a run that is only shown computes nothing."""
    monkeypatch.setattr(drivers, "unusable_gpu", lambda: "there is a GPU, and why not")
    small = ["--data", "toy", "--epochs", "1", "--set", "batch_size=32", "--data-root", toy_root]
    assert main(["pretrain", "simclr-digits", *small, "--runs", tmp_path / "runs"]) == 0
    said = capsys.readouterr()
    assert said.err.startswith("device: ") and "device: " not in said.out
    assert re.match(r"device: .*\(\w+.*\), float32\nnote: there is a GPU, and why not\n", said.err)

    (folder,) = (tmp_path / "runs").iterdir()
    for computed in (True, False):
        assert main(["probe", folder, "--data-root", toy_root, "--device", "cpu"]) == 0
        said = capsys.readouterr().err
        assert re.search(r"^device: .*\(cpu.*\), float32$", said, re.M) or not computed
        assert ("device: " in said) == computed and "note: " not in said  # the CPU was asked for


def test_help_has_examples_that_parse():
    for arguments in (["--help"], ["pretrain", "--help"]):
        command = [sys.executable, "-m", "lib", *arguments]
        shown = subprocess.run(
            command, capture_output=True, text=True, cwd=ROOT, timeout=300, encoding="utf-8"
        )
        assert shown.returncode == 0 and "examples:" in shown.stdout, shown.stderr
        assert "python -m lib pretrain simclr-digits" in shown.stdout
        commands = shown.stdout.partition("Commands:")[2].partition("examples:")[0]
        assert "..." not in commands, "no command's sentence is cut off"
    group = get_command(app)
    for line in EXAMPLES.splitlines()[1:]:
        name, *words = line.split("  ")[1].split()[3:]
        group.commands[name].make_context(name, words)  # raises where they don't parse
    named = {line.split()[3] for line in EXAMPLES.splitlines()[1:]}
    assert named == set(group.commands)  # every command has one


def test_a_list_is_a_repeated_option():
    context = (
        get_command(app)
        .commands["experiments"]
        .make_context("experiments", ["--only", "heads-slice", "--only", "ce-slice"])
    )
    assert context.params["only"] == ["heads-slice", "ce-slice"]


def test_a_wrong_command_line_is_one_line_and_status_2(capsys):
    for arguments, words in (
        ([], "Missing command"),
        (["pretrian"], "No such command 'pretrian'"),
        (["pretrain"], "Missing argument 'preset'"),
        (["pretrain", "simclr-digits", "--epoch", "3"], "No such option"),
        (["pretrain", "simclr-digits", "--epochs", "three"], "Invalid value for '--epochs'"),
    ):
        assert main(arguments) == 2
        said = capsys.readouterr().err.strip()
        assert said.startswith("error: ") and words in said and said.count("\n") == 0, said


def test_the_console_script_is_the_same_command(tmp_path):
    """From a folder that has a lib of its own, which it does not take for the package."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "__init__.py").touch()
    program = os.path.join(os.path.dirname(sys.executable), "contrastive")
    listed = subprocess.run(
        [program, "pretrain", "list"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        encoding="utf-8",
    )
    assert listed.returncode == 0 and "supcon-cifar10" in listed.stdout, listed.stderr


def test_the_reports_commands_have_counterparts_that_run(toy_root, tmp_path, capsys):
    """Every command in the table of the page "Rerun it", made small; --with's probes on the run
    before it."""
    table = (
        (ROOT / "book" / "rerun.md")
        .read_text(encoding="utf-8")
        .partition("own commands")[2]
        .partition("## ")[0]
    )
    commands = [
        code.split()[3:]
        for code in re.findall("`([^`]+)`", table)
        if code.startswith("python -m lib")
    ]
    assert [command[0] for command in commands].count("pretrain") == 5
    small = [
        "--data",
        "toy",
        "--epochs",
        "1",
        "--runs",
        str(tmp_path),
        "--data-root",
        str(toy_root),
        "--device",
        "cpu",
    ]
    small += [
        word
        for value in ("encoder=slim", "batch_size=32", "size=12", "recipe=supcontrast")
        for word in ("--set", value)
    ]
    folder = None
    for command in commands:
        if command[0] == "pretrain":
            before = set(tmp_path.glob("*/record.json"))
            assert main([*command, *small]) == 0
            (folder,) = {path.parent for path in set(tmp_path.glob("*/record.json")) - before}
        else:
            chosen = [str(folder) if word == "RUN" else word for word in command]
            assert main([*chosen, "--data-root", str(toy_root), "--device", "cpu"]) == 0
            probes = set(records.read(folder / "record.json")["evaluation"]["h"])
            assert set(command[3::2]) - {"labels"} <= probes
            assert ("labels a class" in capsys.readouterr().out) == ("labels" in command)


def test_list_of_presets(capsys):
    assert main(["pretrain", "list"]) == 0 and "supcon-cifar10" in capsys.readouterr().out


def test_from_pictures_to_predictions_on_the_command_line(tmp_path, capsys):
    """The README's path: import, pretrain on it, export, embed by the exported weights, neighbours,
    predict."""
    for name, colour in (("blue", (20, 60, 210)), ("red", (200, 30, 40))):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(30):
            Image.new("RGB", (20 + i, 24), tuple(c + i for c in colour)).save(
                tmp_path / "photos" / name / f"{i}.png"
            )
    (tmp_path / "photos" / "red" / "broken.png").touch()
    where = ["--data-root", str(tmp_path), "--device", "cpu"]
    assert (
        main(
            [
                "import",
                str(tmp_path / "photos"),
                "--size",
                "16",
                "--out",
                str(tmp_path / "mine.npz"),
            ]
        )
        == 0
    )
    said = capsys.readouterr().out
    assert "49 train, 11 test" in said  # of 61, a fifth held out; the broken one among them
    assert (
        "1 broken image skipped:\nred/broken.png: 0 bytes" in said
        and "blue (24 + 6), red (25 + 5)" in said
    )
    words = next(
        line
        for line in said.splitlines()
        if line.startswith("a first try: python -m lib pretrain ")
    ).split()
    assert (
        main([*words[6:], "--epochs", "1", "--runs", str(tmp_path / "first"), "--device", "cpu"])
        == 0
    )
    assert (
        "batch_size=16" in words
        and "simclr-cifar10-slim on 44 images of mine" in capsys.readouterr().out
    )
    assert (
        main(
            [
                "pretrain",
                "simclr-digits",
                "--data",
                "mine",
                "--epochs",
                "1",
                "--set",
                "batch_size=16",
                "--set",
                "recipe=supcontrast",
                "--runs",
                str(tmp_path / "runs"),
                *where,
            ]
        )
        == 0
    )
    folder = next((tmp_path / "runs").iterdir())
    assert "simclr-digits on 44 images of mine (train)" in capsys.readouterr().out
    data_root = where[:2]
    assert main(["export", str(folder), "--out", str(tmp_path / "ours"), *data_root]) == 0
    assert (
        f"record: {folder.name}" in capsys.readouterr().out
        and (tmp_path / "ours" / "README.md").is_file()
    )
    features = str(tmp_path / "h.npz")
    ours = str(tmp_path / "ours")
    assert (
        main(["embed", str(tmp_path / "photos"), "--weights", ours, "--out", features, *where]) == 0
    )
    assert "h (60, 128), z (60, 128)" in capsys.readouterr().out
    assert main(["neighbours", features, "red/3.png", "--count", "2"]) == 0
    near = capsys.readouterr().out.splitlines()
    assert len(near) == 2 and all("red/" in line for line in near)
    assert main(["predict", features, "--train", features]) == 0
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 60
    assert "% right" not in said.err
    assert "of 60 pictures of known class the probe has learnt from all; embed others" in said.err

    content = dict(np.load(features))
    half = np.arange(60) % 2 == 0
    learnt = {name: content[name][half] for name in ("files", "h", "labels", "digests")}
    np.savez(tmp_path / "half.npz", **content | learnt)
    assert main(["predict", features, "--train", str(tmp_path / "half.npz")]) == 0
    said = capsys.readouterr()
    rows = [line.split() for line in said.out.splitlines()]
    others = [row for row, is_learnt in zip(rows, half) if not is_learnt]
    right = sum(file.startswith(name) for file, name, _ in others)
    assert len(rows) == 60 and right > 27
    assert f"{100 * right / 30:.1f} [" in said.err
    assert "% right, of 30 pictures of known class that the probe has not learnt from" in said.err

    but_one = {name: content[name][1:] for name in learnt}
    np.savez(tmp_path / "but_one.npz", **content | but_one)
    assert main(["predict", features, "--train", str(tmp_path / "but_one.npz")]) == 0
    assert "of 1 picture of known class that" in capsys.readouterr().err
    assert (
        main(["export", str(folder), "--out", str(tmp_path / "new" / "ours.pt2"), *data_root]) == 0
    )
    assert (
        "wants images (B, 3, 16, 16) float32 as (pixels / 255 - mean) / std, mean (0."
        in capsys.readouterr().out
    )
    assert main(["export", str(folder), "--out", str(tmp_path / "ours.h5"), *data_root]) == 2
    assert "must end in .pth, .onnx or .pt2" in capsys.readouterr().err
    dotted = tmp_path / "ours.v2"
    dotted.mkdir()
    assert main(["export", str(folder), "--out", str(dotted), *data_root]) == 0
    assert f"use it as --weights {dotted}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "number, words", [(signal.SIGTERM, ""), (signal.SIGINT, "interrupted; nothing was written\n")]
)
def test_an_import_that_is_stopped_leaves_nothing_behind(number, words, tmp_path):
    for name in ("a", "b"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(2000):
            (tmp_path / "photos" / name / f"{i}.png").symlink_to(
                ROOT / "book" / "_static" / "overview.png"
            )
    out = tmp_path / "out" / "mine.npz"
    process = subprocess.Popen(
        [sys.executable, "-m", "lib", "import", tmp_path / "photos", "--out", out],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )
    try:
        wait_for(lambda: list(out.parent.glob(".import-*/train")))
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (
        process.returncode == 128 + number and said.endswith(words) and "Traceback" not in said
    ), said
    assert not list(out.parent.iterdir())


def test_features_that_could_not_be_written_are_not_computed(tmp_path, capsys):
    Image.new("RGB", (40, 40)).save(tmp_path / "x.png")
    (tmp_path / "blocked").touch()
    out = str(tmp_path / "blocked" / "h.npz")
    words = ["--weights", "simclr-cifar10", "--out", out, "--device", "cpu"]
    assert main(["embed", str(tmp_path / "x.png"), *words]) == 2
    assert capsys.readouterr().err.startswith(f"error: can't write {out} (")  # before any bar


def test_a_warning_is_a_line_without_its_place_in_the_sources(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(3):
            levels = np.full((20, 20), 4000 + i, np.uint16)  # of 12 bits
            Image.fromarray(levels).save(tmp_path / "photos" / name / f"{i}.png")
    command = [sys.executable, "-m", "lib", "import", tmp_path / "photos"]
    done = subprocess.run(
        [*command, "--size", "16", "--out", tmp_path / "mine.npz"],
        capture_output=True,
        text=True,
        encoding="utf-8",
        cwd=ROOT,
        timeout=300,
    )
    notes = [line for line in done.stderr.splitlines() if "12 of them" in line]
    assert len(notes) == 1 and notes[0].startswith("note: images of 16 bits")
    assert "decoding.py" not in done.stderr and "stacklevel" not in done.stderr


def test_what_head_does_not_want_is_no_error():
    done = subprocess.run(
        "set -o pipefail; python -m lib records --json | head -1 | wc -l",
        shell=True,
        text=True,
        executable="/bin/bash",
        cwd=ROOT,
        capture_output=True,
        env={**os.environ, "PATH": PATH},
        timeout=300,
        encoding="utf-8",
    )
    assert done.stdout.strip() == "1" and not done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a device that is full")
@pytest.mark.parametrize("words", [["pretrain", "list"], ["pretrain", "--help"]])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_an_output_without_room_is_one_line(words, unbuffered):
    with open("/dev/full", "w", encoding="utf-8") as full:
        done = subprocess.run(
            [sys.executable, "-m", "lib", *words],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            cwd=ROOT,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
            timeout=300,
        )
    assert done.stderr == "error: can't write the output (No space left on device)\n"
    assert done.returncode == 2


def test_a_run_that_is_not_there_says_what_is(tmp_path, capsys):
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "checkpoint.safetensors").touch()
    (tmp_path / "exported").mkdir()
    (tmp_path / "exported" / "model.safetensors").touch()
    for folder, words in (
        ("half", "not finished: the same pretrain command goes on"),
        ("exported", "model.safetensors is not a whole .safetensors file"),
    ):
        assert main(["probe", str(tmp_path / folder)]) == 2 and words in capsys.readouterr().err


def test_what_is_refused_among_several_keeps_no_other_back(toy_root, tmp_path, capsys):
    begin = ["pretrain", "simclr-digits", "--epochs", "0", "--data", "toy", "--set", "images=40"]
    runs = tmp_path / "runs"
    assert main([*begin, "--data-root", str(toy_root), "--runs", str(runs)]) == 0
    (folder,) = runs.iterdir()
    (runs / "a-half").mkdir()
    (runs / "a-half" / "checkpoint.safetensors").touch()
    capsys.readouterr()

    several = [str(runs / "a-half"), str(folder)]
    assert main(["probe", *several, "--data-root", str(toy_root)]) == 2
    said = capsys.readouterr()
    assert "linear" in said.out
    refused, device, account = said.err.splitlines()[-3:]
    assert device.startswith("device: ")
    assert "not finished: the same pretrain command goes on" in refused
    assert account == "error: 1 of 2 were refused, see above; the rest is done"


def test_between_two_runs_what_is_published_already_is_not_denied(tmp_path, capsys, monkeypatch):
    def publish(path):
        if path.name == "b":
            raise KeyboardInterrupt
        return path

    monkeypatch.setattr(records, "publish", publish)
    assert main(["publish", str(tmp_path / "a"), str(tmp_path / "b")]) == 130
    said = capsys.readouterr()
    assert said.out == f"{tmp_path / 'a'}\n"
    kept = "what was written before is kept, and the same command writes the rest"
    assert said.err == f"interrupted; {kept}\n"


def test_what_may_surprise_in_a_data_set_is_said_before_it_is_trained_on(tmp_path, capsys):
    noise = np.random.default_rng(0).integers(0, 256, (60, 16, 16, 3)).astype(np.uint8)
    noise[..., 2] = 7
    labels = np.arange(60) % 3
    test = labels[:30] % 2
    np.savez(tmp_path / "odd.npz", x_train=noise, y_train=labels, x_test=noise[:30], y_test=test)
    words = ["pretrain", "simclr-digits", "--data", "odd", "--epochs", "0"]
    assert main([*words, "--data-root", str(tmp_path), "--runs", str(tmp_path / "runs")]) == 0
    said = capsys.readouterr().out
    assert "note: odd: channels that do not vary from pixel to pixel" in said
    assert "varies most: blue\n" in said
    assert "note: odd: test has no image of 2\n" in said


@pytest.mark.parametrize("preset, told", [("simclr-digits", True), ("supcon-digits", False)])
def test_images_without_labels_are_told_where_the_method_could_use_them(
    preset, told, tmp_path, capsys
):
    noise = np.random.default_rng(0).integers(0, 256, (60, 16, 16, 3)).astype(np.uint8)
    labels = np.arange(60) % 3
    arrays = {"x_train": noise, "y_train": labels, "x_test": noise[:30], "y_test": labels[:30]}
    np.savez(tmp_path / "mine.npz", x_unlabeled=noise[:40], **arrays)
    words = ["pretrain", preset, "--data", "mine", "--epochs", "0"]
    assert main([*words, "--data-root", str(tmp_path), "--runs", str(tmp_path / "runs")]) == 0
    said = capsys.readouterr().out
    assert ("note: mine: 40 images without labels left out; --set pool=unlabeled" in said) == told


@pytest.mark.parametrize(
    "words", [("pretrain", "simclr-digits", "--epochs", "0", "--runs"), ("probe",)]
)
def test_a_path_out_of_reach_is_named(words, tmp_path, capsys):
    """Here a name longer than a file system has, as a folder that may not be entered would be."""
    path = tmp_path / ("x" * 300) / "runs"
    assert main([*words, str(path)]) == 2
    *before, said = capsys.readouterr().err.splitlines()
    assert said.startswith("error: can't ") and "File name too long" in said
    assert not before or before[0].startswith("device: ") and len(before) == 1


def test_every_probe_is_named_in_the_help(capsys):
    assert main(["probe", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.casefold().replace("│", " ").split())
    for name in PROBES:
        assert name in shown, name


def test_a_probe_of_validation_alone_does_not_read_test(toy_root, tmp_path, capsys):
    here = ["--data-root", str(toy_root), "--device", "cpu"]
    words = ["pretrain", "simclr-digits", "--data", "toy", "--epochs", "0", *here]
    assert main([*words, "--runs", str(tmp_path)]) == 0
    (folder,) = tmp_path.glob("simclr-*")
    capsys.readouterr()
    assert main(["probe", str(folder), "--only", "validation", *here]) == 0
    _, *lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3  # h by both readers, z by the linear probe
    assert all("on validation" in line for line in lines)
    assert records.read(folder / "record.json")["evaluation"] == {}
    assert main(["probe", str(folder), "--only", "validation", "--with", "labels", *here]) == 2
    assert "tell one" in capsys.readouterr().err


def test_two_runs_are_compared_image_by_image(toy_root, tmp_path, capsys):
    runs, here = tmp_path / "runs", ["--data-root", str(toy_root), "--device", "cpu"]
    for epochs in ("0", "2"):
        command = ["pretrain", "simclr-digits", "--data", "toy", "--epochs", epochs, *here]
        assert main([*command, "--runs", str(runs)]) == 0
    folders = sorted(runs.glob("simclr-*"))
    assert main(["compare", *map(str, folders)]) == 2
    assert "have no probe in common" in capsys.readouterr().err
    assert main(["probe", *map(str, folders), *here]) == 0
    capsys.readouterr()

    assert main(["compare", *map(str, folders)]) == 0
    first, second, *lines, last = capsys.readouterr().out.splitlines()
    assert first.startswith(folders[0].name) and second.startswith(f"minus {folders[1].name}")
    read = [records.read(folder / "record.json") for folder in folders]
    for line, probe in zip(lines, ("linear", "knn")):
        one, other = (record["evaluation"]["h"][probe] for record in read)
        difference = 100 * (one["correct"] - other["correct"]) / one["n"]
        assert line.split()[:3] == ["h", probe, f"{difference:+z.1f}"]
        assert line.endswith(f"n = {one['n']}")
    assert len(lines) == 4  # of z, too
    assert "another seed may move it further" in last

    of_z = read[0]["evaluation"]["z"]
    cut_short = {name: of_z["linear"][name] for name in of_z["linear"] if name != "weakest_l2"}
    evaluation = read[0]["evaluation"] | {"z": of_z | {"linear": cut_short}}
    records.write(tmp_path / "early.json", read[0] | {"evaluation": evaluation})
    pair = [str(tmp_path / "early.json"), str(folders[1])]
    for names in (pair, pair[::-1]):
        assert main(["compare", *names]) == 0
        assert "z  linear" not in capsys.readouterr().out

    records.write(folders[0] / "record.json", read[0] | {"evaluation": evaluation})
    assert main(["probe", str(folders[0]), *here]) == 0  # it reads z again
    assert "left out" not in capsys.readouterr().out
    assert records.read(folders[0] / "record.json")["evaluation"] == read[0]["evaluation"]

    changed = read[0] | {"data": read[0]["data"] | {"fingerprint": "0" * 16}}
    records.write(tmp_path / "other.json", changed)
    assert main(["compare", str(folders[1]), str(tmp_path / "other.json")]) == 2
    assert "were tested on other images" in capsys.readouterr().err


def test_a_field_that_is_told_twice_is_refused(capsys):
    assert main(["pretrain", "simclr-digits", "--epochs", "3", "--set", "epochs=2"]) == 2
    assert "epochs is told twice: by --epochs, and by --set" in capsys.readouterr().err
    assert main(["pretrain", "simclr-digits", "--set", "epochs=3", "--set", "epochs=2"]) == 2
    assert "epochs is told twice, by --set epochs=2 and before" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["5in", r"'\d'"])
def test_how_python_reads_a_setting_is_no_warning(name, recwarn):
    assert parse([f"data={name}"]) == {"data": name.strip("'")}
    assert not recwarn.list


def test_yes_and_no_are_told_in_any_case():
    settings = ["drop_last=true", "head=none", "milestones=None"]
    assert parse(settings) == {"drop_last": True, "head": "none", "milestones": None}
    assert parse(["drop_last=False"]) == parse(["drop_last=false"])
