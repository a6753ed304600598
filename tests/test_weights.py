"""Encoders exported, registered, fetched and taken in place of training; and what is refused."""

import copy
import functools
import hashlib
import http.server
import json
import re
import shutil
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
import yaml
from safetensors.torch import load as deserialise
from safetensors.torch import save_file
from torch import Tensor

from lib import HOME, InputError, data, weights
from lib.__main__ import main
from lib.augmentations import Recipe
from lib.data.dataset import Dataset
from lib.encoders import Model
from lib.runs import Run, checkpoints, load, pretrain, records
from lib.weights import named_runs, registry
from tests.conftest import arrays, small, trained


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A data root with toy.npz."""
    folder = tmp_path_factory.mktemp("root")
    np.savez(folder / "toy.npz", **arrays())
    return folder


@pytest.fixture(scope="module")
def toy(root) -> Dataset:
    return data.load("toy", root)


@pytest.fixture(scope="module")
def run(root, toy) -> Run:
    """Trained on toy for an epoch, and probed."""
    run = trained(small(epochs=1), toy, root / "runs")
    run.evaluate(toy, "cpu")
    return run


@pytest.fixture(scope="module")
def other_toy() -> Dataset:
    """Another version of toy."""
    return data.build("toy", **arrays(), variant="another")


@dataclass
class Registry:
    """A registry of one entry, in a folder of its own."""

    path: Path
    entry: dict[str, str]

    def write(self, *entries: dict) -> None:
        self.path.write_text(yaml.safe_dump(list(entries)), encoding="utf-8")

    def change(self, **changes: object) -> None:
        self.write(self.entry | changes)

    def refused(self, words: str, name: str = "ours", root: Path | None = None) -> None:
        """The weights of that name are refused, in such words on one line."""
        with pytest.raises(InputError, match=words) as caught:
            weights.load(name, root or self.path.parent, self.path)
        assert "\n" not in str(caught.value)


@pytest.fixture
def shared(run, toy, tmp_path) -> Registry:
    """The run exported in half precision, to tmp_path / "ours", and registered as "ours"."""
    entry = weights.export(run, tmp_path / "ours", toy) | {"name": "ours"}
    written = Registry(tmp_path / "registry.yml", entry)
    written.write(entry)
    return written


def outputs(run: Run, toy: Dataset) -> tuple[Tensor, Tensor]:
    """h and z of the test images, by the run itself."""
    return run.features(toy.test.images, toy, "cpu")


# --------------------------------------------------------------------------------------------------
# exported


def test_ours_written_in_float32_and_read_again_is_the_same_to_the_bit(run, toy, root, tmp_path):
    weights.export(run, tmp_path / "full", toy, half=False)
    mean, std = toy.moments
    for name, folder in ((tmp_path / "full", tmp_path), (run.folder, root)):
        loaded = weights.load(name, folder)
        assert loaded.size == 12
        assert loaded.recipe == Recipe(size=12, mean=mean, std=std)
        for ours, theirs in zip(loaded.features(toy.test.images, "cpu"), outputs(run, toy)):
            assert torch.equal(ours, theirs)


def test_images_are_brought_to_their_data_sets_side_and_seen_at_the_views(toy, tmp_path):
    """Which may be a smaller one."""
    run = trained(small(epochs=0, size=8), toy, tmp_path / "runs")
    weights.export(run, tmp_path / "ours", toy)
    loaded = weights.load(tmp_path / "ours", tmp_path)
    assert loaded.size == 12
    assert loaded.recipe.size == 8
    with pytest.raises(InputError, match="ours knows how it sees images: leave out size and std"):
        weights.load(tmp_path / "ours", tmp_path, size=16, std=(1, 1, 1))


def test_half_precision_takes_half_the_room_and_changes_little(run, toy, tmp_path):
    weights.export(run, tmp_path / "half", toy)
    content = (tmp_path / "half" / weights.FILE).read_bytes()
    stored = deserialise(content)
    kinds = {value.dtype for value in stored.values() if value.dim() > 1}
    assert kinds == {torch.float16}
    assert stored["encoder.1.running_var"].dtype == torch.float32
    size = sum(parameter.numel() for parameter in run.model.parameters())
    assert 2 * size < len(content) < 2.4 * size

    loaded = weights.load(tmp_path / "half", tmp_path)
    assert all(parameter.dtype == torch.float32 for parameter in loaded.model.parameters())
    for ours, theirs in zip(loaded.features(toy.test.images, "cpu"), outputs(run, toy)):
        assert 0 < (ours - theirs).norm() / theirs.norm() < 2e-3


def test_the_same_run_is_the_same_file(run, toy, tmp_path):
    """Its hash is registered."""
    entry = weights.export(run, tmp_path / "ours", toy)
    content = (tmp_path / "ours" / weights.FILE).read_bytes()
    for _ in range(8):
        assert weights.export(run, tmp_path / "ours", toy) == entry
        assert (tmp_path / "ours" / weights.FILE).read_bytes() == content
    assert entry == {
        "name": run.record["id"],
        "url": str(tmp_path / "ours"),
        "sha256": hashlib.sha256(content).hexdigest(),
        "record": run.record["id"],
        "licence": "none stated",
    }


def test_the_model_card_is_the_record(run, toy, tmp_path):
    entry = weights.export(run, tmp_path / "ours", toy, licence="MIT")
    card = (tmp_path / "ours" / "README.md").read_text(encoding="utf-8")
    result = run.record["evaluation"]["h"]["linear"]
    lines = [
        f"# {run.folder.name}",
        "simclr on toy, 1 epoch.",
        "| trained on | 180 of them (train) |",
        "| image, view (pixels) | 12, 12 |",
        f"| mean of RGB in [0, 1] | {list(toy.moments[0])} |",
        "| weights | float16 |",
        f"| made on | {run.record['device']['name']} |",
        f"| sha256 | {entry['sha256']} |",
        "| licence | MIT; the data set's own terms hold for its images |",
        "| batch_size | 32 |",
    ]
    assert set(lines) <= set(card.splitlines())
    assert f"| h | linear | {100 * result['correct'] / result['n']:.1f}" in card
    assert "Other seeds" not in card and "- Pictures unlike toy's." in card


def test_the_model_card_has_the_other_seeds(run, toy, tmp_path):
    another, longer = copy.deepcopy(run.record), copy.deepcopy(run.record)
    another["config"]["seed"], another["id"] = 7, "another"
    longer["config"]["epochs"], longer["id"] = 2, "longer"
    results = tmp_path / "results"
    results.mkdir()
    for record in (run.record, another, longer):
        (results / f"{record['id']}.json").write_text(json.dumps(record), encoding="utf-8")
    weights.export(run, tmp_path / "ours", toy, results=results)
    card = (tmp_path / "ours" / "README.md").read_text(encoding="utf-8")
    result = another["evaluation"]["h"]["linear"]
    share = f"{100 * result['correct'] / result['n']:.1f}"
    assert f"\nOther seeds of this setup, from h by the linear probe: {share} %.\n" in card


def test_an_export_replaces_nothing_but_itself(run, toy, tmp_path):
    before = (run.folder / "model.safetensors").read_bytes()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "README.md").write_text("about my thesis", encoding="utf-8")
    untrained = trained(small(epochs=0), toy, tmp_path / "runs")
    weights.export(untrained, tmp_path / "other", toy)

    words = "is there already, and is no earlier export of this run: name another folder"
    for folder in (run.folder, tmp_path / "mine", tmp_path / "other"):
        with pytest.raises(InputError, match=words):
            weights.export(run, folder, toy)
    assert (run.folder / "model.safetensors").read_bytes() == before
    assert (tmp_path / "mine" / "README.md").read_text(encoding="utf-8") == "about my thesis"


def test_a_run_that_cannot_be_exported_leaves_nothing(run, toy, other_toy, tmp_path):
    with pytest.raises(InputError, match="trained on another version of toy: the fingerprint"):
        weights.export(run, tmp_path / "no", other_toy)
    broken = load(run.folder)
    broken.model.head[0].weight.data[0, 0] = 1e5
    words = "head.0.weight of .* is not finite in float16; export it in float32"
    with pytest.raises(InputError, match=words):
        weights.export(broken, tmp_path / "no", toy)
    assert not (tmp_path / "no").exists()


# --------------------------------------------------------------------------------------------------
# in place of training


def test_a_run_by_weights_is_a_run_and_further_probes_leave_the_file_alone(
    run, toy, shared, tmp_path
):
    ours = weights.run("ours", tmp_path, shared.path)
    assert ours.config == run.config
    assert ours.curves == run.curves
    assert ours.record["evaluation"] == run.record["evaluation"]
    assert ours.record["weights"] == "float16"

    content = (tmp_path / "ours" / weights.FILE).read_bytes()
    ours.evaluate(toy, "cpu", ["rotation"])
    again = weights.run("ours", tmp_path, shared.path)
    assert "rotation" in again.record["evaluation"]["h"]
    assert "rotation" not in records.read(run.folder / "record.json")["evaluation"]["h"]
    assert (tmp_path / "ours" / weights.FILE).read_bytes() == content


def test_exported_weights_are_probed_and_compared_as_their_run_is(run, shared, tmp_path, capsys):
    assert main(["probe", str(tmp_path / "ours")]) == 0
    exported = capsys.readouterr().out
    assert main(["probe", str(run.folder)]) == 0
    assert exported == capsys.readouterr().out and run.record["id"] in exported
    assert main(["compare", str(tmp_path / "ours"), str(run.folder)]) == 0
    assert "+0.0 [" in capsys.readouterr().out
    assert main(["probe", "simclr-cifar1"]) == 2
    assert "did you mean 'simclr-cifar10'?" in capsys.readouterr().err


def test_weights_are_used_where_nothing_can_be_kept(run, toy, shared, tmp_path, capsys):
    """The folder of data sets can't be written: it is a file."""
    root = tmp_path / "file"
    root.touch()
    assert weights.load("ours", root, shared.path).record["id"] == run.record["id"]
    ours = weights.run(tmp_path / "ours", root)
    assert ours.evaluate(toy, "cpu") == run.record["evaluation"]
    assert "note:" not in capsys.readouterr().err
    told = ours.evaluate(toy, "cpu", ["rotation"])  # here something is new
    assert "rotation" in told["h"]
    note = capsys.readouterr().err
    assert re.search("note: .*can't write .*/file/weights/", note)


