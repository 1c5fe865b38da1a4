"""Everything an epoch has: loader, augmentation, steps, and validation at the end."""

from __future__ import annotations

import torch

from ferdist.augment import AugmentConfig
from ferdist.bench.peers import PilFaces, PlainLoop, data_loader, images_of, pil_transform
from ferdist.bench.settings import Bench
from ferdist.bench.timing import Figure, Peer, Row, contest, rate
from ferdist.bench.trainer import Trainer, alone
from ferdist.models import build_model
from ferdist.runtime.precision import configure_kernels

TRAIN_TO_VAL = 8
"""Training samples per validation sample, as in FER2013."""

PEER = "fp32 NCHW loop, DataLoader, PIL"


def run(bench: Bench) -> list[Row]:
    """Training images per second of a whole epoch, and ferdist's wait for its loader in percent of it.

    The epoch is a short one, a few steps of full batches; writing checkpoints is left out.
    """
    rows: list[Row] = []
    for stem in [s for s in bench.size.stems if s.startswith("stride")] or bench.size.stems:
        for compiled in (False, True) if bench.size.compile else (False,):
            torch._dynamo.reset()
            rows += _epoch(bench, stem, compiled)
    return rows


def _epoch(bench: Bench, stem: str, compiled: bool) -> list[Row]:
    size = bench.size
    samples = size.steps * size.batch
    trainer = Trainer(bench.config(stem, compile=compiled), alone(bench.device), samples)
    steps, scored = trainer.plan.steps_per_epoch, max(1, samples // TRAIN_TO_VAL)
    waits: list[float] = []

    def ours() -> None:
        trainer.use_kernels()
        trainer.train(steps)
        trainer.score(scored)
        waits.append(100 * trainer.waited)

    mean, std = trainer.mean, trainer.std
    train = PilFaces(*images_of(bench, trainer.indices), pil_transform(AugmentConfig(), mean, std))
    val = PilFaces(*images_of(bench, trainer.scored[:scored]), pil_transform(None, mean, std))
    loop = PlainLoop(build_model(trainer.config.model, trainer.task), bench.device)
    with (
        data_loader(train, size.batch, 1, train=True) as batches,
        data_loader(val, size.batch, 1, train=False) as held_out,
    ):

        def theirs() -> None:
            configure_kernels(False, "auto")
            loop.train(batches)
            loop.score(held_out, lambda images: [images])

        name = f"{stem}, {'compiled' if compiled else 'eager'}"
        rows = contest(
            "epoch",
            name,
            "img/s",
            ferdist=rate(ours, steps * size.batch, bench.device, 0.0),
            peers=[Peer(PEER, rate(theirs, steps * size.batch, bench.device, 0.0))],
            rounds=size.long_rounds,
        )
    trainer.close()
    waited = Figure(tuple(waits[-size.long_rounds :]))
    return [*rows, Row("epoch", f"{name}, wait for the loader in percent of the steps", "%", waited)]
