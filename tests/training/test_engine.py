"""The step on a network of a few weights, where every number can be followed."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from ferdist.augment import Augment
from ferdist.config import Config
from ferdist.data.beton import Batch
from ferdist.errors import RunError
from ferdist.models import Task
from ferdist.runtime.distributed import World
from ferdist.training.engine import Engine
from ferdist.training.steps import StepPlan

TASK = Task(1, 8, 8, 3)
TARGETS = torch.eye(3)[torch.arange(64) % 3]


class Small(nn.Module):
    """A linear classifier of the pixels, times a factor that can be made to overflow."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc = nn.Linear(64, 3)
        self.factor = 1.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.fc(x.flatten(1)) * self.factor
        return out


def engine_of(config: Config, accumulate: int = 1) -> Engine:
    config.train.accumulate = accumulate
    config.augment.enabled = False
    schedule = StepPlan(64, 8, 1, accumulate, epochs=10)
    world = World(0, 1, 0, torch.device("cpu"))
    return Engine(
        config, Small(), Augment(config.augment, [0.5], [0.25]), TASK, schedule, TARGETS, None, world
    )


def batch(size: int, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (size, 1, 8, 8), dtype=torch.uint8, generator=generator)
    return Batch(image, torch.arange(size) % 3, torch.arange(size))


def test_a_step_is_the_textbooks(tiny: Callable[..., Config]) -> None:
    """Against plain SGD written out, for two steps with momentum and weight decay."""
    config = tiny("train.schedule=cosine", "train.warmup=0", "train.weight_decay=0.01", "train.lr=0.1")
    engine = engine_of(config)
    reference = Small()
    velocity = [torch.zeros_like(p) for p in reference.parameters()]
    data = batch(8)
    inputs = (data.image.float() / 255 - 0.5) / 0.25
    losses = []
    for _ in range(2):
        engine.train_step([data])
        rate = engine.optimizer.param_groups[0]["lr"]
        loss = nn.functional.cross_entropy(reference(inputs), data.label, label_smoothing=0.1)
        gradients = torch.autograd.grad(loss, list(reference.parameters()))
        losses.append(loss.item())
        with torch.no_grad():
            for p, gradient, v in zip(reference.parameters(), gradients, velocity, strict=True):
                g = gradient + 0.01 * p if p.ndim > 1 else gradient
                v.mul_(0.9).add_(g)
                p.sub_(rate * (g + 0.9 * v))
    torch.testing.assert_close(engine.model.fc.weight, reference.fc.weight)
    torch.testing.assert_close(engine.model.fc.bias, reference.fc.bias)
    assert engine.read()["train/loss"] == pytest.approx(sum(losses) / 2, rel=1e-5)


