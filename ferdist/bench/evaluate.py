"""Scoring, with and without test-time augmentation."""

from __future__ import annotations

import torch

from ferdist.augment import normalise
from ferdist.bench.peers import PilFaces, PlainLoop, data_loader, images_of, pil_transform
from ferdist.bench.settings import Bench
from ferdist.bench.timing import Floor, Peer, Row, contest, rate
from ferdist.bench.trainer import Trainer, alone
from ferdist.evaluation.predict import TTA, views
from ferdist.models import build_model
from ferdist.runtime.precision import autocast


def run(bench: Bench) -> list[Row]:
    """Images (not views) per second, from the file to the probabilities."""
    size = bench.size
    trainer = Trainer(bench.config(size.stem, compile=False), alone(bench.device))
    trainer.close()
    network, engine = trainer.engine.ema.model, trainer.engine
    images, labels = images_of(bench, trainer.scored[: size.scored])
    faces = PilFaces(images, labels, pil_transform(None, trainer.mean, trainer.std))
    loop = PlainLoop(build_model(trainer.config.model, trainer.task), bench.device)
    batch = torch.from_numpy(images[: size.batch]).to(bench.device)
    floats = normalise(batch, trainer.mean, trainer.std).contiguous(memory_format=torch.channels_last)

    @torch.inference_mode()
    def forward(tta: str) -> None:
        for view in views(floats, tta):
            with autocast(bench.device, engine.dtype):
                network(view)

    rows: list[Row] = []
    with data_loader(faces, size.batch, 1, train=False) as loader:
        for tta in TTA:
            rows += contest(
                "evaluate",
                f"{size.stem}, tta {tta}",
                "img/s",
                ferdist=rate(
                    lambda t=tta: trainer.score(size.scored, t),  # type: ignore[misc]
                    len(images),
                    bench.device,
                    size.seconds,
                ),
                peers=[
                    Peer(
                        "fp32 NCHW loop, DataLoader, PIL",
                        rate(
                            lambda t=tta: loop.score(loader, lambda x: views(x, t)),  # type: ignore[misc]
                            len(images),
                            bench.device,
                            size.seconds,
                        ),
                    )
                ],
                floor=Floor(
                    "the forward passes alone",
                    rate(lambda t=tta: forward(t), len(batch), bench.device, size.seconds),  # type: ignore[misc]
                ),
                rounds=size.long_rounds,
            )
    return rows
