"""The training step: a network and all that changes while it trains."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate
from torch.nn.parallel import DistributedDataParallel

from ferdist.augment import Augment, Draws, draw_mixup, mix
from ferdist.config import Config
from ferdist.data.beton import Batch, BetonLoader, DeviceCache
from ferdist.data.record import Integers
from ferdist.errors import ConfigError, RunError, reason_of
from ferdist.models import Task
from ferdist.runtime.checkpoint import EngineState
from ferdist.runtime.distributed import World
from ferdist.runtime.precision import autocast, autocast_dtype
from ferdist.training import optim, seeds
from ferdist.training.ema import Ema
from ferdist.training.steps import StepPlan

COMPILED_STEPS = 10_000
"""Steps from which ``train.compile=auto`` compiles on a GPU: it takes a minute, and saves milliseconds."""


def compiles(config: Config, device: torch.device, total_steps: int) -> bool:
    """Whether ``train.compile`` asks to compile a run of so many steps on this device."""
    if config.train.compile == "auto":
        return device.type == "cuda" and total_steps >= COMPILED_STEPS
    return bool(config.train.compile)


class OutOfMemory(RunError):
    """A step does not fit into the device's memory."""


class Engine:
    """Updates ``model`` towards ``targets`` (N, K), one row per sample, with class ``weights`` (K,)."""

    def __init__(
        self,
        config: Config,
        model: nn.Module,
        augment: Augment,
        task: Task,
        plan: StepPlan,
        targets: Tensor,
        weights: Tensor | None,
        world: World,
    ) -> None:
        self.config, self.task, self.plan, self.world = config, task, plan, world
        train = config.train
        self.model, self.augment = model, augment
        self.targets = targets.to(world.device)
        self.weights = None if weights is None else weights.to(world.device)
        self.ema = Ema(model, train.ema)
        self.optimizer = optim.make_optimizer(model, train)
        self.dtype = autocast_dtype(train.precision, world.device)
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=self.dtype is torch.float16)
        self.generator = torch.Generator(world.device)
        self.step = 0
        self.pixels: Callable[[Tensor, Draws], Tensor] = augment
        if compiles(config, world.device, plan.total_steps):
            model.compile(dynamic=False)
            self.pixels = torch.compile(augment, fullgraph=True, dynamic=False)
        self.ddp = model
        if world.size > 1:
            devices = [world.device.index] if world.device.type == "cuda" else None
            self.ddp = DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)
            # Each rank's batch statistics follow its own batches; evaluation and checkpoints take rank 0's.
            self.ddp.broadcast_buffers = False
            self._group_gradients()
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        # Sums since the last reading: loss, correct, samples, gradient norm. They stay on the device;
        # in double precision they are exact, in whatever order ranks and resumed runs add them.
        self.counters = torch.zeros(4, device=world.device, dtype=torch.float64)
        self.read_at = 0
        self.broken = torch.zeros((), device=world.device)

    def _group_gradients(self) -> None:
        """Let DDP see a backward pass before the first step: it regroups the gradients after it.

        With more than two ranks the groups decide in which order a sum is rounded: without this, the first
        step of a resumed run would differ from the same step of an uninterrupted one.
        """
        before = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        shape = (self.plan.micro_batch, self.task.channels, *self._sides())
        with self._enough_memory():
            images = torch.zeros(shape, device=self.world.device)
            if self.config.train.channels_last:
                images = images.contiguous(memory_format=torch.channels_last)
            with autocast(self.world.device, self.dtype):
                self.ddp(images).float().sum().backward()
        trained = [(name, p.grad) for name, p in self.model.named_parameters() if p.requires_grad]
        if unused := [name for name, gradient in trained if gradient is None]:
            raise ConfigError(
                f"model.name is {self.config.model.name!r}: {len(unused)} of its parameters, such as "
                f"{unused[0]}, take no part in its output, so several processes cannot train it: remove them "
                "or set their requires_grad to False"
            )
        self.model.zero_grad(set_to_none=True)
        with torch.no_grad():
            for name, buffer in self.model.named_buffers():
                buffer.copy_(before[name])

    def batches(self, loader: BetonLoader | DeviceCache, indices: Integers) -> Iterator[list[Batch]]:
        """The micro-batches of each step from ``self.step`` on, to the end of the run."""
        per_epoch = self.plan.steps_per_epoch
        for epoch in range(self.step // per_epoch, self.plan.epochs):
            skip = self.step - epoch * per_epoch
            order = seeds.epoch_order(indices, self.config.seed, epoch)
            stream = loader.batches(self.plan.rank_order(order, self.world.rank, skip))
            for _ in range(skip, per_epoch):
                yield [next(stream) for _ in range(self.plan.accumulate)]
            stream.close()  # type: ignore[attr-defined]

    def train_step(self, micro_batches: list[Batch]) -> None:
        """Forward, backward and update; nothing waits for the device.

        A gradient that is not finite after the reduction, and so on every rank alike, leaves the weights as
        they are and raises ``broken``, which `read` looks at later.

        Raises:
            RunError: if the device has too little memory.
        """
        with self._enough_memory():
            self._train_step(micro_batches)

    def _sides(self) -> tuple[int, int]:
        """Height and width in pixels of what the network receives at the next step."""
        side = self.config.train.side(self.step + 1, self.plan.total_steps)
        return round(self.task.height * side), round(self.task.width * side)

    @contextmanager
    def _enough_memory(self) -> Iterator[None]:
        try:
            yield
        except torch.OutOfMemoryError:
            height, width = self._sides()
            raise OutOfMemory(
                f"{self.world.device} ran out of memory at step {self.step + 1} with {self.plan.micro_batch} "
                f"images of {height} x {width} at once: raise train.accumulate, use more ranks, or lower "
                "data.batch_size or train.resolution"
            ) from None

    def _train_step(self, micro_batches: list[Batch]) -> None:
        config, step, rank = self.config, self.step + 1, self.world.rank
        torch.manual_seed(seeds.derive_seed(config.seed, seeds.DROPOUT, step, rank))
        draws = self._draw(step)
        lam = self._draw_mixup()

        rate = optim.learning_rate(config.train, step, self.plan.total_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        for i, batch in enumerate(micro_batches):
            start, stop = self.plan.rows(rank, i)
            images = self.pixels(batch.image, draws.slice(start, stop))
            last = i + 1 == len(micro_batches)
            targets = self.targets.index_select(0, batch.index)
            self._backward(images, targets, None if lam is None else lam[start:stop], reduce=last)
        self._update()
        self.step = step
        self.ema.update(step)

    def _draw(self, step: int) -> Draws:
        """The augmentation's draws of a step, seeding the generator for what is drawn after them.

        They are for the whole global batch on each rank, so that a sample's draws do not depend on the ranks.
        """
        self.generator.manual_seed(seeds.derive_seed(self.config.seed, seeds.AUGMENT, step))
        image_shape = (self.task.channels, self.task.height, self.task.width)
        return self.augment.draw(self.plan.batch_size, image_shape, self.generator)

    def augmented(self, batch: Batch, step: int) -> Tensor:
        """A step's first micro-batch as the network will see it, before mixup: normalised (B, C, H, W)."""
        return self.augment(batch.image, self._draw(step).slice(*self.plan.rows(self.world.rank, 0)))

    def skip_to(self, step: int) -> None:
        """Pretend that so many steps are done: what later ones cost can be measured without the others."""
        self.step = self.read_at = step

    def _draw_mixup(self) -> Tensor | None:
        mixup = self.config.augment.mixup
        if not self.config.augment.enabled or mixup.probability == 0:
            return None
        return draw_mixup(self.plan.batch_size, mixup.alpha, mixup.probability, self.generator)

    def _backward(self, images: Tensor, targets: Tensor, lam: Tensor | None, *, reduce: bool) -> None:
        if isinstance(self.ddp, DistributedDataParallel):
            self.ddp.require_backward_grad_sync = reduce
        labels = targets.argmax(1)
        if lam is not None:
            images, targets = mix(images, lam), mix(targets, lam)
        size = self._sides()
        if size != images.shape[2:]:
            images = interpolate(images, size, mode="bilinear", antialias=True)
        if self.config.train.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        with autocast(self.world.device, self.dtype):
            logits = self.ddp(images)
        loss = cross_entropy(
            logits.float(), targets, self.weights, label_smoothing=self.config.train.label_smoothing
        )
        self.scaler.scale(loss / self.plan.accumulate).backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            hits = (logits.argmax(1) == labels).sum()
            sums = (loss.detach() * len(labels), hits, hits.new_full((), len(labels)))
            self.counters[:3] += torch.stack([s.double() for s in sums])

    def _update(self) -> None:
        clip = self.config.train.clip
        self.scaler.unscale_(self.optimizer)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        if clip > 0:
            nn.utils.clip_grads_with_norm_(self.parameters, clip, norm)
        self.counters[3] += torch.nan_to_num(norm, 0.0, 0.0, 0.0)
        if self.scaler.is_enabled():
            # fp16 overflows now and then by design: the scaler skips the update and lowers its scale.
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            found = (~torch.isfinite(norm)).float()
            self.broken = torch.maximum(self.broken, found)
            self.optimizer.grad_scale = None  # type: ignore[attr-defined]
            self.optimizer.found_inf = found  # type: ignore[attr-defined]
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def is_sound(self) -> bool:
        """Whether all losses and updates so far were finite; waits for the device."""
        if self.scaler.is_enabled() and self.scaler.get_scale() < 1:
            return False
        return bool(((self.broken == 0) & torch.isfinite(self.counters[0])).item())

    def read(self) -> dict[str, float]:
        """Means over the steps since the last reading and all ranks, then start over.

        Raises:
            RunError: if a gradient was not finite; the same on every rank.
        """
        steps = self.step - self.read_at
        totals = self.world.sum(self.counters).tolist()
        if not self.is_sound():
            raise RunError(
                f"the loss or its gradient became infinite or NaN by step {self.step} (no update was made "
                "with it): lower train.lr, set train.clip=1 or try train.precision=fp32"
            )
        self.counters.zero_()
        self.read_at = self.step
        return {
            "train/loss": totals[0] / totals[2],
            "train/accuracy": totals[1] / totals[2],
            "train/lr": self.optimizer.param_groups[0]["lr"],
            "train/grad_norm": totals[3] / (steps * self.world.size),
        }

    def state(self) -> dict[str, Any]:
        """All that a resumed run needs, draws being a function of seed and step; all ranks must call."""
        return {
            "step": self.step,
            "read_at": self.read_at,
            "counters": self.world.sum(self.counters.clone()),
            "model": self.model.state_dict(),
            "ema": self.ema.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state(self, state: EngineState) -> None:
        """Continue from what `state` gave.

        Raises:
            RunError: if it is another network's or optimizer's.
        """
        self.step, self.read_at = state["step"], state["read_at"]
        try:
            if self.world.is_main:  # the sum over the ranks: it must be counted once
                self.counters.copy_(state["counters"])
            self.model.load_state_dict(state["model"])
            self.ema.model.load_state_dict(state["ema"])
            self.optimizer.load_state_dict(state["optimizer"])
            if state["scaler"]:  # empty if the steps so far were not in fp16: then the scale starts anew
                self.scaler.load_state_dict(state["scaler"])
        except Exception as error:  # each raises what it likes
            raise RunError(
                f"the training state at step {self.step} does not fit this network and optimizer "
                f"({reason_of(error)}): set another run_dir"
            ) from None
