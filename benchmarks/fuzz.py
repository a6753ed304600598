"""Every reader of files from outside, and files that are nearly right to feed it: for
``benchmarks.faults``."""

import argparse
import io
import json
import random
import string
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import numpy as np
import safetensors.torch
import torch
import yaml
from PIL import Image

from lib import (
    ROOT,
    InputError,
    book,
    checkpoints,
    claims,
    data,
    downloads,
    estimator,
    foreign,
    images,
    records,
    weights,
)
from lib.config import preset

TINY = preset("simclr-digits", encoder="pixels", head="none", epochs=0)
NASTY = (
    None,
    True,
    -1,
    0,
    1,
    2**31,
    2**63,
    10**400,
    1e308,
    -0.5,
    "",
    "x",
    "\0",
    "../x",
    "9" * 5000,
    [],
    {},
    [[]],
    {"": 0},
)
BYTES = (
    b"",
    b"\0",
    b"\xff",
    b"NaN",
    b"Infinity",
    b"1e999",
    b"-",
    b"{",
    b"[" * 3000,
    b'"',
    b"9" * 5000,
    b"\x80\0",
    b"&a [*a]",
    b"!!python/name:os.system",
    b": ",
    b"\n",
    b"- ",
    b"<<: ",
)
DTYPES = ("|u1", "<i8", "|O", "<U9", "<f8", "<U99999999", "V9", ">i2", "|b1", "x")


def whole_npz() -> bytes:
    """A small data set."""
    draw, buffer = np.random.default_rng(0), io.BytesIO()
    y = np.arange(20) % 2
    np.savez(
        buffer,
        x_train=draw.integers(0, 256, (20, 8, 8, 3), np.uint8),
        y_train=y,
        y_test=y[:8],
        x_test=draw.integers(0, 256, (8, 8, 8, 3), np.uint8),
        classes=["a", "b"],
        variant="made up",
    )
    return buffer.getvalue()


def whole_record() -> bytes:
    """A published record with the fewest probes, its label sweep and curves cut short."""
    record = min(
        (json.loads(path.read_bytes()) for path in records.RESULTS.glob("*.json")),
        key=lambda r: len(str(r)),
    )
    kept = {
        "curves": record["curves"][:2],
        "label_sweep": record.get("label_sweep", [])[:2],
        "segments": [],
    }
    for probes in record["evaluation"].values():
        for result in probes.values():
            result |= {"n": 16, "correct": 9, "bits": records.pack_bits([True] * 9 + [False] * 7)}
    return json.dumps(record | kept).encode()


def whole_checkpoint(folder: Path) -> bytes:
    """A model of a few weights."""
    model, path = torch.nn.Linear(3, 2), folder / "whole.safetensors"
    checkpoints.save(
        path, TINY, checkpoints.Progress("run", "0" * 64, curves=[{"loss": 1.0}]), model
    )
    return path.read_bytes()


def whole_image() -> bytes:
    """A photograph of noise."""
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)).save(
        buffer, "JPEG"
    )
    return buffer.getvalue()


def whole_features() -> bytes:
    """Of five pictures, one of them of no class."""
    buffer = io.BytesIO()
    np.savez(
        buffer,
        h=np.eye(5, dtype=np.float32),
        z=np.eye(5, dtype=np.float32),
        files=list("abcde"),
        labels=np.array([0, 1, 0, 1, -1]),
        classes=["x", "y"],
    )
    return buffer.getvalue()


def whole_pickle() -> bytes:
    """What torch.save writes of a small network's weights beside a namespace."""
    buffer = io.BytesIO()
    torch.save(
        {"opt": argparse.Namespace(dataset="cifar10"), "model": torch.nn.Linear(3, 2).state_dict()},
        buffer,
    )
    return buffer.getvalue()


def whole_export() -> bytes:
    """Exported weights of an encoder without any, their record inside."""
    record = json.loads(whole_record())
    record |= {
        "config": record["config"]
        | {"encoder": "pixels", "head": "none", "epochs": 0, "method": "simclr"},
        "input": {"image": 32, "size": 32, "mean": [0.5] * 3, "std": [0.5] * 3},
    }
    return safetensors.torch.save({}, {"record": json.dumps(record)})


def read_registry(path: Path) -> object:
    """As chapters do, with a name that stands there."""
    return weights._entry("mine", path)


def read_profile(path: Path) -> object:
    """As the book does, from a folder of profiles."""
    with patch.object(book, "PROFILES", path.parent):
        return book.load_profile(path.stem)


def read_benchmark(path: Path) -> object:
    """As the chapters do."""
    with patch.object(records, "BENCHMARKS", path.parent):
        return records.benchmark(path.stem)


def read_record(path: Path) -> object:
    """With all that is made of one."""
    record = records.read(path)
    return records.table([record]), records.label_table([record])


