"""The stages that are measured in this process, each beside its peers and its floor."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, cross_entropy
from torch.utils.flop_counter import FlopCounterMode
from torchvision import transforms

from ferdist.augment import Augment, AugmentConfig, normalise
from ferdist.bench import peers
from ferdist.bench.byhand import NAME, parse_only, rows_by_hand
from ferdist.bench.harness import Measure, Row, contest, make_row
from ferdist.bench.peers import OFF, PlainLoop, Transform, pil_loader, sample_transform
from ferdist.bench.setting import Bench
from ferdist.config import TrainConfig
from ferdist.data import prepare
from ferdist.data.beton import BetonLoader
from ferdist.evaluation.predict import TTA, views
from ferdist.models import ModelConfig, Task, build_model
from ferdist.runtime.precision import autocast, autocast_dtype, configure_kernels
from ferdist.training import optim, seeds
from ferdist.training.monitor import Stopwatch

TRAIN_TO_VAL = 8
"""Training samples per validation sample, as in FER2013."""
IN_MEMORY: Final = 2**30
"""Bytes of pixels at most that the peers of ``load``, which hold them in memory, are given."""


def optional(make: Callable[[], Measure]) -> Measure | str:
    """What ``make`` gives, or how to install the package that it misses."""
    try:
        return make()
    except ImportError as error:
        package = str(error.name).partition(".")[0]
        return f"{package} is not installed: pip install 'ferdist[bench]'"


def convert(bench: Bench) -> list[Row]:
    """fer2013.csv to a beton, in process, with the imports done: seconds for the whole file."""
    source = bench.csv
    return contest(
        f"{source.name}, {source.stat().st_size / 2**20:.0f} MiB",
        "s",
        bench.size.long_rounds,
        bench.seconds(lambda: prepare.fer2013(source, bench.fresh_folder("convert"))),
        {NAME: bench.seconds(lambda: rows_by_hand(source, bench.fresh_folder("rows")))},
        ("read_csv and one fromstring", bench.seconds(lambda: parse_only(source))),
    )


def load(bench: Bench) -> list[Row]:
    """An epoch of batches on the bench's device in a new order, plain and augmented: images per second."""
    size, beton, holdout = bench.size, bench.beton, bench.config().data.holdout
    indices, (mean, std) = beton.indices("train", holdout), beton.normalisation(holdout)
    held = indices[: max(size.batch, IN_MEMORY // math.prod(beton.manifest.image_shape))]
    images, labels = bench.images(held)
    loader = BetonLoader(beton, batch_size=size.batch, device=bench.device)
    augment, generator = Augment(AugmentConfig(), mean, std), torch.Generator(bench.device)
    pixels = torch.from_numpy(images)
    scratch, epochs = torch.empty_like(pixels), iter(range(10**9))

    def augmented(batch: Tensor) -> Tensor:
        return augment(batch, augment.draw(len(batch), beton.manifest.image_shape, generator))

    def rows(name: str, work: Callable[[Tensor], object], transform: Transform) -> list[Row]:
        def ours() -> None:
            for batch in loader.batches(seeds.epoch_order(indices, 0, next(epochs))):
                work(batch.image)

        def in_memory() -> None:
            for chosen in torch.split(torch.randperm(len(pixels)), size.batch):
                work(pixels.index_select(0, chosen).to(bench.device))

        def theirs(workers: int) -> Measure:
            batches = pil_loader(images, labels, transform, size.batch, workers, train=True)

            def epoch() -> None:
                for batch, _ in batches:
                    batch.to(bench.device)

            return bench.rate(epoch, len(batches) * size.batch)  # the rest of an epoch is dropped

        contestants = {
            "DataLoader, PIL, 1 worker": theirs(1),
            "DataLoader, PIL, 2 workers": theirs(2),
            "uint8 tensor in memory, indexed": bench.rate(in_memory, len(held)),
        }
        floor = ("memory copy of the bytes", bench.rate(lambda: scratch.copy_(pixels), len(held)))
        return contest(name, "img/s", size.rounds, bench.rate(ours, len(indices)), contestants, floor)

    return [
        *rows("uint8 batches", lambda batch: batch, transforms.PILToTensor()),
        *rows("default augmentation", augmented, sample_transform(AugmentConfig(), mean, std)),
    ]


def augment(bench: Bench) -> list[Row]:
    """The default augmentation and its parts, on a batch on the device, draws and normalisation included."""
    size, holdout = bench.size, bench.config().data.holdout
    images = torch.from_numpy(bench.images(bench.beton.indices("train", holdout)[: size.batch])[0])
    images = images.to(bench.device)
    statistics, shape = bench.beton.normalisation(holdout), bench.beton.manifest.image_shape
    generator, out = torch.Generator(bench.device), torch.empty_like(images, dtype=torch.float32)

    def measure(pipeline: Callable[[Tensor], object]) -> Measure:
        return bench.rate(lambda: pipeline(images), len(images))

    def rows(name: str, config: AugmentConfig, compiled: bool) -> list[Row]:
        augment = Augment(config, *statistics)
        pixels = torch.compile(augment, fullgraph=True, dynamic=False) if compiled else augment
        contestants = {
            "kornia": optional(lambda: measure(peers.kornia_pipeline(config, *statistics))),
            "torchvision per sample": measure(peers.torchvision_pipeline(config, *statistics)),
        }
        if name.startswith("occlusion"):
            contestants["timm RandomErasing"] = optional(
                lambda: measure(peers.timm_erasing(config, *statistics, bench.device))
            )
        ours = measure(lambda images: pixels(images, augment.draw(len(images), shape, generator)))
        floor = ("one read, one write", measure(out.copy_))
        return contest(name, "img/s", size.rounds, ours, contestants, floor)

    default, parts = AugmentConfig(), ("geometry", "photometric", "occlusion", "noise")
    cases = {part: replace(OFF, **{part: getattr(default, part)}) for part in parts}
    return [
        row
        for name, config in ({"default": default} | cases).items()
        for compiled, kind in bench.kinds()
        for row in rows(f"{name}, {kind}", config, compiled)
    ]


class _Step:
    """Forward, backward and update on a fixed batch, in the precision and layout of a run."""

    def __init__(self, network: nn.Module, task: Task, bench: Bench, compiled: bool) -> None:
        batch, self.device, self.config = bench.size.batch, bench.device, TrainConfig()
        self.dtype = autocast_dtype(self.config.precision, self.device)
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(batch, task.channels, task.height, task.width, generator=generator)
        self.images = images.to(self.device).contiguous(memory_format=torch.channels_last)
        self.labels = torch.randint(task.classes, (batch,), generator=generator).to(self.device)
        self.network = network.to(self.device).to(memory_format=torch.channels_last).train()
        self.optimizer = optim.make_optimizer(self.network, self.config)
        if compiled:
            self.network.compile(dynamic=False)

    def __call__(self) -> None:
        with autocast(self.device, self.dtype):
            logits = self.network(self.images)
        smoothing = self.config.label_smoothing
        loss = cross_entropy(logits.float(), self.labels, label_smoothing=smoothing)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def convolutions(self) -> Callable[[], None]:
        """All convolutions of the network, forward and backward, and nothing between them."""
        work: list[tuple[nn.Conv2d, Tensor, Tensor]] = []

        def note(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            assert isinstance(layer, nn.Conv2d)
            needs_gradient = inputs[0] is not self.images
            x = inputs[0].detach().to(output.dtype).requires_grad_(needs_gradient)
            work.append((layer, x, torch.randn_like(output)))

        layers = [layer for layer in self.network.modules() if isinstance(layer, nn.Conv2d)]
        hooks = [layer.register_forward_hook(note) for layer in layers]
        with torch.no_grad(), autocast(self.device, self.dtype):
            self.network(self.images)
        for hook in hooks:
            hook.remove()
        weights = {layer: layer.weight.detach().to(self.dtype).requires_grad_() for layer in layers}

        def convolve() -> None:
            for layer, x, gradient in work:
                weight = weights[layer]
                y = conv2d(x, weight, None, layer.stride, layer.padding)
                torch.autograd.grad(y, (x, weight) if x.requires_grad else (weight,), gradient)

        return convolve


def step(bench: Bench) -> list[Row]:
    """The step of each stem beside other networks, its convolutions and the arithmetic peak."""
    task = Task(*bench.beton.manifest.image_shape, len(bench.beton.manifest.classes))
    rows: list[Row] = []
    for stem in bench.size.stems:
        for compiled, kind in bench.kinds():
            rows += _networks(bench, task, stem, compiled, f"{stem}, {kind}")
    compiled, kind = list(bench.kinds())[-1]
    return rows + _engine(bench, task, compiled, f"{bench.size.stem}, {kind}")


def _networks(bench: Bench, task: Task, stem: str, compiled: bool, name: str) -> list[Row]:
    size = bench.size

    def step_of(network: nn.Module, compiled: bool = compiled) -> _Step:
        return _Step(network, task, bench, compiled)

    def measure(call: Callable[[], object]) -> Measure:
        return bench.rate(call, size.batch)

    def fresh() -> nn.Module:
        return build_model(ModelConfig(stem=stem), task)

    ours = step_of(fresh())
    contestants = {
        "timm resnet18, attn_layer=cbam": optional(lambda: measure(step_of(peers.timm_network(stem, task)))),
        "torchvision resnet18, no attention": measure(step_of(peers.torchvision_network(stem, task))),
    }
    # Of a network that is not compiled: a compiled one's convolutions cannot be watched.
    bare = step_of(peers.torchvision_network(stem, task), compiled=False)
    floor = ("its convolutions alone", measure(bare.convolutions()))
    rows = contest(name, "img/s", size.long_rounds, measure(ours), contestants, floor)
    if size.compile and not compiled:
        return rows
    with FlopCounterMode(display=False) as counter:
        step_of(fresh(), compiled=False)()
    giga = counter.get_total_flops() / 1e9
    left, right = (
        torch.randn(size.matrix, size.matrix, device=bench.device, dtype=ours.dtype) for _ in range(2)
    )
    seconds, product = bench.seconds(ours), bench.seconds(lambda: left @ right)
    kind = str(ours.dtype or torch.float32).removeprefix("torch.")
    peak = f"{kind} product of {size.matrix} x {size.matrix} matrices"
    return rows + contest(
        f"{name}, arithmetic",
        "GFLOP/s",
        size.long_rounds,
        lambda: giga / seconds(),
        floor=(peak, lambda: 2e-9 * size.matrix**3 / product()),
    )


def _engine(bench: Bench, task: Task, compiled: bool, name: str) -> list[Row]:
    """What a run's step adds: augmentation, moving average, gradient norm, counters."""
    size, setup = bench.size, bench.setup(bench.config(compile=compiled))
    micro_batches, engine = next(setup.batches()), setup.engine
    bare = _Step(build_model(ModelConfig(stem=size.stem), task), task, bench, compiled)

    def step() -> None:
        engine.train_step(micro_batches)

    rows = contest(
        f"{name}, with augmentation and moving average",
        "img/s",
        size.long_rounds,
        bench.rate(step, size.batch),
        {"the bare step": bench.rate(bare, size.batch)},
    )

    def share(call: Callable[[], object]) -> Measure:
        part, whole = bench.seconds(call), bench.seconds(step)
        return lambda: 100 * part() / whole()

    def kornia() -> Measure:
        pipeline = peers.kornia_pipeline(AugmentConfig(), setup.card.mean, setup.card.std)
        return share(lambda: pipeline(micro_batches[0].image))

    return rows + contest(
        f"{size.stem}, the default augmentation's time in percent of the step's",
        "%",
        size.long_rounds,
        share(lambda: engine.augmented(micro_batches[0], 1)),
        {"kornia": optional(kornia)},
    )


def epoch(bench: Bench) -> list[Row]:
    """Training images per second of a short epoch (loader, augmentation, steps of full batches, validation),
    and ferdist's wait for its loader in percent of the steps."""
    rows: list[Row] = []
    for stem in [s for s in bench.size.stems if s.startswith("stride")] or bench.size.stems:
        for compiled, kind in bench.kinds():
            rows += _epoch(bench, stem, compiled, f"{stem}, {kind}")
    return rows


def _epoch(bench: Bench, stem: str, compiled: bool, name: str) -> list[Row]:
    size = bench.size
    samples = size.steps * size.batch
    setup = bench.setup(bench.config(stem, compile=compiled), samples)
    steps, scored = setup.plan.steps_per_epoch, max(1, samples // TRAIN_TO_VAL)
    config, card, watch = setup.config.train, setup.card, Stopwatch()
    batches, waits = watch.timed(setup.batches()), []

    def ours() -> None:
        configure_kernels(config.deterministic, config.precision)
        watch.reset()
        for _ in range(steps):
            setup.engine.train_step(next(batches))
        setup.engine.read()
        waits.append(100 * watch.read(1)["rate/loader_wait"])
        setup.score(samples=scored)

    augmented, plain = (sample_transform(c, card.mean, card.std) for c in (AugmentConfig(), OFF))
    train = pil_loader(*bench.images(setup.train_indices), augmented, size.batch, 1, train=True)
    val = pil_loader(*bench.images(setup.val_indices[:scored]), plain, size.batch, 1, train=False)
    loop = PlainLoop(build_model(setup.config.model, card.task), bench.device)

    def theirs() -> None:
        configure_kernels(False, "auto")
        loop.train(train)
        loop.score(val, lambda images: [images])

    images = steps * size.batch
    contestants = {PlainLoop.NAME: bench.rate(theirs, images)}
    rows = contest(name, "img/s", size.long_rounds, bench.rate(ours, images), contestants)
    waited = waits[-size.long_rounds :]
    return [*rows, make_row(f"{name}, wait for the loader in percent of the steps", "%", waited)]


def evaluate(bench: Bench) -> list[Row]:
    """Scoring with each test-time augmentation: images (not views) per second, to the probabilities."""
    size, device = bench.size, bench.device
    setup = bench.setup(bench.config())
    card, network, dtype = setup.card, setup.engine.ema.model, setup.engine.dtype
    images, labels = bench.images(setup.val_indices[: size.scored])
    loop = PlainLoop(build_model(setup.config.model, card.task), device)
    transform = sample_transform(OFF, card.mean, card.std)
    loader = pil_loader(images, labels, transform, size.batch, 1, train=False)
    batch = torch.from_numpy(images[: size.batch]).to(device)
    floats = normalise(batch, card.mean, card.std).contiguous(memory_format=torch.channels_last)

    @torch.inference_mode()
    def forward(tta: str) -> None:
        for view in views(floats, tta):
            with autocast(device, dtype):
                network(view)

    def rows(tta: str) -> list[Row]:
        return contest(
            f"{size.stem}, tta {tta}",
            "img/s",
            size.long_rounds,
            bench.rate(lambda: setup.score(tta, len(images)), len(images)),
            {PlainLoop.NAME: bench.rate(lambda: loop.score(loader, partial(views, tta=tta)), len(images))},
            ("the forward passes alone", bench.rate(lambda: forward(tta), len(batch))),
        )

    return [row for tta in TTA for row in rows(tta)]
