"""When an encoder is compiled for its training, and that it is the same encoder then."""

import pytest
import torch
from torch._inductor import config as inductor

from lib.compute import compilation
from lib.compute.compilation import Compiled, is_offered, mode_of
from lib.config import Config
from lib.data.dataset import Dataset
from lib.training import Batches, Step, build_model, build_optimiser, build_scaler
from tests.conftest import small
from tests.pretended import gpu

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
BROKEN = {"force_disable_caches": True, "cpp.simdlen": 1, "cpp.cxx": ("/no/such/compiler",)}
FAST = 3e14  # operations a second, of an A100 in bfloat16


def test_it_is_offered_by_newer_gpus_unless_the_environment_objects(monkeypatch):
    assert not is_offered(CPU)
    with gpu(capability=(7, 5)):
        assert not is_offered(CUDA)
    with gpu(capability=(9, 0)):
        assert is_offered(CUDA)
        monkeypatch.setenv("TORCH_COMPILE_DISABLE", "1")
        assert not is_offered(CUDA)


def test_long_trainings_are_compiled_and_small_steps_recorded():
    hour = 3600 * compilation.SHARE * FAST
    assert mode_of(hour, FAST, views=2048) == "default"
    assert mode_of(hour, FAST, views=512) == "reduce-overhead"
    assert mode_of(hour / 5, FAST, views=512) is None


def steps(config: Config, toy: Dataset, compiled: bool) -> tuple[torch.nn.Module, list[float]]:
    """The model after an epoch whose last batch is smaller, and the steps' losses."""
    model = build_model(config, toy)
    network = Compiled(model, "default", backend="aot_eager") if compiled else model
    optimiser = build_optimiser(config, model)
    assert optimiser is not None
    take_step = Step(config, network, optimiser, build_scaler(config, CPU))
    network.train()
    epoch = Batches(config, toy, CPU).epoch(0)
    return model, [take_step(x, labels, 0.05)[0].item() for x, labels in epoch]


def test_where_the_compiler_fails_the_encoder_runs_as_it_is(toy):
    model = build_model(small(), toy).eval()
    x = torch.rand(3, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    network = Compiled(model, "default")
    try:
        with inductor.patch(BROKEN):
            with pytest.warns(UserWarning, match=r"the encoder is not compiled for cpu \(.+\)"):
                made = network(x)
            again = network(x)
    finally:
        torch.compiler.set_stance("default")
    for ours in (made, again):
        assert all(map(torch.equal, ours, model(x)))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_compiled_encoder_trains_the_models_own_weights(precision, toy):
    config = small("supcon", batch_size=64, drop_last=False, precision=precision)
    plain, losses = steps(config, toy, compiled=False)
    model, same_losses = steps(config, toy, compiled=True)
    assert same_losses == pytest.approx(losses, rel=1e-5 if precision == "float32" else 0.02)
    assert len(losses) == 3

    ours, theirs = model.state_dict(), plain.state_dict()
    assert ours.keys() == theirs.keys()  # as checkpoints want them
    if precision == "float32":
        for name in theirs:
            torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-5)