def test_too_little_memory_is_an_error_that_names_what_to_change(
    tiny: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(tiny("train.resolution=[[0, 0.5], [0.5, 1]]"))

    def forward(_: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(engine.model, "forward", forward)
    with pytest.raises(
        RunError, match="cpu ran out of memory at step 1 with 8 images of 4 x 4 at once: raise"
    ):
        engine.train_step([batch(8)])
    with pytest.raises(RunError, match="8 images of 4 x 4 at once: raise"):
        engine._group_gradients()


def test_accumulated_micro_batches_are_one_batch(tiny: Callable[..., Config]) -> None:
    whole, parts = engine_of(tiny()), engine_of(tiny(), accumulate=2)
    data = batch(8)
    halves = [Batch(data.image[s], data.label[s], data.index[s]) for s in (slice(0, 4), slice(4, 8))]
    whole.train_step([data])
    parts.train_step(halves)
    torch.testing.assert_close(whole.model.fc.weight, parts.model.fc.weight)
    a, b = whole.read(), parts.read()
    assert a == pytest.approx(b, rel=1e-5)


def test_clipping_bounds_the_update(tiny: Callable[..., Config]) -> None:
    options = ("train.momentum=0", "train.weight_decay=0", "train.warmup=0", "train.lr=1")
    free, clipped = engine_of(tiny(*options)), engine_of(tiny(*options, "train.clip=0.01"))
    start = Small().fc.weight
    for engine in (free, clipped):
        engine.train_step([batch(8)])
    assert (free.model.fc.weight - start).norm() > 0.05
    moved = torch.cat(
        [(a - b).flatten() for a, b in zip(clipped.model.parameters(), Small().parameters(), strict=True)]
    )
    assert moved.norm().item() == pytest.approx(0.01, rel=1e-2)
    assert clipped.read()["train/grad_norm"] > 0.05, "the norm is reported as it was before clipping"


@pytest.mark.parametrize("overflow_at", [1, 2])
def test_fp16_skips_an_overflowing_gradient_and_goes_on(
    tiny: Callable[..., Config], overflow_at: int
) -> None:
    """Also at the first step, where the scale is still too large: what follows must not remember it."""
    engine, clean = (engine_of(tiny("train.precision=fp16", "train.momentum=0.9")) for _ in range(2))
    for step in range(1, overflow_at):
        engine.train_step([batch(8, step)])
    before = engine.model.fc.weight.detach().clone()
    scale = engine.scaler.get_scale()
    hook = engine.model.fc.weight.register_hook(lambda gradient: gradient * float("inf"))
    engine.train_step([batch(8, 0)])
    hook.remove()
    assert torch.equal(engine.model.fc.weight, before)
    assert engine.scaler.get_scale() < scale
    assert engine.is_sound(), "one overflow is part of fp16's way of working"
    assert engine.read()["train/grad_norm"] >= 0
    if overflow_at == 1:
        clean.step = 1
        for one in (engine, clean):
            one.train_step([batch(8, 7)])
        torch.testing.assert_close(engine.model.fc.weight, clean.model.fc.weight, rtol=1e-3, atol=1e-4)


def test_fp16_that_overflows_for_ever_is_an_error(tiny: Callable[..., Config]) -> None:
    engine = engine_of(tiny("train.precision=fp16"))
    engine.model.fc.weight.register_hook(lambda gradient: gradient * float("inf"))
    for _ in range(20):
        engine.train_step([batch(8)])
    with pytest.raises(RunError, match="became infinite or NaN"):
        engine.read()


@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
def test_a_loss_that_is_not_finite_is_an_error_in_every_precision(
    tiny: Callable[..., Config], precision: str
) -> None:
    engine = engine_of(tiny(f"train.precision={precision}"))
    engine.model.factor = float("inf")
    engine.train_step([batch(8)])
    assert not engine.is_sound()
    with pytest.raises(RunError, match="became infinite or NaN"):
        engine.read()


def test_a_resumed_engine_is_the_same_engine(tiny: Callable[..., Config]) -> None:
    one, other = engine_of(tiny()), engine_of(tiny())
    for step in range(3):
        one.train_step([batch(8, step)])
    other.load_state(copy.deepcopy(one.state()))  # as from a file: nothing is shared
    for engine in (one, other):
        engine.train_step([batch(8, 9)])
    assert torch.equal(one.model.fc.weight, other.model.fc.weight)
    assert torch.equal(one.ema.model.fc.weight, other.ema.model.fc.weight)
    assert other.step == 4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_step_on_the_gpu_is_the_step_on_the_cpu(tiny: Callable[..., Config]) -> None:
    cpu = engine_of(tiny())
    config = tiny()
    config.augment.enabled = False
    device = torch.device("cuda", 0)
    gpu = Engine(
        config,
        Small().to(device),
        Augment(config.augment, [0.5], [0.25]),
        TASK,
        StepPlan(64, 8, 1, 1, epochs=10),
        TARGETS,
        None,
        World(0, 1, 0, device),
    )
    data = batch(8)
    cpu.train_step([data])
    gpu.train_step([Batch(data.image.to(device), data.label.to(device), data.index.to(device))])
    torch.testing.assert_close(gpu.model.fc.weight.cpu(), cpu.model.fc.weight, rtol=1e-3, atol=1e-5)


def test_a_resolution_schedule_shows_the_network_smaller_images_first(tiny: Callable[..., Config]) -> None:
    config = tiny("train.resolution=[[0, 0.5], [0.25, 0.75], [0.75, 1]]")
    engine = engine_of(config)
    sides: list[int] = []

    def look(_module: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        sides.append(inputs[0].shape[3])
        raise InterruptedError  # a linear classifier takes one size only

    engine.model.register_forward_pre_hook(look)
    total = engine.plan.total_steps
    for engine.step in range(total):
        with pytest.raises(InterruptedError):
            engine.train_step([batch(8)])
    assert (sides.count(4), sides.count(6), sides.count(8)) == (total // 4, total // 2, total // 4)
    assert sides == sorted(sides)
