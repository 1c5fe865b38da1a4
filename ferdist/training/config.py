"""What `train.*` in a config may say."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Final

from ferdist.errors import ConfigError

LOG_LIMIT: Final = 50
"""Steps between two readings of the device's counters, at most: a non-finite gradient is noticed by then."""

_CHOICES: Final = {
    "optimizer": ("sgd", "adamw"),
    "schedule": ("onecycle", "cosine"),
    "class_weights": ("none", "balanced", "sqrt"),
    "precision": ("auto", "bf16", "fp16", "fp32"),
    "tta": ("none", "flip", "ten-crop"),
    "resume": ("auto", "never"),
    "select": ("auto", "best", "last"),
}


@dataclass
class TrainConfig:
    """Training of one run.

    Attributes:
        epochs: passes over the training part.
        lr: peak learning rate, for the global batch size; it does not change with the world size.
        optimizer: ``sgd`` (Nesterov) or ``adamw``.
        momentum: of SGD.
        weight_decay: not applied to norms and biases.
        attention_decay: whether it is applied to the matrices that gates are computed with.
        schedule: ``onecycle`` (cosine up over ``warmup``, cosine down to 0) or ``cosine`` (linear up over
            ``warmup``, cosine down to 0).
        warmup: share of all steps in which the learning rate rises, in [0, 1).
        label_smoothing: in [0, 1).
        soft_weight: share, in [0, 1], of ``data.soft_labels`` in what is learned; the rest is the label's.
        class_weights: weight of a class in the loss: ``none``, ``balanced`` (inverse frequency) or ``sqrt``
            (its square root), scaled so that the mean weight of a training sample is 1.
        clip: largest gradient norm, 0 for no clipping.
        accumulate: micro-batches per step; data.batch_size stays the size of a whole step.
        ema: decay of the exponential moving average of the weights, 0 for none; evaluation uses the average.
        precision: ``auto`` is bf16 where the device has it, else fp16 on a GPU, else fp32.
        resolution: side of the images as a share of the data's, each with the share of steps that it begins
            at: ``[[0, 0.67], [0.5, 1]]`` trains the first half on smaller images. Empty: the data's own.
            Evaluation always sees the data's own size, so val says little before the last pair.
        channels_last: memory format of the convolutions.
        compile: torch.compile the network.
        deterministic: ask cuDNN and PyTorch for deterministic kernels.
        sync_batchnorm: batch statistics over all ranks (GPUs only).
        log_every: steps between two lines of metrics.
        evaluate_every: epochs between two evaluations; the last epoch is always evaluated.
        tta: test-time augmentation of the run's own evaluations, ``none``, ``flip`` or ``ten-crop``.
        select: which weights a run's evaluation takes: ``best`` on val, ``last``, or ``auto``: best where the
            data have splits, last where a fold is held out.
        checkpoint_seconds: a checkpoint is written after so many seconds (0: each step) and at the run's end.
        checkpoint_steps: one is also written after each step that this number divides; 0 for none.
        keep_checkpoints: how many checkpoints of the training state are kept.
        resume: ``auto`` continues a run from its newest checkpoint, ``never`` refuses a used run folder.
    """

    epochs: int = 60
    lr: float = 0.1
    optimizer: str = "sgd"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    attention_decay: bool = False
    schedule: str = "onecycle"
    warmup: float = 0.25
    label_smoothing: float = 0.1
    soft_weight: float = 0.7
    class_weights: str = "none"
    clip: float = 0.0
    accumulate: int = 1
    ema: float = 0.999
    precision: str = "auto"
    resolution: list[list[float]] = field(default_factory=list)
    channels_last: bool = True
    compile: bool = False
    deterministic: bool = True
    sync_batchnorm: bool = False
    log_every: int = 50
    evaluate_every: int = 1
    tta: str = "none"
    select: str = "auto"
    checkpoint_seconds: float = 300.0
    checkpoint_steps: int = 0
    keep_checkpoints: int = 2
    resume: str = "auto"

    def __post_init__(self) -> None:
        for key, allowed in _CHOICES.items():
            if getattr(self, key) not in allowed:
                raise ConfigError(
                    f"train.{key} is {getattr(self, key)!r}: it must be one of {', '.join(allowed)}"
                )
        for key, low, high in (
            ("epochs", 1, None),
            ("accumulate", 1, None),
            ("evaluate_every", 1, None),
            ("keep_checkpoints", 1, None),
            ("log_every", 1, LOG_LIMIT),
            ("lr", 0.0, None),
            ("weight_decay", 0.0, None),
            ("clip", 0.0, None),
            ("checkpoint_seconds", 0.0, None),
            ("checkpoint_steps", 0, None),
        ):
            value = getattr(self, key)
            if not low <= value or (high is not None and value > high):
                limit = f"at least {low}" if high is None else f"{low} to {high}"
                raise ConfigError(f"train.{key} is {value}: it must be {limit}")
        for key in ("momentum", "warmup", "label_smoothing", "ema"):
            if not 0.0 <= getattr(self, key) < 1.0:
                raise ConfigError(f"train.{key} is {getattr(self, key)}: it must lie in [0, 1)")
        if not 0.0 <= self.soft_weight <= 1.0:
            raise ConfigError(f"train.soft_weight is {self.soft_weight}: it must lie in [0, 1]")
        starts = [pair[0] for pair in self.resolution if len(pair) == 2 and 0 < pair[1] <= 2]
        rising = all(a < b for a, b in itertools.pairwise(starts))
        if self.resolution and not (len(starts) == len(self.resolution) and starts[0] == 0 and rising):
            raise ConfigError(
                f"train.resolution is {self.resolution}: give pairs [share of the steps, share of the side], "
                "the first from 0 on, the steps rising, such as [[0, 0.67], [0.5, 1]]"
            )

    def side(self, step: int, total_steps: int) -> float:
        """Side of the images at a step, 1 to ``total_steps``, as a share of the data's."""
        held = [share for start, share in self.resolution if start * total_steps < step]
        return held[-1] if held else 1.0
