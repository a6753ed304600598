"""Fuzz: every reader of files from outside, fed files that are nearly right. Counts only.

A file must be refused in a sentence or read, with one gigabyte of memory and in ten seconds.
"""

import argparse
import functools
import hashlib
import io
import json
import random
import resource
import signal
import string
import struct
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
import yaml
from PIL import Image

from lib import ROOT, InputError, weights
from lib.compute.bits import pack_bits
from lib.data import decoding, downloads, load
from lib.evidence import claims, tables
from lib.presets import preset
from lib.runs import checkpoints, records
from lib.settings import load_profile
from lib.weights import estimator, foreign
from stress.cases import count_and_keep, ended, forked, show

TINY = preset("simclr-digits", encoder="pixels", head="none", epochs=0)
GIGABYTE = 2**30
SECONDS = 10  # for a case
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
LENGTHS = (0, 1, 3, 8, 20, -1, 2**40, 10**30)
COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)


@dataclass(frozen=True)
class Reader:
    """Something that reads files from outside."""

    file: str  # name of the files that it is fed
    whole: bytes  # one that nothing is wrong with
    read: Callable[[Path], object]


def readers(folder: Path) -> dict[str, Reader]:
    """All of them, by what they read. folder: for what some of them need beside the file."""
    return {
        "npz": Reader("fuzz.npz", whole_npz(), read_npz),
        "record": Reader("record.json", whole_record(), read_record),
        "benchmark": Reader("fuzz-cpu.json", whole_benchmark(), read_benchmark),
        "checkpoint": Reader("fuzz.safetensors", whole_checkpoint(folder), read_checkpoint),
        "profile": Reader("fuzz.yml", whole_profile(), read_profile),
        "claims": Reader("claims.yml", whole_claims(), claims.read),
        "image": Reader("fuzz.jpg", whole_image(), downloads.shrink),
        "picture": Reader("fuzz.jpeg", whole_image(), read_picture),
        "features": Reader("features.npz", whole_features(), read_features),
        "foreign": Reader("fuzz.pth", whole_pickle(), foreign.read),
        "weights": Reader(
            "fuzz-weights.safetensors", whole_export(), lambda path: weights.load(path, folder)
        ),
        "registry": Reader(
            "registry.yml",
            whole_registry(folder),
            lambda path: weights.run("mine", folder, path),
        ),
    }


def whole_npz() -> bytes:
    """A small data set."""
    draw = np.random.default_rng(0)
    y = np.arange(20) % 2

    buffer = io.BytesIO()
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


def read_npz(path: Path) -> object:
    return load(path.stem, path.parent).fingerprint


@functools.cache
def whole_record() -> bytes:
    """A published record with the fewest probes, its label sweep and curves cut short."""
    published = [json.loads(path.read_bytes()) for path in records.RESULTS.glob("*.json")]
    record = min(published, key=lambda record: len(str(record)))
    bits = pack_bits([True] * 9 + [False] * 7)
    for probes in record["evaluation"].values():
        for result in probes.values():
            result |= {"n": 16, "correct": 9, "bits": bits}

    record["curves"] = record["curves"][:2]
    record["label_sweep"] = record.get("label_sweep", [])[:2]
    record["segments"] = []
    return json.dumps(record).encode()


def read_record(path: Path) -> object:
    """With all that is made of one."""
    record = records.read(path)
    return tables.table([record]), tables.label_table([record])


def whole_benchmark() -> bytes:
    """A published one, cut short."""
    record = json.loads((records.BENCHMARKS / "loss-cpu.json").read_bytes())
    return json.dumps(record | {"rows": record["rows"][:2]}).encode()


def read_benchmark(path: Path) -> object:
    return records.benchmark(path.stem, path.parent)


def whole_checkpoint(folder: Path) -> bytes:
    """A model of a few weights."""
    path = folder / "whole.safetensors"
    progress = checkpoints.RunProgress(run="run", fingerprint="0" * 64, curves=[{"loss": 1.0}])
    checkpoints.save(path, TINY, progress, torch.nn.Linear(3, 2))
    return path.read_bytes()


def read_checkpoint(path: Path) -> object:
    return checkpoints.restore(path, TINY, "run", torch.nn.Linear(3, 2))


def whole_profile() -> bytes:
    return (ROOT / "book" / "profiles" / "quick.yml").read_bytes()


def read_profile(path: Path) -> object:
    """As the book does, from a folder of profiles."""
    return load_profile(path.stem, path.parent)


