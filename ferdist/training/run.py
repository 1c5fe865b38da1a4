"""The one way to train: `run(config)`, whoever starts it."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ferdist import environment
from ferdist.augment import Augment, denormalise, normalise
from ferdist.augment.grid import image_grid
from ferdist.config import Config
from ferdist.data.beton import (
    Batch,
    Beton,
    BetonLoader,
    DeviceCache,
    labels_of,
    open_beton,
    stage_beton,
    staged_path,
)
from ferdist.data.record import Integers
from ferdist.errors import ConfigError, FerdistError, Preempted, RunError
from ferdist.evaluation import metrics
from ferdist.evaluation.evaluate import evaluate_trained, main_entry
from ferdist.evaluation.model import ModelCard, TrainedModel, default_checkpoint, load_trained
from ferdist.evaluation.predict import predict
from ferdist.models import Task, build_model, check_resolution
from ferdist.models.pretrained import load_pretrained
from ferdist.runtime import checkpoint
from ferdist.runtime.claim import claimed
from ferdist.runtime.distributed import World, join_world
from ferdist.runtime.folder import RunFolder
from ferdist.runtime.precision import configure_kernels
from ferdist.training import optim, seeds
from ferdist.training.engine import Engine
from ferdist.training.liveness import MOST_DEAD, constant_gates, gate_statistics
from ferdist.training.monitor import Monitor, Stopwatch
from ferdist.training.preemption import Agreement, StopRequest, catch_stop_signals
from ferdist.training.profiling import trace_steps
from ferdist.training.soft import soften
from ferdist.training.steps import StepPlan

GRID_IMAGES = 32
WATCHED_IMAGES = 128
"""Images of val, at most, that the network's gates are watched on."""
_log = logging.getLogger(__name__)


def run(config: Config) -> Path:
    """Train, or go on training, the run that ``config`` defines, and evaluate it on val.

    Under torchrun every rank calls this; rank 0 writes the run's folder.

    Returns:
        The run's results.json.

    Raises:
        FerdistError: one line that says what is wrong; status.json then says ``failed`` and why.
    """
    if not config.data.path:
        raise ConfigError("data.path is not set: give the beton file, data.path=DIR/NAME.beton")
    with join_world(config.device) as world, catch_stop_signals() as request:
        beton = open_data(config, world)
        with (
            claimed(config, beton.manifest.sha256, world) as folder,
            closing(Job(config, beton, world, folder)) as job,
        ):
            _loop(job, request)
            return job.finish()


def open_data(config: Config, world: World) -> Beton:
    """The beton, or its copy on this host's own disk, which the host's local rank 0 makes for all."""
    path, folder = Path(config.data.path), config.data.stage
    if folder:
        refusal: FerdistError | None = None
        if world.local_rank == 0:
            try:
                stage_beton(path, folder)
            except FerdistError as error:
                refusal = error
        if world.any(refusal is not None):
            raise refusal or RunError(f"{path}: a local rank 0 cannot copy it to {folder}: see its message")
        path = staged_path(path, folder)
    return open_beton(path, checksum=True)


def _loop(job: Job, request: StopRequest) -> None:
    config, engine, plan = job.config, job.engine, job.plan
    agreement, watch = Agreement(job.world), Stopwatch()
    if engine.step and engine.step % plan.steps_per_epoch == 0:
        job.watch_gates()
        job.validate()  # a checkpoint at an epoch's end is written before its validation
    steps = range(engine.step + 1, plan.total_steps + 1)
    stream = watch.timed(engine.batches(job.loader, job.train_indices))
    numbered: Iterator[tuple[int, list[Batch]]] = zip(steps, stream, strict=False)
    if config.profile and job.world.is_main:
        numbered = trace_steps(numbered, job.folder.path / "profile", job.world.device)
    for step, micro_batches in numbered:
        if step == 1:
            job.show_augmented(micro_batches[0])
        engine.train_step(micro_batches)
        job.show_progress()
        epoch_ends = step % plan.steps_per_epoch == 0
        if epoch_ends or step - engine.read_at >= config.train.log_every:
            samples = (step - engine.read_at) * plan.batch_size
            job.record(engine.read() | watch.read(samples))
        decision = agreement.propose(stop=request.stop, save=job.seconds_are_over())
        if decision.stop or decision.save or job.is_checkpoint_step():
            job.save()
        if decision.stop:
            agreement.close()
            # Also a barrier: once a rank has left, torchrun ends the others, and rank 0 has to write first.
            requeue = job.world.any(request.requeue)
            saved = checkpoint.step_path(job.folder.checkpoints, step).exists()
            raise Preempted(
                f"{job.folder.path}: stopped by a signal at step {step}; start it again to go on",
                requeue=requeue and saved,
            )
        if epoch_ends:
            job.watch_gates()
            job.validate()
            watch.reset()
    agreement.close()


