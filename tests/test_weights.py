import functools
import hashlib
import http.server
import json
import shlex
import sys
import threading

import numpy as np
import pytest
import torch
import torchvision
import yaml
from safetensors.torch import load as deserialise
from safetensors.torch import save_file

from lib import InputError, checkpoints, data, records, runs, training, weights
from lib.config import parse, preset
from lib.encoders import Model


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A data root with toy.npz, its data set, and a run trained on it, probed."""
    from tests.conftest import arrays

    root = tmp_path_factory.mktemp("root")
    np.savez(root / "toy.npz", **arrays())
    toy = data.load("toy", root)
    config = preset("simclr-digits", data="toy", epochs=1, batch_size=32, recipe="supcontrast")
    run = training.pretrain(config, toy, root / "runs", "cpu", progress=False)
    training.evaluate(run, toy, "cpu")
    return root, toy, run


@pytest.fixture
def shared(made, tmp_path):
    """The run exported in half precision, and a registry beside that knows it as "ours"."""
    root, toy, run = made
    entry = weights.export(run, tmp_path / "ours", toy) | {"name": "ours"}
    (tmp_path / "registry.yml").write_text(yaml.safe_dump([entry]))
    return tmp_path / "registry.yml", entry


def test_ours_written_in_float32_and_read_again_is_the_same_to_the_bit(made, tmp_path):
    root, toy, run = made
    weights.export(run, tmp_path / "full", toy, half=False)
    found, theirs = (
        weights.load(tmp_path / "full", tmp_path),
        runs.features(run, toy.test.images, toy, "cpu"),
    )
    for ours, there in zip(found.features(toy.test.images, "cpu"), theirs):
        assert torch.equal(ours, there)
    assert (
        found.recipe
        == runs.recipe_for(run.config, toy, "none").__class__(
            size=12, mean=toy.moments[0], std=toy.moments[1]
        )
        and found.size == 12
    )
    own = weights.load(run.folder, root)
    assert own.recipe == found.recipe and torch.equal(
        own.features(toy.test.images, "cpu")[1], theirs[1]
    )


def test_half_precision_takes_half_the_room_and_changes_little(made, tmp_path):
    root, toy, run = made
    weights.export(run, tmp_path / "half", toy)
    stored = deserialise((tmp_path / "half" / weights.FILE).read_bytes())
    kinds = {value.dtype for name, value in stored.items() if value.dim() > 1}
    assert kinds == {torch.float16} and stored["encoder.1.running_var"].dtype == torch.float32
    size = sum(p.numel() for p in run.model.parameters())
    assert 2 * size < (tmp_path / "half" / weights.FILE).stat().st_size < 2.4 * size
    found, theirs = (
        weights.load(tmp_path / "half", tmp_path),
        runs.features(run, toy.test.images, toy, "cpu"),
    )
    for ours, there in zip(found.features(toy.test.images, "cpu"), theirs):
        assert 0 < (ours - there).norm() / there.norm() < 2e-3
    assert all(p.dtype == torch.float32 for p in found.model.parameters())


def test_the_model_card_is_the_record(made, tmp_path):
    root, toy, run = made
    entry = weights.export(run, tmp_path / "ours", toy)
    card = (tmp_path / "ours" / "README.md").read_text()
    first = (tmp_path / "ours" / weights.FILE).read_bytes()
    for _ in range(8):  # the same run, the same file: its hash is registered
        assert weights.export(run, tmp_path / "ours", toy) == entry
        assert (tmp_path / "ours" / weights.FILE).read_bytes() == first
    result = run.record["evaluation"]["h"]["linear"]
    assert run.folder.name in card and f"{100 * result['correct'] / result['n']:.1f}" in card
    assert f"| mean of RGB in [0, 1] | {list(toy.moments[0])} |" in card and entry["sha256"] in card
    assert "| trained on | 180 of them (train) |" in card and "| licence | none stated;" in card
    assert "| batch_size | 32 |" in card and run.record["device"]["name"] in card
    assert (
        entry["sha256"]
        == hashlib.sha256((tmp_path / "ours" / weights.FILE).read_bytes()).hexdigest()
    )
    assert entry["record"] == entry["name"] == run.record["id"] and entry["url"] == str(
        tmp_path / "ours"
    )


def test_a_run_by_weights_is_a_run_and_further_probes_leave_the_file_alone(made, shared, tmp_path):
    root, toy, run = made
    registry, entry = shared
    found = weights.run("ours", tmp_path, registry)
    assert found.config == run.config and found.curves == run.curves
    assert (
        found.record["evaluation"] == run.record["evaluation"]
        and found.record["weights"] == "float16"
    )
    training.evaluate(found, toy, "cpu", ("rotation",))
    assert "rotation" in weights.run("ours", tmp_path, registry).record["evaluation"]["h"]
    assert "rotation" not in records.read(run.folder / "record.json")["evaluation"]["h"]
    assert weights.load("ours", tmp_path, registry).record["id"] == run.record["id"]


def test_weights_take_the_place_of_training_only_where_they_are_of_that_run(
    made, shared, tmp_path, capsys
):
    root, toy, run = made
    registry, _ = shared
    use = functools.partial(weights.pretrain, names="ours", root=tmp_path, registry=registry)
    assert use(run.config, toy).record["weights"] == "float16"
    assert capsys.readouterr().out == f"weights in place of training: {run.record['id']}\n"
    other = preset(
        "simclr-digits", data="toy", epochs=1, batch_size=32, recipe="supcontrast", temperature=0.2
    )
    why = "none of the weights ours is of this run: temperature is 0.5 there and 0.2"
    with pytest.raises(InputError, match=why) as told:
        use(other, toy)
    name, *words = shlex.split(str(told.value).partition("python -m lib pretrain ")[2])
    assert (
        preset(name, **parse([word for word in words if word != "--set"])) == other
    )  # the command makes it
    changed = data.build("toy", **{**_arrays(), "variant": "another"})
    with pytest.raises(InputError, match="trained on another version of toy"):
        use(run.config, changed)
    assert weights.pretrain(run.config, toy, None, runs=root / "runs").folder == run.folder
    untrained = preset("simclr-digits", data="toy", epochs=0, batch_size=32)
    assert "weights" not in use(untrained, toy, runs=tmp_path / "runs", device="cpu").record


def _arrays():
    from tests.conftest import arrays

    return arrays()


def test_what_is_wrong_is_one_line(made, shared, tmp_path):
    root, toy, run = made
    registry, entry = shared
    file = tmp_path / "ours" / weights.FILE

    def said(words, **changes):
        registry.write_text(yaml.safe_dump([entry | changes]))
        with pytest.raises(InputError, match=words) as caught:
            weights.load("ours", tmp_path, registry)
        assert "\n" not in str(caught.value)

    said("is not what is registered as ours: its SHA-256 is another one", sha256="0" * 64)
    said("is registered as the run other, its file holds simclr-digits-e1", record="other")
    said("can't read .*none", url="none")
    said(
        "registry.yml, entry 1: licence is missing or no text; the fields are name, url",
        licence=None,
    )
    said("registry.yml, entry 1: colour is unknown; the fields", colour="red")
    for entries, words in (
        ({"ours": entry}, "must be a list of weights, each with name, url"),
        ([entry, entry], "registry.yml, entry 2: there is another one named ours"),
    ):
        registry.write_text(yaml.safe_dump(entries))
        with pytest.raises(InputError, match=words):
            weights.load("ours", tmp_path, registry)
    with pytest.raises(InputError, match="unknown weights 'our'; did you mean 'ours'"):
        registry.write_text(yaml.safe_dump([entry]))
        weights.load("our", tmp_path, registry)
    with pytest.raises(InputError, match="unknown weights 'x'; known: a run's folder"):
        weights.load("x", tmp_path)  # the registry of the project
    content = file.read_bytes()
    flipped = content[:-100] + bytes([content[-100] ^ 1]) + content[-99:]
    for broken in (
        b"",
        content[:9],
        content[:-7],
        flipped,
        content.replace(b"digits-e1", b"digits-e2"),
    ):
        file.write_bytes(broken)
        with pytest.raises(
            InputError, match="is not a whole .safetensors file|its checksum is wrong"
        ):
            weights.load(tmp_path / "ours", tmp_path)

    def write(state, record):
        save_file(state, file, {"record": json.dumps(record | {"sha256": "0" * 64})})
        file.write_bytes(checkpoints.sealed(file.read_bytes()))

    record = records.read(run.folder / "record.json")
    write(Model("resnet18").state_dict(), record)
    with pytest.raises(InputError, match="of another architecture than its record says"):
        weights.load(tmp_path / "ours", tmp_path)
    for seen in ({}, {"size": 12, "image": 12, "mean": [0, 0], "std": [1, 1, 1]}, {"size": "x"}):
        state = {name: value.contiguous() for name, value in run.model.state_dict().items()}
        write(state, record | {"input": seen or {"image": 1}})
        with pytest.raises(InputError, match="does not say how it sees images"):
            weights.load(tmp_path / "ours", tmp_path)
    with pytest.raises(InputError, match="trained on another version of toy: restore"):
        weights.export(
            run, tmp_path / "no", data.build("toy", **{**_arrays(), "variant": "another"})
        )


def test_a_name_that_is_nearly_one_says_what_to_name(made, tmp_path):
    root, toy, run = made
    weights_of = run.folder / "model.safetensors"
    assert (
        weights.load(weights_of, root).record["id"] == run.record["id"]
    )  # a file of a run is that run
    with pytest.raises(
        InputError,
        match="is a run, and its data set says how it sees images: unknown data set 'toy'.*"
        "or export it where that is",
    ):
        weights.load(run.folder, tmp_path)
    half = tmp_path / "half" / checkpoints.NEWEST
    half.parent.mkdir()
    half.write_bytes(weights_of.read_bytes())
    with pytest.raises(InputError, match="is a file of a run: name the folder of the run, once"):
        weights.load(half, root)
    with pytest.raises(
        InputError, match="half holds neither a finished run nor exported weights; the run is not"
    ):
        weights.load(half.parent, root)
    torch.save(run.model.state_dict(), tmp_path / "theirs.pth")
    save_file(torchvision.models.resnet18().state_dict(), tmp_path / "theirs.safetensors")
    for name in ("theirs.pth", "theirs.safetensors"):
        with pytest.raises(
            InputError, match=f"{name} holds no record of a run: name the folder of a finished run"
        ):
            weights.pretrain(run.config, toy, str(tmp_path / name), tmp_path)


def test_an_export_replaces_nothing_but_itself(made, tmp_path):
    root, toy, run = made
    before = (run.folder / "model.safetensors").read_bytes()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "README.md").write_text("about my thesis")
    config = preset("simclr-digits", data="toy", epochs=0, batch_size=32)
    weights.export(
        training.pretrain(config, toy, tmp_path / "runs", "cpu"), tmp_path / "other", toy
    )
    for folder in (run.folder, tmp_path / "mine", tmp_path / "other"):
        with pytest.raises(
            InputError, match="is there already, and is no earlier export of this run: name another"
        ):
            weights.export(run, folder, toy)
    assert (run.folder / "model.safetensors").read_bytes() == before
    assert (tmp_path / "mine" / "README.md").read_text() == "about my thesis"


def test_checkpoints_of_one_file_name_are_told_apart(tmp_path):
    names = set()
    for seed in (0, 1, 1):
        torch.manual_seed(seed)
        torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "r18.pth")
        loaded = weights.load(tmp_path / "r18.pth")
        names.add(loaded.encoder)
    assert len(names) == 2 and all(name.startswith("r18.pth-") for name in names)
    assert "seen as in torchvision's evaluation, 224 x 224 pixels, mean (0.485" in loaded.about


def test_a_weight_too_large_for_half_precision_is_refused(made, tmp_path):
    root, toy, run = made
    broken = runs.load_run(run.folder)
    broken.model.head[0].weight.data[0, 0] = 1e5
    with pytest.raises(
        InputError, match="head.0.weight of .* is not finite in float16; export it in float32"
    ):
        weights.export(broken, tmp_path / "no", toy)
    assert not (tmp_path / "no").exists()


@pytest.fixture
def served(shared, tmp_path):
    """The exported folder on a web server of our own; what was asked for."""
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            super().do_GET()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Handler, directory=tmp_path)
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    registry, entry = shared
    url = f"http://127.0.0.1:{server.server_port}/ours/{weights.FILE}"
    registry.write_text(yaml.safe_dump([entry | {"url": url}]))
    yield asked, url
    server.shutdown()
    server.server_close()


def test_a_download_is_verified_and_kept(served, shared, tmp_path, monkeypatch):
    (asked, _), (registry, entry) = served, shared
    root = tmp_path / "data"
    found = weights.load("ours", root, registry)
    assert len(asked) == 1 and found.record["id"] == entry["record"]
    monkeypatch.setitem(sys.modules, "pooch", None)  # neither network nor pooch the second time
    weights.load("ours", root, registry)
    assert len(asked) == 1
    kept = root / "weights" / f"{entry['sha256'][:16]}.safetensors"
    kept.write_bytes(kept.read_bytes()[:-1] + b"x")
    with pytest.raises(
        InputError, match="is not what is registered as ours: its SHA-256 is another one; delete it"
    ):
        weights.load("ours", root, registry)


def test_a_download_of_another_hash_or_from_nowhere_is_refused_and_not_kept(
    served, shared, tmp_path
):
    (_, url), (registry, entry) = served, shared
    for change, words in (
        ({"sha256": "1" * 64, "url": url}, "hash"),
        ({"url": url + ".gone"}, "404"),
        ({"url": "http://127.0.0.1:9/x"}, "127.0.0.1"),
    ):
        registry.write_text(yaml.safe_dump([entry | change]))
        with pytest.raises(InputError, match=f"can't get the weights ours from .*{words}"):
            weights.load("ours", tmp_path / "data", registry)
        assert not list((tmp_path / "data").rglob("*.safetensors"))


def test_without_pooch_a_download_says_what_to_install(served, shared, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(
        InputError, match=r"needs the package pooch, which is not installed; run: .*\[weights\]"
    ):
        weights.load("ours", tmp_path / "data", shared[0])


def test_the_projects_registry_is_whole_and_its_files_are_small():
    entries = yaml.safe_load(weights.REGISTRY.read_text()) or []
    assert all(entry.keys() == set(weights.FIELDS) for entry in entries)
    files = list(weights.REGISTRY.parent.rglob("*.safetensors"))
    assert len(files) <= 3 and all(file.stat().st_size < 25e6 for file in files)
    for entry in entries:
        assert (records.RESULTS / f"{entry['record']}.json").is_file()
        if "://" not in entry["url"]:
            weights.load(entry["name"])