def test_weights_take_the_place_of_training(run, toy, shared, tmp_path, capsys):
    instead = named_runs("ours", tmp_path, shared.path)
    taken = pretrain(run.config, toy, tmp_path / "runs", "cpu", instead=instead)
    assert taken.record["weights"] == "float16"
    assert capsys.readouterr().out == f"weights in place of training: {run.record['id']}\n"

    untrained = pretrain(small(epochs=0), toy, tmp_path / "runs", "cpu", instead=instead)
    assert "weights" not in untrained.record


def test_names_of_runs_are_separated_by_spaces(run, shared, tmp_path):
    ours, own = named_runs(f"ours {run.folder}", tmp_path, shared.path)
    assert ours.record["id"] == own.record["id"]
    assert own.folder == run.folder
    assert named_runs(None) == []


def test_weights_of_another_run_or_other_data_are_refused(run, toy, other_toy, shared, tmp_path):
    instead = named_runs("ours", tmp_path, shared.path)
    config = small(epochs=1, temperature=0.2)
    words = f"none of the weights {run.record['id']} is of this run: temperature is 0.5 there and"
    with pytest.raises(InputError, match=words):
        pretrain(config, toy, tmp_path, instead=instead)
    with pytest.raises(InputError, match="trained on another version of toy"):
        pretrain(run.config, other_toy, tmp_path, instead=instead)


