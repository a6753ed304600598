"""Finished runs: how they are named, loaded, probed, and what they make of images."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from lib import HOME, InputError, evaluation, probes
from lib.augmentations import Recipe
from lib.compute.memory import memory_kept
from lib.config import Config
from lib.data.dataset import Dataset
from lib.distributed.group import active, rank
from lib.encoders import Model
from lib.files import as_path
from lib.hardware import choose_device, computes, lent
from lib.runs import checkpoints, provenance, records
from lib.runs.checkpoints import Damaged, Misplaced
from lib.runs.session import only_writer
from lib.training import new_model, recipe_for

RUNS = HOME / "runs"
UNFINISHED = "unfinished.json"  # rows of a long probe, in a run's folder


@dataclass
class Run:
    """A finished run: its folder, its record and its model (on the CPU, in eval mode)."""

    folder: Path
    config: Config
    record: dict
    model: Model = field(repr=False)

    @property
    def curves(self) -> list[dict]:
        """A row for each epoch: epoch, loss, learning_rate, seconds, contrast and the like."""
        return self.record["curves"]

    @property
    def cost(self) -> str:
        """How fast it went, how near the device's limit, with how much memory, as far as known."""
        cost = self.record.get("cost", {})
        parts = []
        if self.record["views_per_second"] is not None:
            parts.append(f"{self.record['views_per_second']:,.0f} views/s")
        if cost:
            parts.append(f"{100 * cost['share_of_matrix_rate']:.0f} % of the device's matrix rate")
        if cost.get("peak_bytes"):
            parts.append(f"{cost['peak_bytes'] / 1e6:,.0f} MB at most")
        return ", ".join(parts)

    def evaluate(
        self,
        dataset: Dataset,
        device: str | None = None,
        wanted: Iterable[str] = ("linear", "knn"),
        wait: bool = True,
    ) -> dict:
        """Probe h and z (``probes.ask``) and write what is new into the record.

        Where the run's folder can't be written a note says so, and only ``record`` has it.

        dataset: the one the run was trained on.
        wanted: which of probes.PROBES; those in the record already are not computed again.
        wait: for another process that is at this run, instead of an error.

        Returns the record's "evaluation".
        Raises InputError for an unknown probe, or where dataset is another one.
        """
        self.refuse_other(dataset)
        wanted = tuple(wanted)
        if probes.unasked(self.record, wanted):
            with only_writer(self.folder, wait, reads=True) as kept:
                path = self.folder / "record.json"
                if path.is_file():  # else nobody has probed these weights yet
                    self.record.update(records.read(path))  # with what others found
                unasked = probes.unasked(self.record, wanted)
                if unasked:
                    self._ask(dataset.take(self.config.images), device, unasked, kept)
        return self.record["evaluation"]

    def _ask(self, sliced: Dataset, device: str | None, wanted: list[str], kept: bool) -> None:
        """Compute what is missing; write each answer into the record as soon as it is found.

        kept: whether the folder can be written.
        """
        chosen = choose_device(device)
        precision = self.config.precision
        if not computes(chosen, precision):  # trained elsewhere
            precision = "float32"
        unfinished = probes.Unfinished()
        # ranks would read it at different times, and then wait for each other
        if kept and not active():
            unfinished = probes.Unfinished(self.folder / UNFINISHED)
        # may be later than training
        evaluated = {"code": provenance.code(), "versions": provenance.versions()}

        def write(answer: dict) -> None:
            self._add(answer, len(sliced.test))
            self.record["evaluated"] = evaluated
            if kept and rank() == 0:
                records.write(self.folder / "record.json", self.record)

        with memory_kept(chosen), lent(self.model, chosen) as model:
            recipe = recipe_for(self.config, sliced, "none")
            probes.ask(
                model,
                sliced,
                recipe,
                self.config.method,
                wanted,
                self.fresh,
                self.config.seed,
                precision,
                tell=write,
                unfinished=unfinished,
            )
        if probes.PROBES["fine-tuning"].field in self.record:
            unfinished.remove()

    def _add(self, answer: dict, test_images: int) -> None:
        """Put a probe's answer into the record."""
        probes.add(answer, self.record)
        looks = [row for row in self.curves if "test_correct" in row]
        if answer["evaluation"] and looks:
            best = max(looks, key=lambda row: row["test_correct"])
            self.record["evaluation"]["z"]["classifier-best"] = {
                "n": test_images,
                "correct": best["test_correct"],
                "precision": best.get("look_precision", "float32"),
            }

    def fresh(self) -> nn.Module:
        """The encoder as it was before training, initialised by the global random state."""
        return new_model(self.config, len(self.record["data"]["classes"])).encoder

    def refuse_other(self, dataset: Dataset) -> None:
        """Raise InputError where a data set is not the one that the run was trained on."""
        data = self.record["data"]
        if dataset.fingerprint != data["fingerprint"]:
            raise InputError(
                f"{self.record['id']} was trained on another version of {data['name']}: the "
                f"fingerprint of {dataset.name} differs; restore that version, or train anew"
            )

    def recipe(self, dataset: Dataset) -> Recipe:
        """The view that evaluation sees.

        dataset: the one the run was trained on. Raises InputError where it is another one.
        """
        self.refuse_other(dataset)
        return recipe_for(self.config, dataset.take(self.config.images), "none")

    def features(
        self, images: Tensor, dataset: Dataset, device: str | None = None
    ) -> tuple[Tensor, Tensor]:
        """h (N, width) and z (N, D), on the CPU, of images (N, 3, H, W) uint8, as evaluation sees.

        dataset: the one the run was trained on; it says how pixels are normalised. Raises
            InputError where it is another one.
        """
        with lent(self.model, choose_device(device)) as model:
            h, z = evaluation.features(model, images, self.recipe(dataset))
        return h.cpu(), z.cpu()


def load(folder: str | Path) -> Run:
    """A finished run from its folder.

    Raises InputError where a file is missing, damaged or of another run, and says what to do.
    """
    folder = _folder_of_a_run(as_path(folder))
    record = records.read(folder / "record.json")
    config, model = described(record, folder / "record.json")
    weights = folder / "model.safetensors"
    ways = f"delete {folder} to train anew, or restore the file"
    if not weights.exists():
        raise InputError(f"{weights} is missing; {ways}")
    try:
        checkpoints.restore(weights, config, record["id"], model)
    except (Damaged, Misplaced) as error:
        raise InputError(f"{error}; {ways}") from error
    return Run(folder, config, record, model.eval())


def _folder_of_a_run(path: Path) -> Path:
    """The folder, also where a file in it is named. Raises InputError for a folder of runs."""
    if path.is_file():
        path = path.parent
    within = sorted(record.parent.name for record in path.glob("*/record.json"))
    if within and not (path / "record.json").exists():
        raise InputError(
            f"{path} is a folder of {len(within)} runs; name one, such as {path / within[0]}, or "
            f"{path / '*'}"
        )
    return path


def described(record: dict, path: Path) -> tuple[Config, Model]:
    """A record's configuration and model, without weights yet: it is on the "meta" device.

    path: where the record is from; InputError, where no model can be so, names it.
    """
    config = Config(**record["config"])
    try:
        with torch.device("meta"):  # takes no memory until the weights are there
            return config, new_model(config, len(record["data"]["classes"]))
    except (RuntimeError, TypeError, OverflowError) as error:
        raise InputError(f"{path} holds no model that can be ({error})") from error
