"""What in a data set may surprise, in lines for people: nothing of it is an error."""

from lib import counted
from lib.data.dataset import LEVEL, Dataset

LISTED = 5  # classes that a line names


def oddities(dataset: Dataset) -> list[str]:
    """A line for channels that do not vary, and one for each split that lacks classes."""
    lines = []
    _, deviations = dataset.measured_moments
    flat = []
    for channel, deviation in zip(("red", "green", "blue"), deviations):
        if deviation < LEVEL:
            flat.append(channel)
    if flat:
        lines.append(
            f"{dataset.name}: channels that do not vary from pixel to pixel, and are scaled as the "
            f"one that varies most: {', '.join(flat)}"
        )

    for split in ("train", "val", "test"):
        labels = dataset.splits[split].labels
        assert labels is not None
        present = set(labels.tolist())
        lacking = [name for c, name in enumerate(dataset.classes) if c not in present]
        if lacking:
            more = ", ..." if len(lacking) > LISTED else ""
            lines.append(
                f"{dataset.name}: {split} has no image of {', '.join(lacking[:LISTED])}{more}"
            )
    return lines


def unused_images(dataset: Dataset, pool: str) -> list[str]:
    """A line where a pool leaves out the images without labels, which need none to be of use."""
    if dataset.unlabeled is None or dataset.pool_name(pool) == "unlabeled":
        return []
    images = counted(len(dataset.unlabeled), "image")
    return [
        f"{dataset.name}: {images} without labels left out; --set pool=unlabeled trains on them"
    ]
