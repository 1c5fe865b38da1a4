"""A model as the evaluation sees it, and a trained network as evaluation and prediction need it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Final, Protocol, TypedDict

import msgspec
import torch
from msgspec import Meta
from torch import nn

from ferdist.config import RESUME_KEYS, Config, differences, from_dict, to_dict
from ferdist.data.beton import Beton, labels_of
from ferdist.data.folds import ALL, Holdout
from ferdist.errors import ConfigError, DataError, RunError, reason_of
from ferdist.evaluation.benchmark import Cell, seen_in_training
from ferdist.evaluation.predict import Scorer, scorer_of
from ferdist.io import sha256
from ferdist.models import Task, build_model, multiply_adds, parameter_count, weights
from ferdist.models.external import TIMM
from ferdist.runtime import checkpoint
from ferdist.runtime.folder import RunFolder
from ferdist.runtime.precision import precision_name, scoring_dtype

UNUSED, CHOSEN, USED, UNKNOWN = "no", "to choose the epoch", "yes", "unknown"
"""What a model's training may have done with the images of a split."""
GIVEN: Final = "given"
"""The checkpoint of a model from elsewhere, which has no other."""
CARD: Final = "card:"
"""What ``model.name`` begins with in the folder of a model from elsewhere; no network has such a name."""


@dataclass(frozen=True)
class ModelCard:
    """What a checkpoint says of itself, so that its weights can be used without the run's other files.

    Attributes:
        config: of the run.
        task: image shape and class count.
        classes: names, in label order.
        mean, std: that inputs are normalised with, per channel, in [0, 1] units.
        beton_sha256: of the training data.
    """

    config: Config
    task: Task
    classes: tuple[str, ...]
    mean: tuple[Annotated[float, Meta(ge=0, le=1)], ...]
    std: tuple[Annotated[float, Meta(gt=0, le=1)], ...]
    beton_sha256: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return {
            "config": to_dict(self.config),
            "task": asdict(self.task),
            "classes": list(self.classes),
            "mean": list(self.mean),
            "std": list(self.std),
            "beton_sha256": self.beton_sha256,
        }

    @staticmethod
    def from_dict(values: Mapping[str, Any], origin: Path) -> ModelCard:
        """What `to_dict` gave; ``origin`` is named in errors.

        Raises:
            ConfigError: if the config is not one.
            ValueError: if another value is not what it should be; the message has its place.
        """
        config = from_dict(msgspec.convert(values, _Configured)["config"], origin)
        card = replace(msgspec.convert({**values, "config": {}}, ModelCard), config=config)
        for name, given, wanted in (
            ("classes", card.classes, card.task.classes),
            ("mean", card.mean, card.task.channels),
            ("std", card.std, card.task.channels),
        ):
            if len(given) != wanted:
                raise ValueError(f"{len(given)} values of {name} for a task with {wanted}")
        return card


class _Configured(TypedDict):
    config: dict[str, Any]


class ScoredModel(Protocol):
    """A model as the evaluation sees it: ferdist's own, or one from elsewhere (`external.ExternalModel`)."""

    @property
    def name(self) -> str | None:
        """Of the folder in ``runs/weights`` that collects its evaluations; None for a run, which is one."""

    @property
    def checkpoint(self) -> str:
        """What results.json calls its weights: ``best``, ``last``, ``given`` or a path."""

    @property
    def step(self) -> int | None:
        """Of its training, after which these weights were; None for a model from elsewhere."""

    @property
    def config(self) -> Config:
        """How its data are read: labels, workers, precision."""

    @property
    def origin(self) -> str:
        """Under what name results.json's environment has what its folder records."""

    def described(self, beton: Beton) -> tuple[dict[str, Any], dict[str, Any]]:
        """The config that its folder shows, and what identifies model and data there."""

    def check_fit(self, beton: Beton) -> None:
        """Refuse data that it cannot be scored on.

        Raises:
            DataError: if image shape or classes do not fit, or the beton lacks its labels.
        """

    def holdout(self, beton: Beton) -> Holdout:
        """What it was not trained on, of data that it was trained on."""

    def fill(self, beton: Beton) -> tuple[float, ...]:
        """What the benchmark's fill ``mean`` shows, per channel of the data, in [0, 1] units."""

    def learned_from_train(self, beton: Beton) -> bool:
        """Whether it was trained on the data's training images."""

    def seen(self, cell: Cell, height: int, width: int) -> str:
        """Whether its training showed such occlusion (`seen_in_training`); "" if that is unknown."""

    def use_of(self, beton: Beton, split: str) -> str:
        """What its training did with the images of a split: no, to choose the epoch, yes, or unknown."""

    def about(self, beton: Beton) -> dict[str, str]:
        """What else is to know of it, in words by topic; empty where there is nothing to say."""

    def scorer(self, beton: Beton, device: torch.device, tta: str = "none") -> Scorer:
        """What answers for images of the data."""

    def precision(self, device: torch.device) -> str:
        """What its scorer computes in: ``bf16``, ``fp16``, ``fp32``, or its own."""

    def cost(self, beton: Beton) -> tuple[int | None, int | None]:
        """Its parameters and its multiply-adds for one image, None where they cannot be counted."""