def whole_claims() -> bytes:
    """The first of the book's."""
    entries = yaml.safe_load(claims.CLAIMS.read_bytes())
    return yaml.safe_dump(entries[:2]).encode()


def whole_image() -> bytes:
    """A photograph of noise."""
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def read_picture(path: Path) -> object:
    """As an import does."""
    item = decoding.Item("fuzz", "train", 0, path)
    return list(decoding.decoded([item], 16, decoding.Account(), "fuzz"))


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
        encoder="any",
        digests=np.arange(160, dtype=np.uint8).reshape(5, 32),
    )
    return buffer.getvalue()


def read_features(path: Path) -> object:
    """With a probe fitted on them, which classifies them."""
    return list(estimator.predict(estimator.read(path), estimator.read(path)))


def whole_pickle() -> bytes:
    """What torch.save writes of a small network's weights beside a namespace.

    It can be unpickled, and is then refused: a ResNet would be too large.
    """
    weights = torch.nn.Linear(3, 2).state_dict()
    buffer = io.BytesIO()
    torch.save({"opt": argparse.Namespace(dataset="cifar10"), "model": weights}, buffer)
    return buffer.getvalue()


def whole_export() -> bytes:
    """Exported weights of an encoder without any, sealed, their record inside."""
    record = json.loads(whole_record())
    record["config"] |= {"encoder": "pixels", "head": "none", "epochs": 0, "method": "simclr"}
    record["input"] = {"image": 32, "size": 32, "mean": [0.5] * 3, "std": [0.5] * 3}
    record["sha256"] = checkpoints.UNSEALED
    return checkpoints.sealed(safetensors.torch.save({}, {"record": json.dumps(record)}))


def whole_registry(folder: Path) -> bytes:
    """Of one entry, whose file is put into folder."""
    content = whole_export()
    path = folder / "registered.safetensors"
    path.write_bytes(content)
    entry = {
        "name": "mine",
        "url": str(path.resolve()),
        "sha256": hashlib.sha256(content).hexdigest(),
        "record": json.loads(whole_record())["id"],
        "licence": "none stated",
    }
    return yaml.safe_dump([entry]).encode()


def rows_of(wanted: int, folder: Path, seed: int) -> list[dict]:
    """Every reader on its share of the cases; printed, with what went wrong.

    A file that was taken wrongly stays in folder.
    """
    beside = folder / "beside"
    beside.mkdir()
    every = readers(beside)
    cases = -(-wanted // len(every))
    rows = []
    for name, reader in every.items():
        answers, status = feed(name, reader, cases, folder, seed)
        wrong = [answer for answer in answers if answer]
        row = {
            "fault": "fuzz",
            "what": name,
            "cases": len(answers),
            "wrong": len(wrong) + int(status != 0),
        }
        rows.append(show(row))

        for answer, times in Counter(wrong).most_common(9):
            print(f"    {times} x {answer[:200]}")
    return rows


def feed(
    name: str, reader: Reader, cases: int, folder: Path, seed: int
) -> tuple[list[str | None], int]:
    """What ``try_one`` says of so many cases, and how the process ended that tried them.

    It has a gigabyte more memory than it takes, and dies where one takes too long.
    """
    answers = folder / f"{name}.txt"

    def work() -> None:
        draw = random.Random(f"{seed} {name}")
        place = folder / name
        place.mkdir()
        pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0])
        limit = pages * resource.getpagesize() + GIGABYTE
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # a hang ends the process
        warnings.simplefilter("ignore")

        assert try_one(place, reader, reader.whole) is None
        with open(answers, "w", encoding="utf-8") as file:
            for _ in range(cases):
                content = bent(reader, draw)
                signal.alarm(SECONDS)
                wrong = try_one(place, reader, content)
                signal.alarm(0)
                print(json.dumps(wrong), file=file, flush=True)
                if wrong:
                    (folder / f"{name}-wrong-{reader.file}").write_bytes(content)

    status = ended(forked(work))
    if not answers.is_file():
        return [], status
    return [json.loads(line) for line in answers.read_text(encoding="utf-8").splitlines()], status


def try_one(folder: Path, reader: Reader, content: bytes) -> str | None:
    """What is wrong with how a reader takes a file; None where it says an InputError or returns."""
    path = folder / reader.file
    path.write_bytes(content)

    try:
        reader.read(path)
    except InputError as error:
        return None if str(error) else "an InputError that says nothing"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def bent(reader: Reader, draw: random.Random) -> bytes:
    """A file that is nearly right.

    Bytes changed, cut, repeated or put in; or its tree or headers changed, and otherwise whole.
    """
    if draw.random() < 0.5:
        match Path(reader.file).suffix:
            case ".json":
                return json.dumps(bent_tree(json.loads(reader.whole), draw)).encode()
            case ".yml":
                return yaml.safe_dump(bent_tree(yaml.safe_load(reader.whole), draw)).encode()
            case ".npz":
                return bent_npz(reader.whole, draw)
            case ".safetensors":
                return resealed(bent_header(reader.whole, draw))

    return bent_bytes(reader.whole, draw)