# --------------------------------------------------------------------------------------------------
# the registry


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"sha256": "0" * 64}, "not what is registered as ours: its SHA-256 is another one; if it"),
        ({"record": "other"}, "is registered as the run other, its file holds simclr-digits-e1"),
        ({"url": "none"}, "can't read .*none"),
        ({"licence": None}, "registry.yml: encoder ours: licence must be text, got None"),
        ({"sha256": 5}, "registry.yml: encoder ours: sha256 must be text, got 5"),
        ({"colour": "red"}, "registry.yml: encoder ours: unknown field 'colour'"),
    ],
)
def test_a_wrong_entry_is_one_line(shared, changes, words):
    shared.change(**changes)
    shared.refused(words)


def test_a_wrong_registry_is_one_line(shared):
    entry = dict(shared.entry)
    shared.write(entry, entry)
    shared.refused("registry.yml: encoder ours is there twice")
    del entry["url"]
    shared.write(shared.entry | {"name": "whole"}, entry)
    shared.refused("registry.yml: encoder ours: the field 'url' is missing", name="whole")
    shared.path.write_text(yaml.safe_dump({"ours": entry}), encoding="utf-8")
    shared.refused("must be a list of weights, each with name, url, sha256, record, licence")


def test_an_unknown_name_is_told_with_those_that_are_near(shared, tmp_path):
    shared.refused("unknown weights 'our'; did you mean 'ours'", name="our")
    shared.path.write_text("", encoding="utf-8")
    shared.refused("no file or folder of that name, .* 'x'; known: a run's folder", name="x")
    (tmp_path / "empty").mkdir()
    name = str(tmp_path / "empty")
    shared.refused("empty holds neither a finished run nor exported weights", name=name)