@dataclass(frozen=True)
class TrainedModel:
    """A network in evaluation mode, fp32, with its card and the step of its checkpoint: a `ScoredModel`.

    Attributes:
        checkpoint: ``best``, ``last`` or a path.
        weights: the exported file that it is from, None where it is from a run folder.
    """

    network: nn.Module
    card: ModelCard
    checkpoint: str
    step: int
    weights: Path | None = None

    @property
    def name(self) -> str | None:
        return None if self.weights is None else self.weights.stem

    @property
    def config(self) -> Config:
        return self.card.config

    @property
    def origin(self) -> str:
        return "training"

    def described(self, beton: Beton) -> tuple[dict[str, Any], dict[str, Any]]:
        record = {"beton_sha256": self.card.beton_sha256}
        if self.weights is not None:
            record |= {"weights": self.weights.name, "weights_sha256": sha256(self.weights)}
        return to_dict(self.config), record

    def check_fit(self, beton: Beton) -> None:
        shape, task = beton.manifest.image_shape, self.card.task
        wanted = (task.channels, task.height, task.width)
        if shape != wanted:
            raise DataError(f"{beton.path}: images are {shape} (C, H, W), but the model expects {wanted}")
        classes = labels_of(beton, self.config.data.labels).classes
        if classes != self.card.classes:
            raise DataError(
                f"{beton.path}: classes are {', '.join(classes)}, "
                f"but the model's are {', '.join(self.card.classes)}; an ONNX file of it is scored by the "
                "classes that both have: `ferdist export`, docs/use.md"
            )

    def holdout(self, beton: Beton) -> Holdout:
        # A fold is a part of the data that the run trained on; other data are taken as their splits say.
        own = beton.manifest.sha256 == self.card.beton_sha256
        return self.config.data.holdout if own else Holdout()

    def fill(self, beton: Beton) -> tuple[float, ...]:
        return self.card.mean

    def learned_from_train(self, beton: Beton) -> bool:
        # Another file whose training images have these very moments (of exact sums) has the same ones.
        moments = {"mean": list(self.card.mean), "std": list(self.card.std)}
        statistics = beton.manifest.statistics.get("train")
        return beton.manifest.sha256 == self.card.beton_sha256 or statistics == moments

    def seen(self, cell: Cell, height: int, width: int) -> str:
        return seen_in_training(cell, self.config.augment, height, width)

    def use_of(self, beton: Beton, split: str) -> str:
        data = self.config.data
        # Exported weights name their data, whose images may have been changed since, such as equalised.
        if beton.manifest.sha256 != self.card.beton_sha256 and Path(data.path).stem != beton.manifest.name:
            return UNUSED
        if split in ("train", ALL):
            return USED
        chosen = split == data.holdout.validated and self.checkpoint == "best"
        return CHOSEN if chosen else UNUSED

    def about(self, beton: Beton) -> dict[str, str]:
        data, model = self.config.data, self.config.model
        held = f"{data.val_share:.0%} of it held out" if data.val_share else ""
        held = held if data.fold is None else f"all folds but {data.fold}"
        return {
            "trained on": f"train of {Path(data.path).stem}{held and f' ({held})'}, by ferdist",
            "network": f"{model.name}, {self.config.train.epochs} epochs, seed {self.config.seed}",
            "started from": Path(model.pretrained).name if model.pretrained else "",
        }

    def scorer(self, beton: Beton | None, device: torch.device, tta: str = "none") -> Scorer:
        return scorer_of(self.network, self.card.mean, self.card.std, self._dtype(device), tta)

    def precision(self, device: torch.device) -> str:
        return precision_name(self._dtype(device))

    def _dtype(self, device: torch.device) -> torch.dtype | None:
        return scoring_dtype(self.config.train.precision, device)

    def cost(self, beton: Beton) -> tuple[int | None, int | None]:
        return parameter_count(self.network), multiply_adds(self.network, self.card.task)


