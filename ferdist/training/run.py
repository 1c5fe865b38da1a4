"""The one way to train: `run(config)`, whoever starts it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import torch
from torch import Tensor

from ferdist import environment
from ferdist.augment import denormalise, normalise
from ferdist.augment.grid import image_grid
from ferdist.config import Config
from ferdist.data.beton import Batch, Beton, open_beton, stage_beton, staged_path
from ferdist.errors import ConfigError, Preempted, RunError
from ferdist.evaluation import metrics
from ferdist.evaluation.evaluate import evaluate_model, main_evaluation
from ferdist.evaluation.model import TrainedModel, default_checkpoint, load_trained
from ferdist.runtime import checkpoint
from ferdist.runtime.claim import claimed
from ferdist.runtime.distributed import World
from ferdist.runtime.folder import RunFolder
from ferdist.runtime.precision import precision_name
from ferdist.table import count
from ferdist.training.build import Setup, build, join_training
from ferdist.training.liveness import MOST_DEAD, constant_gates, gate_statistics
from ferdist.training.monitor import Monitor, Stopwatch
from ferdist.training.preemption import Agreement, StopRequest, catch_stop_signals
from ferdist.training.profiling import trace_steps

GRID_IMAGES = 32
STAGE_POLL_SECONDS = 1.0
_CHANGES = {"world_size": "{} processes", "accumulate": "train.accumulate={}", "precision": "{}"}
"""What may differ at a resume and changes the result, in words."""
WATCHED_IMAGES = 128
"""Images of val, at most, that the network's gates are watched on."""
_log = logging.getLogger(__name__)


def run(config: Config) -> Path:
    """Train the run that ``config`` defines, or resume it, and evaluate it on val.

    Under torchrun every rank calls this; rank 0 writes the run's folder.

    Returns:
        The run's results.json.

    Raises:
        FerdistError: one line that says what is wrong; status.json then says ``failed`` and why.
    """
    if not config.data.path:
        raise ConfigError("data.path is not set: give the beton file, data.path=DIR/NAME.beton")
    with join_training(config) as world, catch_stop_signals() as request:
        beton = open_data(config, world, request)
        with (
            claimed(config, beton.manifest.sha256, world) as folder,
            closing(Run(build(config, beton, world), folder)) as training,
        ):
            _loop(training, request)
            return training.finish()


def open_data(config: Config, world: World, request: StopRequest | None = None) -> Beton:
    """The beton, or its copy on this host's own disk, which the host's local rank 0 makes for all.

    Raises:
        Preempted: if ``request`` asks for a stop during the copy.
    """
    path, folder = Path(config.data.path), config.data.stage
    if folder:
        _stage(path, folder, world, request or StopRequest())
        path = staged_path(path, folder)
    return open_beton(path, checksum=True)


def _stage(path: Path, folder: str, world: World, request: StopRequest) -> None:
    """Copy on each host, however long it takes: the ranks poll each other, so no collective times out."""
    errors: list[Exception] = []

    def copy() -> None:
        try:
            stage_beton(path, folder)
        except Exception as error:
            errors.append(error)

    copying = threading.Thread(target=copy, daemon=True)
    if world.local_rank == 0:
        copying.start()
    waiting = True
    while waiting:
        if copying.is_alive():
            copying.join(STAGE_POLL_SECONDS)
        waiting = world.any(copying.is_alive())
        if waiting and world.any(request.stop):
            raise Preempted(f"{path}: stopped by a signal while it was copied to {folder}: start it again")
    if world.any(bool(errors)):
        reason = f"{path}: a local rank 0 cannot copy it to {folder}: see its message"
        raise errors[0] if errors else RunError(reason)


def _loop(run: Run, request: StopRequest) -> None:
    setup, engine, plan = run.setup, run.setup.engine, run.setup.plan
    config, world = setup.config, setup.world
    agreement, watch = Agreement(world), Stopwatch()
    if engine.step and engine.step % plan.steps_per_epoch == 0:
        run.end_epoch()  # a checkpoint at an epoch's end is written before its validation
    first = engine.step
    steps = range(first + 1, plan.total_steps + 1)
    numbered: Iterator[tuple[int, list[Batch]]] = zip(steps, watch.timed(setup.batches()), strict=False)
    if config.profile and world.is_main:
        numbered = trace_steps(numbered, run.folder.path / "profile", world.device)
    for step, micro_batches in numbered:
        if step == 1:
            run.show_augmented(micro_batches[0])
        engine.train_step(micro_batches)
        run.show_progress()
        epoch_ends = step % plan.steps_per_epoch == 0
        if epoch_ends or step - engine.read_at >= config.train.log_every:
            samples = (step - max(engine.read_at, first)) * plan.batch_size
            run.record(engine.read() | watch.read(samples))
        decision = agreement.propose(stop=request.stop, save=run.checkpoint_overdue())
        if decision.stop or decision.save or run.is_checkpoint_step():
            run.save()
        if decision.stop:
            agreement.close()
            # Also a barrier: once a rank has left, torchrun ends the others, and rank 0 has to write first.
            requeue = world.any(request.requeue)
            saved = checkpoint.step_path(run.folder.checkpoints, step).exists()
            raise Preempted(
                f"{run.folder.path}: stopped by a signal at step {step}; start it again to resume",
                requeue=requeue and saved,
            )
        if epoch_ends:
            run.end_epoch()
            watch.reset()
    agreement.close()


