"""An epoch of batches, plain and augmented."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from torchvision import transforms

from ferdist.augment import Augment, AugmentConfig
from ferdist.bench.peers import PilFaces, Transform, data_loader, images_of, pil_transform
from ferdist.bench.settings import Bench
from ferdist.bench.timing import Floor, Measure, Peer, Row, contest, rate
from ferdist.data.beton import BetonLoader, DeviceCache
from ferdist.data.folds import Holdout
from ferdist.training import seeds

DATALOADER_WORKERS = (1, 2)


def run(bench: Bench) -> list[Row]:
    """Images per second on the bench's device, in a new order each epoch."""
    beton = bench.beton
    indices = beton.indices("train", Holdout(bench.fold))
    mean, std = beton.normalisation(Holdout(bench.fold))
    augment = Augment(AugmentConfig(), mean, std)
    images, labels = images_of(bench, indices)
    loader = BetonLoader(beton, batch_size=bench.size.batch, device=bench.device)
    generator = torch.Generator(bench.device)
    epochs = iter(range(10**9))

    def augmented(batch: Tensor) -> Tensor:
        shape = (batch.shape[1], batch.shape[2], batch.shape[3])
        return augment(batch, augment.draw(len(batch), shape, generator))

    def read(source: BetonLoader | DeviceCache, work: Callable[[Tensor], object]) -> None:
        for batch in source.batches(seeds.epoch_order(indices, 0, next(epochs))):
            work(batch.image)

    pixels, scratch = torch.from_numpy(images), torch.empty_like(torch.from_numpy(images))

    def in_memory(work: Callable[[Tensor], object]) -> None:
        for chosen in torch.split(torch.randperm(len(pixels)), bench.size.batch):
            work(pixels.index_select(0, chosen).to(bench.device))

    def measure(call: Callable[[], object]) -> Measure:
        return rate(call, len(indices), bench.device, bench.size.seconds)

    cases: list[tuple[str, Callable[[Tensor], object], Transform]] = [
        ("uint8 batches", lambda batch: batch, transforms.PILToTensor()),
        ("default augmentation", augmented, pil_transform(AugmentConfig(), mean, std)),
    ]
    rows: list[Row] = []
    for name, work, transform in cases:
        with ExitStack() as stack:
            faces = PilFaces(images, labels, transform)
            peers = []
            for workers in DATALOADER_WORKERS:
                peer = stack.enter_context(data_loader(faces, bench.size.batch, workers, train=True))
                plural = "" if workers == 1 else "s"
                peers.append(
                    Peer(f"DataLoader, PIL, {workers} worker{plural}", measure(_exhaust(peer, bench)))
                )
            peers.append(Peer("uint8 tensor in memory, indexed", measure(lambda w=work: in_memory(w))))  # type: ignore[misc]
            rows += contest(
                "load",
                name,
                "img/s",
                ferdist=measure(lambda w=work: read(loader, w)),  # type: ignore[misc]
                peers=peers,
                floor=Floor("memory copy of the bytes", measure(lambda: scratch.copy_(pixels))),
                rounds=bench.size.rounds,
            )
    return rows


def _exhaust(loader: Any, bench: Bench) -> Callable[[], None]:
    def read() -> None:
        for images, _ in loader:
            images.to(bench.device)

    return read