def test_the_projects_registry_is_whole_and_its_files_are_small():
    entries = registry.entries()
    rerun = (HOME / "book" / "rerun.md").read_text(encoding="utf-8")
    files = list(weights.REGISTRY.parent.rglob("*.safetensors"))
    assert all(file.stat().st_size < 2e6 for file in files)
    there = {file.parent.name for file in files if file.name == weights.FILE}
    assert there == {entry.url for entry in entries.values() if not entry.remote}
    for name, entry in entries.items():
        assert f"`{name}`" in rerun
        assert (records.RESULTS / f"{entry.record}.json").is_file()
        if not entry.remote:
            weights.load(name)


# --------------------------------------------------------------------------------------------------
# files


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:9],
        lambda content: content[:-7],
        lambda content: content[:-100] + bytes([content[-100] ^ 1]) + content[-99:],
        lambda content: content.replace(b"digits-e1", b"digits-e2"),
    ],
)
def test_a_damaged_file_is_refused(shared, tmp_path, damage):
    file = tmp_path / "ours" / weights.FILE
    file.write_bytes(damage(file.read_bytes()))
    words = "is not a whole .safetensors file|its checksum is wrong"
    shared.refused(words, name=str(tmp_path / "ours"))


def write(path: Path, state: dict[str, Tensor], record: dict) -> None:
    """Write a sealed file of such tensors and such a record."""
    save_file(state, path, {"record": json.dumps(record | {"sha256": "0" * 64})})
    path.write_bytes(checkpoints.sealed(path.read_bytes()))


def test_a_file_of_another_architecture_than_its_record_says_is_refused(run, shared, tmp_path):
    state = Model("resnet18").state_dict()
    write(tmp_path / "ours" / weights.FILE, state, run.record)
    words = "of another architecture than its record says"
    shared.refused(words, name=str(tmp_path / "ours"))


@pytest.mark.parametrize(
    "view",
    [
        {"image": 1},
        {"size": "x"},
        {"image": 12, "size": 12, "mean": [0, 0], "std": [1, 1, 1]},
        {"image": 12, "size": 12, "mean": [0, 0, 0], "std": [1, 0, 1]},
        {"image": 12, "size": 7, "mean": [0, 0, 0], "std": [1, 1, 1]},
        [12, 12],
    ],
)
def test_a_record_that_does_not_say_how_it_sees_images_is_refused(run, shared, tmp_path, view):
    state = {name: value.contiguous() for name, value in run.model.state_dict().items()}
    write(tmp_path / "ours" / weights.FILE, state, run.record | {"input": view})
    words = "does not say how it sees images .*; export it again"
    shared.refused(words, name=str(tmp_path / "ours"))


def test_a_name_that_is_nearly_one_says_what_to_name(run, root, tmp_path):
    file = run.folder / "model.safetensors"
    assert weights.load(file, root).record["id"] == run.record["id"]  # a file of a run is that run

    half = tmp_path / "half" / checkpoints.NEWEST
    half.parent.mkdir()
    half.write_bytes(file.read_bytes())
    with pytest.raises(InputError, match="is a file of a run: name the folder of the run, once"):
        weights.load(half, root)
    words = "half holds neither a finished run nor exported weights; the run is not"
    with pytest.raises(InputError, match=words):
        weights.load(half.parent, root)


