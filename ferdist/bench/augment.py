"""The default augmentation and its parts, on a batch that lies on the device."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ferdist.augment import (
    Augment,
    AugmentConfig,
    GeometryConfig,
    NoiseConfig,
    OcclusionConfig,
    PhotometricConfig,
)
from ferdist.bench.peers import images_of, kornia_pipeline, missing, timm_erasing, torchvision_pipeline
from ferdist.bench.settings import Bench
from ferdist.bench.timing import Floor, Measure, Peer, Row, contest, rate
from ferdist.data.folds import Holdout

_OFF = {
    "geometry": GeometryConfig(flip=0.0, probability=0.0),
    "photometric": PhotometricConfig(probability=0.0),
    "occlusion": OcclusionConfig(probability=0.0),
    "noise": NoiseConfig(probability=0.0),
}


def run(bench: Bench) -> list[Row]:
    """Images per second, draws and normalisation included."""
    indices = bench.beton.indices("train", Holdout(bench.fold))[: bench.size.batch]
    images = torch.from_numpy(images_of(bench, indices)[0]).to(bench.device)
    mean, std = bench.beton.normalisation(Holdout(bench.fold))
    generator = torch.Generator(bench.device)
    shape = (images.shape[1], images.shape[2], images.shape[3])
    out = torch.empty_like(images, dtype=torch.float32)

    def measure(call: Callable[[], object]) -> Measure:
        return rate(call, len(images), bench.device, bench.size.seconds)

    def ferdist(config: AugmentConfig, compiled: bool) -> Measure:
        augment = Augment(config, mean, std)
        pixels = torch.compile(augment, fullgraph=True, dynamic=False) if compiled else augment
        return measure(lambda: pixels(images, augment.draw(len(images), shape, generator)))

    def peer(name: str, package: str, pipeline: Callable[[Tensor], Tensor] | None) -> Peer:
        if pipeline is None:
            return Peer(name, None, missing(package))
        return Peer(name, measure(lambda: pipeline(images)))

    rows: list[Row] = []
    for name, config in _cases().items():
        peers = [
            peer("kornia", "kornia", kornia_pipeline(config, mean, std)),
            peer("torchvision per sample", "torchvision", torchvision_pipeline(config, mean, std)),
        ]
        if name == "occlusion":
            peers.append(peer("timm RandomErasing", "timm", timm_erasing(config, mean, std, bench.device)))
        for compiled in (False, True) if bench.size.compile else (False,):
            torch._dynamo.reset()
            rows += contest(
                "augment",
                f"{name}, {'compiled' if compiled else 'eager'}",
                "img/s",
                ferdist=ferdist(config, compiled),
                peers=peers,
                floor=Floor("one read, one write", measure(lambda: out.copy_(images))),
                rounds=bench.size.rounds,
            )
    return rows


def _cases() -> dict[str, AugmentConfig]:
    """The default pipeline, and each of its parts alone."""
    default = AugmentConfig()
    cases = {"default": default}
    for part in _OFF:
        others = {name: off for name, off in _OFF.items() if name != part}
        cases[part] = AugmentConfig(**others, **{part: getattr(default, part)})  # type: ignore[arg-type]
    return cases
