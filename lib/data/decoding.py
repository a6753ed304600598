"""Pictures decoded in parallel to arrays of one size."""

import hashlib
import io
import os
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import center_crop, resize

from lib import counted, in_a_line
from lib.hardware import read_ahead
from lib.interruptions import Interruptions
from lib.progress import bar as progress_bar

PIXELS, ELONGATED = 2**26, 16  # of an image at most, and its longer side over the shorter one
CHUNK = 256  # images decoded at a time; two of them are all that is in memory


@dataclass(frozen=True)
class Item:
    """An image to be read."""

    name: str
    split: str
    label: int  # -1: none
    source: Path | np.ndarray | Callable[[], bytes | Path]  # a file, pixels, or how to get them


@dataclass
class Account:
    """What there is to tell of images that were read, beside their pixels."""

    broken: list[tuple[Item, str]] = field(default_factory=list)  # each with why it is
    several_pages: list[str] = field(default_factory=list)  # names of those that have them

    @property
    def skipped(self) -> list[str]:
        """A line for each broken one, "NAME: why"."""
        return [f"{item.name}: {why}" for item, why in self.broken]

    @property
    def notes(self) -> list[str]:
        """A line where of some only a part was read."""
        count = len(self.several_pages)
        if not count:
            return []
        names = self.several_pages[0]
        if count > 1:
            names += f" and {count - 1} more"
        return [f"of {counted(count, 'file')} with several pages the first alone is read: {names}"]


@dataclass(frozen=True)
class _Read:
    """What became of an image."""

    pixels: np.ndarray | None  # (size, size, 3) uint8; None: there are none
    why: str = ""  # there are none
    has_several_pages: bool = False


def decoded(
    items: list[Item], size: int, account: Account, title: str
) -> Iterator[tuple[np.ndarray, list[Item]]]:
    """Pixels (B, size, size, 3) uint8 and the items they are of, in order.

    account: gets what there is to tell of them.
    title: of the progress bar.
    """
    if not items:
        return
    chunks = [items[start : start + CHUNK] for start in range(0, len(items), CHUNK)]
    with (
        Interruptions() as stop,
        ThreadPoolExecutor(os.cpu_count()) as pool,
        progress_bar(total=len(items), desc=title, unit="image") as bar,
    ):

        def outcome_of(item: Item) -> _Read:
            if stop.caught:  # below this is looked at before the outcomes are
                return _Read(None, "not read any more")
            return _read(item, size)

        def outcomes_of(chunk: list[Item]) -> list[_Read]:
            outcomes = []
            for outcome in pool.map(outcome_of, chunk):
                outcomes.append(outcome)
                bar.update()
            return outcomes

        # the next chunk is read while the caller is busy
        for chunk, outcomes in zip(chunks, read_ahead(outcomes_of, chunks)):
            if stop.caught:
                # leave the pool first: what the signal raises could hang amid the pool's locks
                raise KeyboardInterrupt
            pixels, whole = [], []
            for item, outcome in zip(chunk, outcomes):
                if outcome.pixels is None:
                    account.broken.append((item, outcome.why))
                    continue
                pixels.append(outcome.pixels)
                whole.append(item)
                if outcome.has_several_pages:
                    account.several_pages.append(item.name)
            if whole:
                yield np.stack(pixels), whole


def digests_of(pixels: np.ndarray) -> list[bytes]:
    """A SHA-256 of each image's pixels (B, size, size, 3): equal for copies alone."""
    return [hashlib.sha256(image.data).digest() for image in pixels]


def _read(item: Item, size: int) -> _Read:
    """An item's image, or why there is none."""
    try:
        source = item.source() if callable(item.source) else item.source
        image = _opened(source)
        # animations are left to their first frame, and cameras' MPO to its one photograph
        has_several_pages = image.format == "TIFF" and getattr(image, "is_animated", False)
        return _Read(_pixels(image, size), has_several_pages=has_several_pages)
    except Exception as error:  # Pillow's plugins let through whatever they meet
        why = str(error).replace(f" {str(item.source)!r}", "")  # the line names it, shorter
        return _Read(None, in_a_line(why, 100) or type(error).__name__)


def decode(source: Path | bytes | np.ndarray, size: int) -> np.ndarray:
    """An image as (size, size, 3) uint8.

    Turned as its EXIF says, on white where transparent, 16 bits scaled to 8. Raises what Pillow
    does, or ValueError, where it is broken, too large, too elongated or of floating-point pixels.
    """
    return _pixels(_opened(source), size)


def _opened(source: Path | bytes | np.ndarray) -> Image.Image:
    """An image of which nothing is decoded yet."""
    if isinstance(source, Path) and not source.stat().st_size:
        raise ValueError("0 bytes")
    if isinstance(source, np.ndarray):
        return Image.fromarray(source)
    if isinstance(source, bytes):
        return Image.open(io.BytesIO(source))
    return Image.open(source)


def _pixels(image: Image.Image, size: int) -> np.ndarray:
    """What ``decode`` says of an image that is open."""
    refuse_outsize(image)
    image.draft(None, (2 * size, 2 * size))  # a JPEG may be decoded smaller: many times faster
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode == "F":
        raise ValueError("floating-point pixels have no agreed range")
    if image.mode.startswith("I"):
        image = _of_eight_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return square(image, size)


def _of_eight_bits(image: Image.Image) -> Image.Image:
    """A grey image of 16 bits, with the level that it declares transparent."""
    levels = np.asarray(image).clip(0, 65535)
    if 0 < levels.max() < 2**12:
        warnings.warn(
            "images of 16 bits that use the lowest 12 of them at most come out nearly black: scale "
            "them to the whole range before",
            stacklevel=3,
        )
    scaled = Image.fromarray((levels / 257).round().astype(np.uint8))
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        opaque = np.where(levels == transparent, 0, 255)
        scaled.putalpha(Image.fromarray(opaque.astype(np.uint8)))
    return scaled


def refuse_outsize(image: Image.Image) -> None:
    """Raise ValueError for an image that is no photograph of a data set; nothing is decoded yet."""
    too_large = image.width * image.height > PIXELS
    too_elongated = max(image.size) > ELONGATED * min(image.size)
    if too_large or too_elongated:
        raise ValueError(
            f"{image.width} x {image.height} pixels are refused: at most {PIXELS:,} of them, no "
            f"side over {ELONGATED} times the other"
        )


def square(image: Image.Image, size: int) -> np.ndarray:
    """The shorter side to size by Lanczos, and the centre cut out: (size, size, 3) uint8."""
    shorter = resize(image.convert("RGB"), size, InterpolationMode.LANCZOS)
    return np.asarray(center_crop(shorter, size))