def readers(folder: Path) -> dict[str, tuple[str, bytes, Callable[[Path], object]]]:
    """By what is read: the file's name, a whole file, and its reader."""
    benchmark = json.loads((records.BENCHMARKS / "loss-cpu.json").read_bytes())
    return {
        "npz": (
            "fuzz.npz",
            whole_npz(),
            lambda path: data.load(path.stem, path.parent).fingerprint,
        ),
        "record": ("record.json", whole_record(), read_record),
        "benchmark": (
            "fuzz-cpu.json",
            json.dumps(benchmark | {"rows": benchmark["rows"][:2]}).encode(),
            read_benchmark,
        ),
        "checkpoint": (
            "fuzz.safetensors",
            whole_checkpoint(folder),
            lambda path: checkpoints.restore(path, TINY, "run", torch.nn.Linear(3, 2)),
        ),
        "profile": ("fuzz.yml", (ROOT / "book/profiles/quick.yml").read_bytes(), read_profile),
        "claims": ("claims.yml", yaml.safe_dump(claims.read()[:2]).encode(), claims.read),
        "image": ("fuzz.jpg", whole_image(), downloads._shrink),
        "picture": (
            "fuzz.jpeg",
            whole_image(),
            lambda path: next(
                images.decoded([images.Item("fuzz", "train", 0, path)], 16, [], "fuzz"), None
            ),
        ),
        "features": (
            "features.npz",
            whole_features(),
            lambda path: estimator.predict(estimator.read(path), estimator.read(path)),
        ),
        "foreign": ("fuzz.pth", whole_pickle(), foreign.read),
        "weights": (
            "fuzz-weights.safetensors",
            whole_export(),
            lambda path: weights.load(path, folder),
        ),
        "registry": (
            "registry.yml",
            yaml.safe_dump([dict.fromkeys(weights.FIELDS, "mine")]).encode(),
            read_registry,
        ),
    }


def bent(name: str, content: bytes, draw: random.Random) -> bytes:
    """A file that is nearly right: bytes changed, cut, repeated or put in; or its tree or headers
    changed and whole."""
    kind = name.rpartition(".")[2]
    if draw.random() < 0.5:
        if kind == "json":
            return json.dumps(_bent_tree(json.loads(content), draw)).encode()
        if kind == "yml":
            return yaml.safe_dump(_bent_tree(yaml.safe_load(content), draw)).encode()
        if kind == "npz":
            return _bent_npz(content, draw)
        if kind == "safetensors":
            return _resealed(_bent_header(content, draw))
    for _ in range(draw.choice((1, 1, 2, 5))):
        a, b = sorted((draw.randrange(len(content) + 1), draw.randrange(len(content) + 1)))
        b = min(b, a + draw.choice((0, 1, 8, len(content))))
        content = draw.choice(
            (
                content[:a] + draw.choice(BYTES) + content[b:],
                content[:a] + content[b:],
                content[:a],
                content[:b] + content[a:],
                content[:a] + bytes([draw.randrange(256)]) + content[a + 1 :],
            )
        )
    return content


def _bent_tree(tree, draw: random.Random):
    """One value somewhere in it, or one key, is another; or a field is gone."""
    if not isinstance(tree, (dict, list)) or not tree or draw.random() < 0.1:
        return (
            draw.choice(NASTY)
            if draw.random() < 0.8
            else "".join(draw.choices(string.printable, k=9))
        )
    place = draw.choice(list(tree) if isinstance(tree, dict) else range(len(tree)))
    if draw.random() < 0.1:
        del tree[place]
    elif isinstance(tree, dict) and draw.random() < 0.1:
        tree[draw.choice(("", "x", "ids", "0"))] = tree.pop(place)
    else:
        tree[place] = _bent_tree(tree[place], draw)
    return tree


def _bent_npz(content: bytes, draw: random.Random) -> bytes:
    """One array's header claims another shape or type, in a whole archive."""
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(content)) as old,
        zipfile.ZipFile(buffer, "w", draw.choice((0, 8, 12, 14))) as new,
    ):
        chosen = draw.choice(old.namelist())
        for name in old.namelist():
            array = old.read(name)
            if name == chosen:
                (length,) = struct.unpack("<H", array[8:10])
                shape = tuple(
                    draw.choice((0, 1, 3, 8, 20, -1, 2**40, 10**30))
                    for _ in range(draw.randrange(5))
                )
                header = str(
                    {
                        "descr": draw.choice(DTYPES),
                        "fortran_order": draw.random() < 0.5,
                        "shape": shape,
                    }
                )
                header = draw.choice((header, "(" * 3000, header * 200, "")).encode()[:60_000]
                array = array[:8] + struct.pack("<H", len(header)) + header + array[10 + length :]
            new.writestr(name if draw.random() < 0.98 else name[:-4], array)
    return buffer.getvalue()


def _bent_header(content: bytes, draw: random.Random) -> bytes:
    """A safetensors file whose header, or the JSON in its metadata, says something else."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    inside = draw.choice([*header["__metadata__"].keys() & {"config", "progress", "record"}, None])
    if inside:
        bent = _bent_tree(json.loads(header["__metadata__"][inside]), draw)
        header["__metadata__"][inside] = json.dumps(bent) if draw.random() < 0.9 else "[" * 3000
    else:
        header = _bent_tree(header, draw)
    text = json.dumps(header, separators=(",", ":")).encode()
    claimed = draw.choice((len(text), len(text), len(text), 2**63, 2**40, 0))
    return claimed.to_bytes(8, "little") + text + content[8 + length :]


def _resealed(content: bytes) -> bytes:
    """With a checksum that is right, as someone would who means harm."""
    return checkpoints.sealed(content) if checkpoints.SEAL.search(content) else content


def try_one(folder: Path, name: str, content: bytes, read: Callable[[Path], object]) -> str | None:
    """What is wrong with how a reader takes a file; None where it says an InputError or returns."""
    path = folder / name
    path.write_bytes(content)
    try:
        read(path)
    except InputError as error:
        return None if str(error) else "an InputError that says nothing"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None
