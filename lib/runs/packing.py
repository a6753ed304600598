"""A model and its record in one sealed file: for others, and for later experiments."""

import json
from pathlib import Path

from safetensors.torch import save as serialise

from lib import InputError, probes
from lib.config import Config
from lib.data.dataset import Dataset
from lib.encoders import Model
from lib.files import write_atomically
from lib.runs import checkpoints
from lib.runs.run import Run
from lib.training import build_model, recipe_for


def packed(record: dict, model: Model, view: dict, half: bool) -> tuple[dict, bytes]:
    """The content of a sealed file, and the record as it stands in there.

    view: how the run sees images (``view_of``).
    half: matrices and convolutions in float16; vectors (BatchNorm, biases) stay float32: they are
        few, and a small variance would lose its digits.

    Raises InputError where a weight is too large for float16.
    """
    precision = "float16" if half else "float32"
    record = record | {"input": view, "weights": precision, "sha256": checkpoints.UNSEALED}
    tensors = {}
    for name, value in model.state_dict().items():
        if half and value.dim() > 1:
            value = value.half()
        if not value.isfinite().all():
            raise InputError(
                f"{name} of {record['id']} is not finite in {precision}; export it in float32"
            )
        tensors[name] = value.contiguous()
    metadata = {"record": json.dumps(record)}  # one field: the order of two is random
    return record, checkpoints.sealed(serialise(tensors, metadata))


def view_of(run: Run, dataset: Dataset) -> dict:
    """How a run sees images: the side they are brought to, that of its view, the normalisation.

    Raises InputError where dataset is not the one it was trained on.
    """
    run.refuse_other(dataset)
    return seen_as(run.config, dataset.take(run.config.images))


def seen_as(config: Config, sliced: Dataset) -> dict:
    """The same of a configuration and the slice that is trained on."""
    recipe = recipe_for(config, sliced, "none")
    side = sliced.size[0]
    size = recipe.size or side
    return {"image": side, "size": size, "mean": list(recipe.mean), "std": list(recipe.std)}


def keep(run: Run, folder: Path, dataset: Dataset, epoch: int) -> Path:
    """Write a run's model as it was after an epoch, in half precision, and return its path.

    One file, which ``weights.run`` reads. Of the record inside, curves and results are left out;
    they stand in the run's own. Before the last epoch the model is the one that
    ``pretrain(..., keep=...)`` left in the run's folder.
    Raises InputError where dataset is another one, that model was not left, or the file can't be
    written.
    """
    record = run.record | {"curves": [], "evaluation": {}}
    for probe in probes.PROBES.values():
        if probe.field is not None:
            record.pop(probe.field, None)
    model = run.model
    if epoch < run.config.epochs:
        record["id"] = f"{run.record['id']}-epoch{epoch}"
        model = build_model(run.config, dataset)
        path = run.folder / f"epoch-{epoch}.safetensors"
        if not path.is_file():
            raise InputError(
                f"{path} is missing: the run was begun without keeping epoch {epoch}; delete "
                f"{run.folder} to train it anew"
            )
        checkpoints.restore(path, run.config, run.record["id"], model)

    path = folder / f"{record['id']}.safetensors"
    _, content = packed(record, model, view_of(run, dataset), half=True)
    write_atomically(path, content)
    return path
