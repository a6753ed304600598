"""Pictures from files: a folder made a data set, beside torchvision's ImageFolder in a DataLoader.

The folder holds the images of a data set enlarged to several sizes, as JPEG (RGB, grey, CMYK) and
PNG (RGB, RGBA, palette), and one in a hundred is broken. Both ways decode, bring the shorter side
to 96 pixels and cut out the centre; "ImageFolder" has two workers, passes over what it can't open,
and keeps what it made in memory. The memory is what an import adds to its process; that of workers
is not counted, so that there is none of the peer's.
"""

import argparse
import io
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms as T
from torchvision.datasets import ImageFolder

from benchmarks import measure
from lib.data import load, pictures
from lib.data.dataset import Dataset

PEERS = ("torchvision", "pillow")
SIZE, WORKERS, BATCH = 96, 2, 256
SIDES = (32, 64, 96, 160, 320, 500)
FORMS = (
    ("jpg", "RGB"),
    ("jpg", "RGB"),
    ("jpg", "RGB"),
    ("jpg", "L"),
    ("jpg", "CMYK"),
    ("png", "RGB"),
    ("png", "RGBA"),
    ("png", "P"),
)
FORMATS = {"jpg": "JPEG", "png": "PNG"}


def write(root: Path, dataset: Dataset, n: int) -> None:
    """n files of mixed sizes, modes and formats, a folder for each class.

    The file's number decides.
    """
    pixels = dataset.train.images.permute(0, 2, 3, 1).numpy()
    labels = dataset.train.labels.tolist()
    for number in range(n):
        place = number % len(labels)
        side = SIDES[number % len(SIDES)]
        ending, mode = FORMS[number // 6 % len(FORMS)]
        image = Image.fromarray(pixels[place]).resize((side, side + number % 7)).convert(mode)
        buffer = io.BytesIO()
        image.save(buffer, FORMATS[ending])

        content = buffer.getvalue()
        if number % 100 == 50:
            content = content[: len(content) // 2]
        path = root / dataset.classes[labels[place]] / f"{number:06}.{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def by_us(root: Path, out: Path) -> Callable[[], int]:
    """The import, to a file; returns how many images were whole."""

    def case() -> int:
        out.unlink(missing_ok=True)  # else what is there would be compared
        counts, _ = pictures.make(root, SIZE, out)
        return sum(counts.values())

    return case


def opened(path: str) -> Image.Image | None:
    """What ImageFolder is given to open a file by."""
    try:
        return Image.open(path).convert("RGB")
    except OSError:
        return None


def whole(batch: list) -> list[np.ndarray]:
    """What the DataLoader is given to make a batch by."""
    return [np.asarray(image) for image, _ in batch if image is not None]


class OrNone(T.Compose):
    """torchvision's transforms of an image, where there is one."""

    def __call__(self, image: Image.Image | None) -> Image.Image | None:
        if image is None:
            return None
        return super().__call__(image)


def of_torchvision(root: Path) -> ImageFolder:
    """The folder as torchvision's data set."""
    steps = [T.Resize(SIZE, T.InterpolationMode.LANCZOS), T.CenterCrop(SIZE)]
    return ImageFolder(root, OrNone(steps), loader=opened)


def by_image_folder(root: Path) -> Callable[[], int]:
    """An epoch of a DataLoader; returns how many images were whole."""
    loader = DataLoader(of_torchvision(root), BATCH, num_workers=WORKERS, collate_fn=whole)

    def case() -> int:
        images = []
        for batch in loader:
            images += batch
        return len(np.stack(images))

    return case


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``python -m benchmarks pictures``."""
    parser.add_argument(
        "--data", default="digits", help="whose images are written as files (default digits)"
    )
    parser.add_argument("--files", type=measure.count, default=10_000)
    parser.add_argument("--memory-of", type=Path, metavar="FOLDER", help=argparse.SUPPRESS)


def run(args: argparse.Namespace, memory: Callable[..., int] = measure.in_own_process) -> None:
    """Measure, print, keep the record. memory: of an import, by the command that measures it."""
    device = torch.device("cpu")
    with TemporaryDirectory() as work:
        folder = Path(work)
        if args.memory_of:
            case = by_us(args.memory_of, folder / "made.npz")
            print(measure.extra_memory(case, device))
            return

        dataset = load(args.data)
        rows = []
        for files in (args.files // 4, args.files):
            root = folder / str(files)
            write(root, dataset, files)
            rows += rows_of(root, files, folder / "made.npz", args.repetitions, memory)
    settings = {
        "data": args.data,
        "size": SIZE,
        "workers": WORKERS,
        "repetitions": args.repetitions,
    }
    print(measure.keep("pictures", device, rows, PEERS, settings, args.results))


def rows_of(
    root: Path, files: int, out: Path, repetitions: int, memory: Callable[..., int]
) -> list[dict]:
    """Rates, ratios and memory of both ways through a folder; printed."""
    cases = {"ours": by_us(root, out), "ImageFolder": by_image_folder(root)}
    with measure.quiet():
        images = {name: case() for name, case in cases.items()}
        seconds = measure.interleaved(cases, repetitions)

    rows = []
    for library, taken in seconds.items():
        row = {
            "case": f"{files:,} files",
            "library": library,
            "whole": images[library],
            "images_per_second": measure.spread([files / second for second in taken]),
            "times_ours": measure.ratios(taken, seconds["ours"]),
        }
        if library == "ours":
            row["extra_bytes"] = memory("pictures", "--memory-of", str(root))
        rows.append(row)
        print(
            f"{row['case']:14} {library:12} {row['images_per_second']['median']:6,.0f} images/s  "
            f"of ours {row['times_ours']['median']:.2f}  "
            f"{row.get('extra_bytes', 0) / 1e6:,.0f} MB  {row['whole']:,} whole",
            flush=True,
        )
    return rows