class Run:
    """A training with its folder: validation, checkpoints, monitoring. It resumes the newest checkpoint."""

    def __init__(self, setup: Setup, folder: RunFolder) -> None:
        self.setup, self.folder = setup, folder
        self.config, self.world, self.engine = setup.config, setup.world, setup.engine
        self.best: float | None = None
        self.watched: Tensor | None = None
        self.gates: dict[str, float] = {}
        self.writer = checkpoint.Writer()
        seconds = self._resume()
        self.monitor: Monitor | None = None
        if self.world.is_main:
            described = environment.describe(self.world.device, self.world.size)
            described |= {"precision": precision_name(self.engine.dtype)}
            folder.write_config(self.config, {**described, "beton_sha256": setup.beton.manifest.sha256})
        self._check_shared()
        if self.world.is_main:
            self.monitor = Monitor(folder, self.config, self.engine.step, setup.plan.total_steps, seconds)
            self.monitor.say(self._summary(described["device"], described["precision"]))
            self._status("running")
        self.saved_at = time.monotonic()

    def _check_shared(self) -> None:
        """Find out now whether all hosts see what rank 0 writes: at the end they read its best weights."""
        written = self.world.from_main(self.folder.config_checksum() if self.world.is_main else 0)
        refusal: RunError | None = None

        def check() -> None:
            if self.folder.config_checksum() != written:
                raise RunError(f"{self.folder.config}: not as rank 0 has just written it")

        try:
            checkpoint.read_soon(check)
        except RunError as error:
            refusal = error
        if self.world.any(refusal is not None):
            raise refusal or RunError(f"{self.folder.path}: another rank cannot read it: see its message")

    def _resume(self) -> float:
        """Load the newest intact checkpoint, if there is one; the seconds that the run has taken."""
        checkpoints = self.folder.checkpoints
        state = checkpoint.load_newest(checkpoints) if self.world.is_main else None
        step = self.world.from_main(0 if state is None else int(state["step"]))
        refusal: RunError | None = None
        if step and not self.world.is_main:
            try:
                path = checkpoint.step_path(checkpoints, step)
                state = checkpoint.read_soon(lambda: checkpoint.load(path, checkpoint.TrainingState))
            except RunError as error:
                refusal = error
        if self.world.any(refusal is not None):
            raise refusal or RunError(f"{self.folder.path}: another rank cannot resume: see its message")
        if self.world.is_main:
            damaged = checkpoint.set_aside(checkpoints, step)
            if damaged and state is None:
                _log.warning("%s: no checkpoint is intact: starting from scratch", self.folder.path)
        if state is None:
            return 0.0
        self.engine.load_state(state)
        now = self._computes()
        before = {name: state.get(name, now[name]) for name in now}
        changes = [
            f"{_CHANGES[name].format(now[name])}, started with {before[name]}"
            for name in now
            if before[name] != now[name]
        ]
        if changes and self.world.is_main:
            _log.warning(
                "%s: resuming with %s: the result will differ from an uninterrupted run's",
                *(self.folder.path, "; ".join(changes)),
            )
        best = checkpoints / checkpoint.BEST
        try:
            if best.exists():
                self.best = checkpoint.load(best, checkpoint.BestWeights)["accuracy"]
        except RunError as error:
            _log.warning("%s; the best weights are chosen among those from here on", error)
        return float(state["seconds"])

    def _summary(self, device: str, precision: str) -> str:
        """What this start is about to do, in one line."""
        plan, size, step = self.setup.plan, self.world.size, self.engine.step
        network, images = self.config.model.name, count(plan.samples, "image")
        length = f"{count(plan.epochs, 'epoch')} of {count(plan.steps_per_epoch, 'step')}"
        where = f"{precision} on {device}" + (f", {size} processes" if size > 1 else "")
        resumed = f", resuming at step {step}" if step else ""
        return f"{self.folder.path}: {network}, {images}, {length}, {where}{resumed}"

    def _computes(self) -> dict[str, int | str]:
        """What a resumed run may do otherwise, and then with another result."""
        return {
            "world_size": self.world.size,
            "accumulate": self.config.train.accumulate,
            "precision": precision_name(self.engine.dtype),
        }

    def show_augmented(self, batch: Batch) -> None:
        """Put the first batch, augmented but not mixed, into TensorBoard."""
        if self.monitor:
            images = self.engine.augmented(batch, step=1)[:GRID_IMAGES]
            card = self.setup.card
            self.monitor.images(image_grid(denormalise(images, card.mean, card.std), 8), 1)

    def record(self, values: dict[str, float]) -> None:
        """Write metrics of the current step."""
        if self.monitor:
            step = self.engine.step
            self.monitor.record(step, step / self.setup.plan.steps_per_epoch, values)

    def show_progress(self) -> None:
        """Move the progress bar to the current step."""
        if self.monitor:
            self.monitor.show(self.engine.step)

    def end_epoch(self) -> None:
        """Watch the gates and, where it is due, validate; all ranks must call."""
        self._watch_gates()
        epoch = self.engine.step // self.setup.plan.steps_per_epoch
        if epoch % self.config.train.evaluate_every == 0 or self.engine.step == self.setup.plan.total_steps:
            self.validate()

    def _watch_gates(self) -> None:
        """What the averaged network's gates do with the first images of val."""
        if not self.monitor:
            return
        setup = self.setup
        if self.watched is None:
            first = setup.val_indices[:WATCHED_IMAGES]
            self.watched = torch.cat([batch.image for batch in setup.val_loader.batches(first)])
        images = normalise(self.watched, setup.card.mean, setup.card.std)
        self.gates = gate_statistics(self.engine.ema.model, images)
        if self.gates:
            self.record(self.gates)

    def validate(self) -> None:
        """Score the averaged weights on val and keep them if they are the best yet; all ranks must call."""
        predictions = self.setup.score(self.config.train.tta)
        if not self.monitor:
            return
        scores = metrics.quick_score(predictions)
        self.record({f"val/{name}": value for name, value in scores.items()})
        if self.engine.step == self.setup.plan.total_steps:  # drawing takes longer than an epoch on many GPUs
            confusion = metrics.confusion(predictions)
            self.monitor.confusion(confusion, self.setup.card.classes, self.engine.step)
        if self.best is None or scores["accuracy"] > self.best:
            self.best = scores["accuracy"]
            self.save_best()

    def save_best(self) -> None:
        """Write the averaged weights as the best, while the training continues; rank 0 only."""
        weights = {
            "step": self.engine.step,
            "accuracy": self.best,
            "ema": {name: tensor.clone() for name, tensor in self.engine.ema.model.state_dict().items()},
            "card": self.setup.card.to_dict(),
        }
        self.writer.save(self.folder.checkpoints / checkpoint.BEST, weights)

    def checkpoint_overdue(self) -> bool:
        """Whether the longest time between two checkpoints has passed; the ranks' clocks differ."""
        return time.monotonic() - self.saved_at >= self.config.train.checkpoint_seconds

    def is_checkpoint_step(self) -> bool:
        """Whether a checkpoint belongs after the current step, whatever the time: the same on every rank."""
        step, every = self.engine.step, self.config.train.checkpoint_steps
        return step == self.setup.plan.total_steps or (every > 0 and step % every == 0)

    def save(self) -> None:
        """Write the training state, unless a non-finite update is still unread; all ranks must call."""
        self.saved_at = time.monotonic()
        state = self.engine.state()
        if not self.monitor or not self.engine.is_sound():
            return
        self.monitor.sync()
        self.writer.wait()  # a run that resumes here finds the best weights of the epochs before
        state |= {
            "seconds": self.monitor.seconds,
            **self._computes(),
            "card": self.setup.card.to_dict(),
        }
        checkpoint.save(checkpoint.step_path(self.folder.checkpoints, self.engine.step), state)
        checkpoint.prune(self.folder.checkpoints, self.config.train.keep_checkpoints)
        self._status("running")

    def finish(self) -> Path:
        """Evaluate the selected weights on val, write results.json and close."""
        self.writer.wait()
        self.world.barrier()

        def load() -> TrainedModel:
            return load_trained(str(self.folder.path), default_checkpoint(self.config), self.world.device)

        trained = load() if self.world.is_main else checkpoint.read_soon(load)
        self.world.share_from_main(trained.network)
        split = self.config.data.holdout.validated
        for tta in dict.fromkeys(("none", self.config.train.tta)):
            results = evaluate_model(trained, self.setup.beton, self.world, self.folder, split=split, tta=tta)
        constant, gates = constant_gates(self.gates)
        if len(constant) > MOST_DEAD * gates:
            _log.warning(
                "%s: the attention is dead: %d of %d channel gates do the same for every image (%s)",
                *(self.folder.path, len(constant), gates, ", ".join(constant)),
            )
        if self.monitor and results:
            final = main_evaluation(results, split)
            names = ("accuracy", "balanced_accuracy", "macro_f1", "ece")
            self.monitor.hyperparameters({name: getattr(final, name) for name in names})
            self._status("finished")
        return self.folder.results

    def close(self) -> None:
        """Close what is open, however the run ended."""
        self.writer.close()
        if self.monitor:
            self.monitor.close()

    def _status(self, state: str) -> None:
        step, plan = self.engine.step, self.setup.plan
        self.folder.set_status(
            state,
            step=step,
            total_steps=plan.total_steps,
            epoch=round(step / plan.steps_per_epoch, 4),
            world_size=self.world.size,
        )