class Job:
    """What the loop needs beside the engine: data, validation, checkpoints, monitoring."""

    def __init__(self, config: Config, beton: Beton, world: World, folder: RunFolder) -> None:
        self.config, self.beton, self.world, self.folder = config, beton, world, folder
        holdout = config.data.holdout
        labels = labels_of(beton, config.data.labels)
        self.labels = soften(labels, config.data.soft_labels, config.train.soft_weight, beton)
        self.train_indices = self.labels.learnable(beton.indices("train", holdout))
        self.val_indices = self.labels.scorable(beton.indices(holdout.validated, holdout))
        mean, std = beton.normalisation(holdout)
        image, classes = beton.manifest.image, self.labels.classes
        self.task = Task(image["channels"], image["height"], image["width"], len(classes))
        self.card = ModelCard(config, self.task, classes, tuple(mean), tuple(std), beton.manifest.sha256)
        self.plan = StepPlan(
            len(self.train_indices),
            config.data.batch_size,
            world.size,
            config.train.accumulate,
            config.train.epochs,
        )
        self.augment = Augment(config.augment, mean, std)
        configure_kernels(config.train.deterministic, config.train.precision)
        targets = torch.from_numpy(self.labels.targets)
        weights = optim.class_weights(config.train.class_weights, targets[self.train_indices].sum(0))
        self.engine = Engine(
            config, self._network(), self.augment, self.task, self.plan, targets, weights, world
        )
        self.loader = self._loader(self.plan.micro_batch, self.train_indices)
        self.val_loader = self._loader(max(self.plan.micro_batch, 256), self.val_indices)

        self.best: float | None = None
        self.watched: Tensor | None = None
        self.gates: dict[str, float] = {}
        seconds = self._resume()
        self.monitor: Monitor | None = None
        if world.is_main:
            folder.write_config(
                config,
                {**environment.describe(world.device, world.size), "beton_sha256": beton.manifest.sha256},
            )
            self.monitor = Monitor(folder, config, self.engine.step, self.plan.total_steps, seconds)
            self._status("running")
        self.saved_at = time.monotonic()

    def _network(self) -> nn.Module:
        torch.manual_seed(seeds.derive_seed(self.config.seed, seeds.WEIGHTS))
        network = build_model(self.config.model, self.task)
        shares = {share for _, share in self.config.train.resolution}
        check_resolution(network, self.config.model, self.task, shares)
        load_pretrained(network, self.config.model.pretrained)
        if self.config.train.sync_batchnorm:
            if self.world.device.type != "cuda":
                raise ConfigError("train.sync_batchnorm is true, which needs GPUs: set it to false")
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
        layout = torch.channels_last if self.config.train.channels_last else torch.contiguous_format
        return network.to(self.world.device).to(memory_format=layout)

    def _loader(self, batch_size: int, samples: Integers) -> BetonLoader | DeviceCache:
        data = self.config.data
        loader = BetonLoader(
            self.beton,
            batch_size=batch_size,
            device=self.world.device,
            workers=data.workers,
            timeout=data.timeout,
        )
        return DeviceCache(loader, samples) if data.cache == "device" else loader

    def _resume(self) -> float:
        """Go on from the newest whole checkpoint, if there is one; the seconds that the run has taken."""
        checkpoints = self.folder.checkpoints
        state = checkpoint.load_newest(checkpoints)
        step = 0 if state is None else int(state["step"])
        if self.world.any(step != self.world.from_main(step)):
            raise RunError(
                f"{self.folder.path}: the ranks see different checkpoints (this one step {step}): "
                "the run folder must be on a file system that all hosts share"
            )
        if self.world.is_main:
            damaged = checkpoint.set_aside(checkpoints, step)
            if damaged and state is None:
                _log.warning("%s: none of its checkpoints is whole: it starts anew", self.folder.path)
        if state is None:
            return 0.0
        self.engine.load_state(state)
        if state["world_size"] != self.world.size and self.world.is_main:
            _log.warning(
                "%s: going on with %d processes, begun with %d: the result will not be an unbroken run's",
                self.folder.path,
                self.world.size,
                state["world_size"],
            )
        best = checkpoints / checkpoint.BEST
        try:
            self.best = checkpoint.load(best)["accuracy"] if best.exists() else None
        except RunError as error:
            _log.warning("%s; the best weights are chosen anew from here on", error)
        return float(state["seconds"])

    def show_augmented(self, batch: Batch) -> None:
        """Put the first batch, augmented but not mixed, into TensorBoard."""
        if not self.monitor:
            return
        generator = torch.Generator(self.world.device)
        generator.manual_seed(seeds.derive_seed(self.config.seed, seeds.AUGMENT, 1))
        shape = (self.task.channels, self.task.height, self.task.width)
        draws = self.augment.draw(self.plan.batch_size, shape, generator)
        images = self.augment(batch.image, draws.slice(*self.plan.rows(0, 0)))[:GRID_IMAGES]
        self.monitor.images(image_grid(denormalise(images, self.card.mean, self.card.std), 8), 1)

    def record(self, values: dict[str, float]) -> None:
        """Write metrics of the current step."""
        if self.monitor:
            self.monitor.record(self.engine.step, self.engine.step / self.plan.steps_per_epoch, values)

    def show_progress(self) -> None:
        """Move the progress bar to the current step."""
        if self.monitor:
            self.monitor.show(self.engine.step)

    def watch_gates(self) -> None:
        """At an epoch's end: what the averaged network's gates do with the first images of val."""
        if not self.monitor:
            return
        if self.watched is None:
            first = self.val_indices[:WATCHED_IMAGES]
            self.watched = torch.cat([batch.image for batch in self.val_loader.batches(first)])
        images = normalise(self.watched, self.card.mean, self.card.std)
        self.gates = gate_statistics(self.engine.ema.model, images)
        if self.gates:
            self.record(self.gates)

    def validate(self) -> None:
        """At an epoch's end, where it is due: score the averaged weights on val, keep them if best."""
        step, epoch = self.engine.step, self.engine.step // self.plan.steps_per_epoch
        if epoch % self.config.train.evaluate_every and step < self.plan.total_steps:
            return
        network = self.engine.ema.model
        self.world.share_from_main(network)
        predictions = predict(
            network,
            self.beton,
            self.labels,
            self.val_loader,
            self.val_indices,
            self.world,
            mean=self.card.mean,
            std=self.card.std,
            dtype=self.engine.dtype,
            tta=self.config.train.tta,
        )
        if not self.monitor:
            return
        scores = metrics.quick_score(predictions)
        self.record({f"val/{name}": value for name, value in scores.items()})
        self.monitor.confusion(metrics.confusion(predictions), self.card.classes, step)
        if self.best is None or scores["accuracy"] > self.best:
            self.best = scores["accuracy"]
            weights = {
                "step": step,
                "accuracy": self.best,
                "ema": network.state_dict(),
                "card": self.card.to_dict(),
            }
            checkpoint.save(self.folder.checkpoints / checkpoint.BEST, weights)

    def seconds_are_over(self) -> bool:
        """Whether the longest time between two checkpoints has passed; the ranks' clocks differ."""
        return time.monotonic() - self.saved_at >= self.config.train.checkpoint_seconds

    def is_checkpoint_step(self) -> bool:
        """Whether a checkpoint belongs after the current step, whatever the time: the same on every rank."""
        step, every = self.engine.step, self.config.train.checkpoint_steps
        return step == self.plan.total_steps or (every > 0 and step % every == 0)

    def save(self) -> None:
        """Write the training state, unless an update that was not finite is still unread; all ranks call."""
        self.saved_at = time.monotonic()
        state = self.engine.state()
        if not self.monitor or not self.engine.is_sound():
            return
        self.monitor.sync()
        state |= {
            "seconds": self.monitor.seconds,
            "world_size": self.world.size,
            "card": self.card.to_dict(),
        }
        checkpoint.save(checkpoint.step_path(self.folder.checkpoints, self.engine.step), state)
        checkpoint.prune(self.folder.checkpoints, self.config.train.keep_checkpoints)
        self._status("running")

    def finish(self) -> Path:
        """Evaluate the selected weights on val, write results.json and close."""
        which = default_checkpoint(self.config)
        self.world.barrier()
        trained, split = self._selected(which), self.config.data.holdout.validated
        for tta in dict.fromkeys(("none", self.config.train.tta)):
            results = evaluate_trained(trained, self.beton, self.world, self.folder, split=split, tta=tta)
        constant, gates = constant_gates(self.gates)
        if len(constant) > MOST_DEAD * gates:
            _log.warning(
                "%s: the attention is dead: %d of %d channel gates do the same for every image (%s)",
                *(self.folder.path, len(constant), gates, ", ".join(constant)),
            )
        if self.monitor:
            final = main_entry(results["evaluations"], split)
            names = ("accuracy", "balanced_accuracy", "macro_f1", "ece")
            self.monitor.hyperparameters({name: final[name] for name in names})
            self._status("finished")
        return self.folder.results

    def close(self) -> None:
        """Close what is open, however the run ended."""
        if self.monitor:
            self.monitor.close()

    def _selected(self, which: str) -> TrainedModel:
        trained = load_trained(str(self.folder.path), which, self.world.device)
        self.world.share_from_main(trained.network)
        return trained

    def _status(self, state: str) -> None:
        step, per_epoch = self.engine.step, self.plan.steps_per_epoch
        details: dict[str, Any] = {
            "step": step,
            "total_steps": self.plan.total_steps,
            "epoch": round(step / per_epoch, 4),
            "world_size": self.world.size,
        }
        self.folder.set_status(state, **details)