def bent_bytes(content: bytes, draw: random.Random) -> bytes:
    """In one place or several, bytes are others, are gone, end the file, or are there twice."""
    for _ in range(draw.choice((1, 1, 2, 5))):
        a, b = sorted((draw.randrange(len(content) + 1), draw.randrange(len(content) + 1)))
        b = min(b, a + draw.choice((0, 1, 8, len(content))))

        ways = (
            content[:a] + draw.choice(BYTES) + content[b:],
            content[:a] + content[b:],
            content[:a],
            content[:b] + content[a:],
            content[:a] + bytes([draw.randrange(256)]) + content[a + 1 :],
        )
        content = draw.choice(ways)
    return content


def bent_tree(tree: Any, draw: random.Random) -> Any:
    """One value somewhere in it, or one key, is another; or a field is gone."""
    if not isinstance(tree, dict | list) or not tree or draw.random() < 0.1:
        if draw.random() < 0.8:
            return draw.choice(NASTY)
        return "".join(draw.choices(string.printable, k=9))

    places = list(tree) if isinstance(tree, dict) else range(len(tree))
    place = draw.choice(places)
    if draw.random() < 0.1:
        del tree[place]
    elif isinstance(tree, dict) and draw.random() < 0.1:
        tree[draw.choice(("", "x", "ids", "0"))] = tree.pop(place)
    else:
        tree[place] = bent_tree(tree[place], draw)
    return tree


def bent_npz(content: bytes, draw: random.Random) -> bytes:
    """One array's header claims another shape or type, in a whole archive."""
    buffer = io.BytesIO()
    compression = draw.choice(COMPRESSIONS)
    with (
        zipfile.ZipFile(io.BytesIO(content)) as old,
        zipfile.ZipFile(buffer, "w", compression) as new,
    ):
        chosen = draw.choice(old.namelist())

        for name in old.namelist():
            array = old.read(name)
            if name == chosen:
                array = with_header(array, bent_array_header(draw))
            if draw.random() >= 0.98:
                name = name.removesuffix(".npy")
            new.writestr(name, array)
    return buffer.getvalue()


def bent_array_header(draw: random.Random) -> bytes:
    """What an .npy file may say of its array."""
    shape = tuple(draw.choice(LENGTHS) for _ in range(draw.randrange(5)))
    header_values = {
        "descr": draw.choice(DTYPES),
        "fortran_order": draw.random() < 0.5,
        "shape": shape,
    }
    header = draw.choice((str(header_values), "(" * 3000, str(header_values) * 200, ""))
    return header.encode()[:60_000]


def with_header(array: bytes, header: bytes) -> bytes:
    """An .npy file of version 1 with another header."""
    (length,) = struct.unpack("<H", array[8:10])
    return array[:8] + struct.pack("<H", len(header)) + header + array[10 + length :]


def bent_header(content: bytes, draw: random.Random) -> bytes:
    """A safetensors file whose header, or the JSON in its metadata, says something else."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    metadata = header["__metadata__"]
    inside = draw.choice([*sorted(metadata.keys() & {"config", "progress", "record"}), None])
    if inside is None:
        header = bent_tree(header, draw)
    elif draw.random() < 0.9:
        metadata[inside] = json.dumps(bent_tree(json.loads(metadata[inside]), draw))
    else:
        metadata[inside] = "[" * 3000

    text = json.dumps(header, separators=(",", ":")).encode()
    claimed = draw.choice((len(text), len(text), len(text), 2**63, 2**40, 0))
    return claimed.to_bytes(8, "little") + text + content[8 + length :]


def resealed(content: bytes) -> bytes:
    """With a checksum that is right, as someone would who means harm."""
    if checkpoints.SEAL.search(content):
        return checkpoints.sealed(content)
    return content


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``python -m stress fuzz``."""
    parser.add_argument("--cases", type=int, default=105_000, help="over all readers")


def run(args: argparse.Namespace) -> None:
    """Feed, count, print, keep the record."""
    count_and_keep("fuzz", lambda folder: rows_of(args.cases, folder, args.seed), args)
