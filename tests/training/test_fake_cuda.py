"""The step on a GPU that is not there: fake tensors, which have a device and a shape but no values.

Reading a value, a shape that depends on one, and tensors of two devices in one operator are errors here, as a
wait for the GPU or a crash would be there. The backward pass itself needs a driver: gradients are made up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorDeviceMismatchError

from ferdist.augment import Augment, noise
from ferdist.config import Config
from ferdist.data.beton import Batch
from ferdist.models import Task, build_model
from ferdist.runtime.distributed import World
from ferdist.training.engine import Engine
from ferdist.training.steps import StepPlan

TASK = Task(1, 48, 48, 7)
GPU = torch.device("cuda", 0)


class FakeGenerator(torch.Generator):
    """A generator that says it is the GPU's."""

    device = GPU  # type: ignore[assignment]

    def __new__(cls, device: object = None) -> FakeGenerator:
        return super().__new__(cls, "cpu")


@pytest.fixture
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tensors can be made on ``cuda``."""

    def backward(loss: Tensor) -> None:
        assert loss.device == GPU

    def update(optimizer: torch.optim.Optimizer) -> None:
        values = [p for group in optimizer.param_groups for p in group["params"]]
        values += [value for p in values for value in (p.grad, *optimizer.state[p].values())]
        assert {value.device for value in values} == {GPU}

    monkeypatch.setattr(FakeTensorMode, "__deepcopy__", lambda self, memo: self, raising=False)
    monkeypatch.setattr(torch, "Generator", FakeGenerator)
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: None)
    monkeypatch.setattr(torch, "_sample_dirichlet", lambda alpha, generator: torch.empty_like(alpha))
    monkeypatch.setattr(Tensor, "backward", backward)
    for optimizer in (torch.optim.SGD, torch.optim.AdamW):  # the fused kernels have no fake
        monkeypatch.setattr(optimizer, "step", update)
    noise.normal_quantiles.cache_clear()
    with FakeTensorMode():
        yield
    noise.normal_quantiles.cache_clear()


def engine_on_gpu(config: Config) -> Engine:
    train = config.train
    plan = StepPlan(64, 16, 1, train.accumulate, epochs=2)
    model = build_model(config.model, TASK)
    for module in model.modules():
        for name, p in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(torch.empty_like(p, device=GPU)))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype, device=GPU))
    augment = Augment(config.augment, [0.5], [0.25])
    weights = torch.ones(7)
    engine = Engine(config, model, augment, TASK, plan, torch.zeros(64, 7), weights, World(0, 1, 0, GPU))
    for p in engine.parameters:
        p.grad = torch.empty_like(p)
    return engine


def batch(size: int) -> Batch:
    numbers = torch.zeros(size, dtype=torch.int64, device=GPU)
    return Batch(torch.zeros(size, 1, 48, 48, dtype=torch.uint8, device=GPU), numbers, numbers)


@pytest.mark.usefixtures("fake_cuda")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize(
    "options",
    [
        (),
        ("train.accumulate=2", "train.clip=1", "train.resolution=[[0, 0.67], [0.5, 1]]"),
        ("augment.mixup.probability=0.5", "train.optimizer=adamw", "train.channels_last=false"),
        ("augment.enabled=false", "train.ema=0"),
    ],
)
def test_a_step_on_a_gpu_reads_no_value_and_mixes_no_devices(
    tiny: Callable[..., Config], precision: str, options: tuple[str, ...]
) -> None:
    engine = engine_on_gpu(tiny(f"train.precision={precision}", *options))
    assert engine.dtype is {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    micro_batches = [batch(engine.plan.micro_batch)] * engine.plan.accumulate
    engine.train_step(micro_batches)
    assert engine.step == 1
    assert {tensor.device for tensor in engine.ema.model.state_dict().values()} == {GPU}


@pytest.mark.usefixtures("fake_cuda")
@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (lambda x: x * x.sum().item(), DataDependentOutputException),
        (lambda x: x[x > 0].sum() + x, Exception),
        (lambda x: x + torch.zeros(1, 1), FakeTensorDeviceMismatchError),
    ],
    ids=["item", "boolean index", "two devices"],
)
def test_what_would_wait_for_the_gpu_is_found(
    tiny: Callable[..., Config], fault: Callable[[Tensor], Tensor], error: type[Exception]
) -> None:
    engine = engine_on_gpu(tiny())

    class Faulty(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            out: Any = engine.model(x)
            return fault(out)

    engine.ddp = Faulty()
    with pytest.raises(error):
        engine.train_step([batch(16)])
