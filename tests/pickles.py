"""Files as torch.save writes them, opcode by opcode, so that they can say what is not so."""

import struct
import zipfile
from pathlib import Path


def write(path: Path, code: bytes, stored: bytes = bytes(16)) -> None:
    """A file of the pickle code, and of one storage "0" of so many bytes."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("any/data.pkl", b"\x80\x02" + code + b".")
        archive.writestr("any/byteorder", "little")
        archive.writestr("any/data/0", stored)
        archive.writestr("any/version", "3\n")


def text(words: str) -> bytes:
    return b"X" + struct.pack("<I", len(words)) + words.encode()


def number(value: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", value)


def numbers(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def storage(count: int = 4, kind: str = "FloatStorage", key: str = "0") -> bytes:
    """A storage that claims count numbers of a kind."""
    name = f"ctorch\n{kind}\n".encode()
    return b"(" + text("storage") + name + text(key) + text("cpu") + number(count) + b"tQ"


def tensor(
    size: tuple[int, ...] = (4,),
    stride: tuple[int, ...] = (1,),
    offset: int = 0,
    held: bytes | None = None,
) -> bytes:
    """A tensor. held: its storage; None: the one that is there."""
    place = number(offset) + numbers(size) + numbers(stride)
    hooks = b"ccollections\nOrderedDict\n)R"
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + (held or storage())
        + place
        + b"\x89"
        + hooks
        + b"tR"
    )


def named(tensors: dict[str, bytes]) -> bytes:
    """A dict of them."""
    items = [text(name) + value for name, value in tensors.items()]
    return b"}(" + b"".join(items) + b"u"


def set_item(target: bytes) -> bytes:
    """SETITEM on what is no dict."""
    return target + number(10**9) + number(1) + b"s"


def set_items(target: bytes) -> bytes:
    """SETITEMS on what is no dict."""
    return target + b"(" + number(10**9) + number(1) + b"u"