def default_checkpoint(config: Config) -> str:
    """Which weights a run's evaluation takes: the best on val, or the last where a fold is held out.

    Choosing an epoch on the held-out fold would make the fold's accuracy too good.
    """
    if config.model.name.startswith(CARD):
        return GIVEN
    if config.train.select != "auto":
        return config.train.select
    return "best" if config.data.fold is None else "last"


def load_trained(
    model: str, which: str | None, device: torch.device, *, trust_code: bool = False
) -> TrainedModel:
    """Load a run's weights (their moving average), or exported ones.

    Args:
        model: a run folder, a .safetensors file of `ferdist export` or the name of shipped weights.
        which: of a run: ``best``, ``last``, the path of a checkpoint, or None for the run's own choice.
        device: where the network goes.
        trust_code: whether a module that the model's card names may be imported, which runs its code.

    Raises:
        ConfigError: if ``which`` is given for exported weights, which are of one checkpoint, or the card
            names a module that was not imported before and ``trust_code`` is not given.
        RunError: if there is no such model or checkpoint, or the checkpoint is another run's.
    """
    weights.check_model(model)
    exported = weights.find(model)
    if exported is not None:
        if which is not None:
            raise ConfigError(
                f"--checkpoint is {which}, but {exported} holds a single checkpoint: leave it out"
            )
        return _load_exported(exported, device, trust_code)
    folder = RunFolder(Path(model))
    stored = folder.stored_config()
    which = which or default_checkpoint(stored)
    named = {"best": folder.checkpoints / checkpoint.BEST, "last": folder.checkpoints}
    path = named.get(which, Path(which))
    state = checkpoint.load_newest(path) if which == "last" else checkpoint.load(path, checkpoint.Weights)
    if state is None:
        raise RunError(f"{path}: no readable checkpoint: train the run first")
    with _readable(path):
        card = ModelCard.from_dict(state["card"], path)
        network = _network(card, state["ema"], device, trust_code)
    other = differences(stored, card.config, RESUME_KEYS)
    if other:
        raise RunError(f"{path}: not a checkpoint of {model} ({'; '.join(other[:3])})")
    return TrainedModel(network, card, which, state["step"])


class _Source(TypedDict):
    """What exported weights say of the checkpoint that they are from."""

    checkpoint: str
    step: int


def _load_exported(path: Path, device: torch.device, trust_code: bool) -> TrainedModel:
    tensors, facts = weights.read(path)
    if "config" not in facts:
        raise RunError(
            f"{path}: its metadata has no config, so `ferdist export` did not write it: "
            "it can only serve as model.pretrained"
        )
    with _readable(path):
        card = ModelCard.from_dict(facts, path)
        source = msgspec.convert(facts, _Source)
        network = _network(card, tensors, device, trust_code)
        return TrainedModel(network, card, source["checkpoint"], source["step"], path)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """What a file holds that this version cannot use is an error in one line."""
    try:
        yield
    except (ValueError, RuntimeError) as error:
        raise RunError(
            f"{path}: its content does not fit this version of ferdist: {reason_of(error)}"
        ) from None


def _network(
    card: ModelCard, tensors: Mapping[str, torch.Tensor], device: torch.device, trust_code: bool
) -> nn.Module:
    _check_shapes(card, tensors, trust_code)
    network = build_model(card.config.model, card.task, trust_code=trust_code)
    network.load_state_dict(tensors)
    return network.to(device).to(memory_format=torch.channels_last).eval()


def _check_shapes(card: ModelCard, tensors: Mapping[str, torch.Tensor], trust_code: bool) -> None:
    """Refuse a card of a network that is larger than the weights, before it takes any memory."""
    source, colon, _ = card.config.model.name.partition(":")
    if colon and source != TIMM:  # a user's network may need its memory to be built
        return
    try:
        with torch.device("meta"):
            empty = build_model(card.config.model, card.task, trust_code=trust_code)
    except ConfigError:
        if source != TIMM:
            raise
        return  # some of its versions build some networks only where there is memory
    for name, tensor in empty.state_dict().items():
        given = tuple(tensors[name].shape) if name in tensors else None
        if given != tuple(tensor.shape):
            raise ValueError(f"{name} is {given}, and its network has {tuple(tensor.shape)}")