def test_a_run_is_used_without_its_data_since_its_record_says_how_it_sees(run, root, tmp_path):
    used = weights.load(run.folder, tmp_path / "no data")
    assert used.recipe == weights.load(run.folder, root).recipe
    assert used.recipe.mean == run.recipe(data.load("toy", root)).mean

    older = tmp_path / "older"  # whose record does not say it
    shutil.copytree(run.folder, older)
    record = {key: value for key, value in run.record.items() if key != "input"}
    records.write(older / "record.json", record)
    assert weights.load(older, root).recipe == used.recipe
    words = "its data set says how it sees images: unknown data set 'toy'.*or export it where that"
    with pytest.raises(InputError, match=words):
        weights.load(older, tmp_path)


def test_other_projects_checkpoints_are_no_runs(run, tmp_path):
    torch.save(run.model.state_dict(), tmp_path / "theirs.pth")
    save_file(torchvision.models.resnet18().state_dict(), tmp_path / "theirs.safetensors")
    for name in ("theirs.pth", "theirs.safetensors"):
        words = f"{name} holds no record of a run: name the folder of a finished run"
        with pytest.raises(InputError, match=words):
            weights.run(tmp_path / name, tmp_path)


def test_checkpoints_of_one_file_name_are_told_apart(tmp_path):
    path = tmp_path / "r18.pth"
    names = []
    for seed in (0, 1, 1):
        torch.manual_seed(seed)
        torch.save(torchvision.models.resnet18().state_dict(), path)
        names.append(weights.load(path).encoder)

    assert len(set(names)) == 2
    assert all(name.startswith("r18.pth-") for name in names)
    about = weights.load(path).about
    assert "seen as in torchvision's evaluation, 224 x 224 pixels, mean (0.485" in about


# --------------------------------------------------------------------------------------------------
# downloads


@pytest.fixture
def asked(shared, tmp_path) -> Iterator[list[str]]:
    """What a web server of our own was asked for, which the registered weights now come from."""
    paths: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            paths.append(self.path)
            super().do_GET()

        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Handler, directory=tmp_path)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    shared.entry["url"] = f"http://127.0.0.1:{server.server_port}/ours/{weights.FILE}"
    shared.write(shared.entry)
    yield paths
    server.shutdown()
    server.server_close()


def test_a_download_is_verified_and_kept(asked, shared, tmp_path):
    for _ in range(2):
        loaded = weights.load("ours", tmp_path / "data", shared.path)
        assert loaded.record["id"] == shared.entry["record"]
        assert len(asked) == 1

    kept = tmp_path / "data" / "weights" / f"{shared.entry['sha256'][:16]}.safetensors"
    kept.write_bytes(kept.read_bytes()[:-1] + b"x")
    words = "is not what is registered as ours: its SHA-256 is another one; delete it"
    shared.refused(words, root=tmp_path / "data")


def test_what_was_downloaded_needs_no_pooch_any_more(asked, shared, tmp_path, monkeypatch):
    weights.load("ours", tmp_path / "data", shared.path)
    monkeypatch.setitem(sys.modules, "pooch", None)
    weights.load("ours", tmp_path / "data", shared.path)
    words = r"needs the package pooch, which is not installed; run in the checkout: .*\[weights\]"
    shared.refused(words, root=tmp_path / "elsewhere")


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"sha256": "1" * 64}, "hash"),
        ({"url": "http://127.0.0.1:9/x"}, "127.0.0.1"),
    ],
)
def test_a_download_of_another_hash_or_from_nowhere_is_refused_and_not_kept(
    asked, shared, tmp_path, changes, words
):
    shared.change(**changes)
    shared.refused(f"can't get the weights ours from .*{words}", root=tmp_path / "data")
    assert not list((tmp_path / "data").rglob("*.safetensors"))


def test_a_download_that_is_gone_is_refused(asked, shared, tmp_path):
    shared.change(url=shared.entry["url"] + ".gone")
    shared.refused("can't get the weights ours from .*404", root=tmp_path / "data")
    assert len(asked) == 1
