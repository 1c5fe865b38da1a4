"""Forward, backward and update of the network, for each stem."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from ferdist.augment import Augment, AugmentConfig
from ferdist.bench.peers import images_of, kornia_pipeline, missing, timm_network, torchvision_network
from ferdist.bench.settings import Bench
from ferdist.bench.timing import Floor, Measure, Peer, Row, Seconds, contest, rate
from ferdist.bench.trainer import Trainer, alone
from ferdist.config import TrainConfig
from ferdist.models import ModelConfig, Task, build_model
from ferdist.runtime.precision import autocast, autocast_dtype
from ferdist.training import optim


def run(bench: Bench) -> list[Row]:
    """Images per second on a batch that lies on the device, all networks in the same settings."""
    image, classes = bench.beton.manifest.image, bench.beton.manifest.classes
    task = Task(image["channels"], image["height"], image["width"], len(classes))
    rows: list[Row] = []
    for stem in bench.size.stems:
        for compiled in (False, True) if bench.size.compile else (False,):
            torch._dynamo.reset()  # it refuses to compile one function for many networks
            rows += _networks(bench, task, stem, compiled)
    torch._dynamo.reset()
    return rows + _engine(bench, task, bench.size.stem)


class _Step:
    """One step of a network on a fixed batch, in the precision and layout of a run."""

    def __init__(self, network: nn.Module, task: Task, bench: Bench, compiled: bool) -> None:
        batch, device = bench.size.batch, bench.device
        settings = TrainConfig()
        self.device, self.dtype = device, autocast_dtype(settings.precision, device)
        self.smoothing = settings.label_smoothing
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(batch, task.channels, task.height, task.width, generator=generator)
        self.images = images.to(device).contiguous(memory_format=torch.channels_last)
        self.labels = torch.randint(task.classes, (batch,), generator=generator).to(device)
        network = network.to(device).to(memory_format=torch.channels_last).train()
        self.optimizer = optim.make_optimizer(network, settings)
        if compiled:
            network.compile(dynamic=False)
        self.network = network

    def __call__(self) -> None:
        with autocast(self.device, self.dtype):
            logits = self.network(self.images)
        loss = cross_entropy(logits.float(), self.labels, label_smoothing=self.smoothing)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def _networks(bench: Bench, task: Task, stem: str, compiled: bool) -> list[Row]:
    """resnet18_cbam against other networks, its convolutions and the arithmetic peak."""
    rounds, batch = bench.size.long_rounds, bench.size.batch
    name = f"{stem}, {'compiled' if compiled else 'eager'}"

    def step_of(network: nn.Module) -> _Step:
        return _Step(network, task, bench, compiled)

    def measure(call: Callable[[], object]) -> Measure:
        return rate(call, batch, bench.device, bench.size.seconds)

    ours = step_of(build_model(ModelConfig(stem=stem), task))
    plain = step_of(torchvision_network(stem, task))
    with_cbam = timm_network(stem, task)
    timm_name = "timm resnet18, attn_layer=cbam"
    if with_cbam is None:
        timm_peer = Peer(timm_name, None, missing("timm"))
    else:
        timm_peer = Peer(timm_name, measure(step_of(with_cbam)))
    # Of a network that is not compiled: a compiled one's convolutions cannot be watched.
    bare = _Step(torchvision_network(stem, task), task, bench, compiled=False)
    rows = contest(
        "step",
        name,
        "img/s",
        ferdist=measure(ours),
        peers=[timm_peer, Peer("torchvision resnet18, no attention", measure(plain))],
        floor=Floor("its convolutions alone", measure(_convolutions(bare))),
        rounds=rounds,
    )
    if bench.size.compile and not compiled:
        return rows
    with FlopCounterMode(display=False) as counter:
        _Step(build_model(ModelConfig(stem=stem), task), task, bench, compiled=False)()
    giga = counter.get_total_flops() / 1e9
    seconds = Seconds(ours, bench.device, bench.size.seconds)
    size = bench.size.matrix
    left, right = (torch.randn(size, size, device=bench.device, dtype=ours.dtype) for _ in range(2))
    product = Seconds(lambda: left @ right, bench.device, bench.size.seconds)
    kind = str(ours.dtype or torch.float32).removeprefix("torch.")
    return rows + contest(
        "step",
        f"{name}, arithmetic",
        "GFLOP/s",
        ferdist=lambda: giga / seconds(),
        floor=Floor(f"{kind} product of {size} x {size} matrices", lambda: 2e-9 * size**3 / product()),
        rounds=rounds,
    )


def _convolutions(step: _Step) -> Callable[[], None]:
    """All convolutions of a step's network, forward and backward, and nothing between them."""
    work: list[tuple[nn.Conv2d, Tensor, Tensor]] = []

    def note(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(layer, nn.Conv2d)
        needs_gradient = inputs[0] is not step.images
        x = inputs[0].detach().to(output.dtype).requires_grad_(needs_gradient)
        work.append((layer, x, torch.randn_like(output)))

    layers = [layer for layer in step.network.modules() if isinstance(layer, nn.Conv2d)]
    hooks = [layer.register_forward_hook(note) for layer in layers]
    with torch.no_grad(), autocast(step.device, step.dtype):
        step.network(step.images)
    for hook in hooks:
        hook.remove()
    weights = {layer: layer.weight.detach().to(step.dtype).requires_grad_() for layer in layers}

    def convolve() -> None:
        for layer, x, gradient in work:
            weight = weights[layer]
            y = conv2d(x, weight, None, layer.stride, layer.padding)
            wanted = (x, weight) if x.requires_grad else (weight,)
            torch.autograd.grad(y, wanted, gradient)

    return convolve


def _engine(bench: Bench, task: Task, stem: str) -> list[Row]:
    """What a run's step adds: augmentation, moving average, gradient norm, counters."""
    compiled, rounds, batch = bench.size.compile, bench.size.long_rounds, bench.size.batch
    trainer = Trainer(bench.config(stem, compile=compiled), alone(bench.device))
    micro_batches = next(trainer.batches)
    trainer.close()
    bare = _Step(build_model(ModelConfig(stem=stem), task), task, bench, compiled)

    def whole() -> None:
        trainer.engine.train_step(micro_batches)

    rows = contest(
        "step",
        f"{stem}, {'compiled' if compiled else 'eager'}, with augmentation and moving average",
        "img/s",
        ferdist=rate(whole, batch, bench.device, bench.size.seconds),
        peers=[Peer("the bare step", rate(bare, batch, bench.device, bench.size.seconds))],
        rounds=rounds,
    )
    images = torch.from_numpy(images_of(bench, trainer.indices[:batch])[0]).to(bench.device)
    mean, std = trainer.mean, trainer.std
    augment, generator = Augment(AugmentConfig(), mean, std), torch.Generator(bench.device)
    shape = (task.channels, task.height, task.width)

    def share(call: Callable[[], object]) -> Measure:
        part = Seconds(call, bench.device, bench.size.seconds)
        all_of_it = Seconds(whole, bench.device, bench.size.seconds)
        return lambda: 100 * part() / all_of_it()

    kornia = kornia_pipeline(AugmentConfig(), mean, std)
    return rows + contest(
        "step",
        f"{stem}, the default augmentation's time in percent of the step's",
        "%",
        ferdist=share(lambda: augment(images, augment.draw(batch, shape, generator))),
        peers=[
            Peer("kornia", None, missing("kornia"))
            if kornia is None
            else Peer("kornia", share(lambda: kornia(images)))
        ],
        rounds=rounds,
    )
