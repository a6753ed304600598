"""What only a real GPU can tell; skipped elsewhere."""

import pytest
import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from lib.augmentations import COMPILED_FROM, RECIPES, views
from lib.hardware import compiles

CUDA = torch.device("cuda")
pytestmark = [
    pytest.mark.device,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


@pytest.mark.parametrize("recipe, side", [("supcontrast", 32), ("uva", 96)])
def test_a_steps_views_are_few_kernels_and_one_copy(recipe, side):
    if not compiles(CUDA):
        pytest.skip("this GPU has no compiler")
    random = torch.Generator().manual_seed(0)
    images = torch.randint(256, (64, 3, side, side), dtype=torch.uint8, generator=random)
    on_gpu = images.to(CUDA)

    def made(x, step):
        return views(x, RECIPES[recipe], seed=0, step=step)

    compiled = made(on_gpu, COMPILED_FROM)  # compiles
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
        made(on_gpu, COMPILED_FROM + 1)
        torch.cuda.synchronize()

    on_device = [event.name for event in profiled.events() if event.device_type == DeviceType.CUDA]
    copies = [name for name in on_device if name.startswith("Memcpy")]
    assert len(copies) == 1 and "HtoD" in copies[0]
    assert 2 <= len(on_device) - len(copies) <= 2 * 30

    assert (compiled.cpu() - made(images, COMPILED_FROM)).abs().max() < 2e-5
    eager = made(on_gpu, COMPILED_FROM - 1).cpu()
    assert (eager - made(images, COMPILED_FROM - 1)).abs().max() < 2e-5
