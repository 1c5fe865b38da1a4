"""A model from elsewhere under ferdist's evaluation: an ONNX file, or what a user's module makes.

Its images are those of the data, covered at the data's size and only then made what the model takes: another
number of channels, another size (bilinear, antialiased), another range. Its outputs are matched to the data's
classes by name. A card says what the model takes and gives; docs/use.md has its keys.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
import torch
import torch.nn.functional as F
from msgspec import Meta
from torch import Tensor, nn

from ferdist.config import Config, DataConfig, read_yaml
from ferdist.data.beton import Beton, labels_of
from ferdist.data.folds import ALL, Holdout
from ferdist.data.record import CKPLUS8_CLASSES, NAME, NAME_RULE
from ferdist.errors import ConfigError, DataError, FerdistError, RunError, reason_of
from ferdist.evaluation.benchmark import Cell
from ferdist.evaluation.model import CARD, GIVEN, UNKNOWN, UNUSED, USED, ScoredModel, load_trained
from ferdist.evaluation.predict import Scorer, views
from ferdist.models import Task, multiply_adds, parameter_count, weights
from ferdist.models.config import ModelConfig
from ferdist.models.external import import_module
from ferdist.models.onnxgraph import ONNX, Graph, read_graph

CARDS: Final = (".yaml", ".yml")
VALUES_AT_ONCE: Final = 2**23
"""Most values of images that the model gets at once: each may take hundreds of bytes in a network."""
LUMA: Final = (0.299, 0.587, 0.114)
"""Shares of red, green and blue in gray (ITU-R BT.601)."""
SUM: Final = 0.01
"""How far the sum of probabilities may be from 1."""

Side = Annotated[int, Meta(ge=2, le=1024)]
Level = Annotated[float, Meta(ge=-1000, le=1000)]
Spread = Annotated[float, Meta(gt=0, le=1000)]
Text = Annotated[str, Meta(max_length=500)]


@dataclass(frozen=True, kw_only=True)
class Card:
    """What is to know of a model from elsewhere.

    Attributes:
        classes: of its outputs, in their order, named as the data name them; None for an output that is no
            expression and is left out.
        model: the .onnx file, relative to the card, or MODULE:NAME; by default the card's name with .onnx.
        name: of the model, by default that of its file.
        channels: that it takes; by default what an ONNX graph says (3 are rgb), else as the data.
        size: of its images, a side or height and width in pixels; by default the graph's, else the data's.
        layout: of its images; by default what the graph's shape says, else nchw.
        scale: what white is before the normalisation, 1 or 255.
        mean, std: what images of that scale are normalised with, one value or one for each channel.
        output: what it gives.
        output_name: of an ONNX graph that gives several things.
        labels: what it is scored by, as ``data.labels``.
        trained_on, source, license: in words.
        saw: splits that it was trained or chosen on, by the data's name; None if that is unknown.
    """

    classes: tuple[Annotated[str, Meta(min_length=1, max_length=100)] | None, ...] = ()
    model: Text = ""
    name: Annotated[str, Meta(max_length=100)] = ""
    channels: Literal["gray", "rgb", "bgr"] | None = None
    size: Side | tuple[Side, ...] | None = None
    layout: Literal["nchw", "nhwc"] | None = None
    scale: Literal[1, 255] = 1
    mean: Level | tuple[Level, ...] = 0.0
    std: Spread | tuple[Spread, ...] = 1.0
    output: Literal["logits", "probabilities"] = "logits"
    output_name: Text = ""
    labels: str = "own"
    trained_on: Text = ""
    source: Text = ""
    license: Text = ""
    saw: dict[str, tuple[Literal["train", "val", "test"], ...]] | None = None


ABOUT: Final = ("trained_on", "source", "license", "saw")
"""Keys of a card that change nothing of what the model computes."""


def load_model(
    model: str,
    which: str | None,
    device: torch.device,
    *,
    trust_code: bool = False,
    card: Path | None = None,
    given: Mapping[str, Any] | None = None,
) -> ScoredModel:
    """Load whatever can be evaluated.

    Args:
        model: as for `load_trained`, or a model from elsewhere: an .onnx file, a card (.yaml), MODULE:NAME: a
            torch module, or a function that makes one or makes a function of images.
        which, device: as for `load_trained`.
        trust_code: whether a user's module may be imported, which runs its code.
        card: of a model from elsewhere; by default the .yaml file beside an .onnx file.
        given: values of the card that replace the file's.

    Raises:
        ConfigError: if card, options and model do not fit together, or a package is missing.
        RunError: if there is no such model.
    """
    path = Path(model)
    own = weights.find(model) is not None or path.is_dir()
    if own or not (path.suffix in (ONNX, *CARDS) or ":" in model):
        if card is not None or given:
            raise ConfigError(
                f"{model}: a card, and options in its place, describe models from elsewhere only"
            )
        return load_trained(model, which, device, trust_code=trust_code)
    if which is not None:
        raise ConfigError(f"--checkpoint is {which}, but {model} has a single one: leave it out")
    if path.suffix in CARDS:
        card = path
    elif path.suffix == ONNX and card is None and path.with_suffix(CARDS[0]).exists():
        card = path.with_suffix(CARDS[0])
    about = read_card(card, given or {})
    if path.suffix in CARDS:
        model = about.model or str(path.with_suffix(ONNX).name)
        model = model if ":" in model else str(path.parent / model)
    if ":" in model and Path(model).suffix != ONNX:
        return _from_module(model, about, device, trust_code)
    return _from_onnx(Path(model), about)


def read_card(path: Path | None, given: Mapping[str, Any]) -> Card:
    """The card in a file, with values in place of the file's.

    Raises:
        ConfigError: if a key is unknown or a value is not what it should be.
    """
    values = {**(read_yaml(path) if path else {}), **given}
    try:
        known = [one.name for one in fields(Card)]
        for key in values:
            if key not in known:
                near = difflib.get_close_matches(str(key), known, n=1)
                hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
                raise ValueError(f"unknown key {key}: {hint}")
        card = msgspec.convert(values, Card)
        if isinstance(card.size, tuple) and len(card.size) != 2:
            raise ValueError(f"size is {list(card.size)}: give a side, or height and width")
        named = [name for name in card.classes if name is not None]
        if len(set(named)) < len(named):
            raise ValueError("a class stands there twice")
        if card.name and not NAME.fullmatch(card.name):
            raise ValueError(f"name is {card.name!r}: {NAME_RULE}")
        DataConfig(labels=card.labels)  # it knows which there are
        return card
    except (ConfigError, ValueError) as error:
        raise ConfigError(f"{path or 'the options of the model'}: {error}") from None


@dataclass(frozen=True)
class ExternalModel:
    """A model from elsewhere: a `ScoredModel`.

    Attributes:
        name: of the model.
        card: with its classes.
        answer: float32 or, where it is ``raw``, uint8 images (B, C, H, W), or (B, H, W, C), to (B, outputs).
        identity: what tells the model from another one.
        graph: of ONNX.
        network: of torch.
    """

    name: str
    card: Card
    answer: Callable[[Tensor], Tensor]
    identity: dict[str, Any]
    graph: Graph | None = None
    network: nn.Module | None = None
    checkpoint: str = field(default=GIVEN, init=False)
    step: None = field(default=None, init=False)
    origin: str = field(default="card", init=False)

    @property
    def config(self) -> Config:
        return Config(data=DataConfig(labels=self.card.labels), model=ModelConfig(name=CARD + self.name))

    def described(self, beton: Beton) -> tuple[dict[str, Any], dict[str, Any]]:
        data = {"path": str(beton.path), "labels": self.card.labels}
        card = json.loads(json.dumps(asdict(self.card)))  # lists, as a YAML file has them
        about = {key: card.pop(key) for key in ABOUT}
        record = {"beton_sha256": beton.manifest.sha256, **self.identity, "card": card, "about": about}
        return {"data": data, "model": {"name": CARD + self.name}}, record

    def check_fit(self, beton: Beton) -> None:
        classes = labels_of(beton, self.card.labels).classes
        known = {*classes, *CKPLUS8_CLASSES}
        strange = [name for name in self.card.classes if name is not None and name not in known]
        if strange:
            raise DataError(
                f"{self.name}: its class {strange[0]!r} is none of the data's ({', '.join(classes)}): "
                "name its outputs as the data do, and those that are no expression - (in a card null)"
            )
        if len({*self.card.classes} & {*classes}) < 2:
            raise DataError(f"{self.name}: it shares fewer than two classes with {beton.path}")
        self.task(beton)

    def task(self, beton: Beton) -> Task:
        """The images that it takes, and the number of its outputs.

        Raises:
            ConfigError: if its graph takes other images than the card says, or a mean has too many values.
        """
        channels, *size = beton.manifest.image_shape
        card, graph = self.card, self.graph
        fixed = (None, None, None) if graph is None else graph.image(card.layout)
        if card.channels is not None:
            channels = 1 if card.channels == "gray" else 3
        elif fixed[0] is not None:
            channels = fixed[0]
        if card.size is not None:
            size = [card.size, card.size] if isinstance(card.size, int) else [*card.size]
        else:
            size = [given or own for given, own in zip(fixed[1:], size, strict=True)]
        shape = (channels, *size)
        if channels not in (1, 3) or any(a not in (None, b) for a, b in zip(fixed, shape, strict=True)):
            raise ConfigError(
                f"{self.name}: its graph takes images {fixed} (C, H, W), not {shape}: see its card"
            )
        for key, values in (("mean", card.mean), ("std", card.std)):
            if isinstance(values, tuple) and len(values) not in (1, channels):
                raise ConfigError(f"{self.name}: {len(values)} values of {key} for {channels} channels")
        return Task(channels, size[0], size[1], len(card.classes))

    def holdout(self, beton: Beton) -> Holdout:
        return Holdout()

    def fill(self, beton: Beton) -> tuple[float, ...]:
        # That of a model trained on these data: so both see the same images.
        return tuple(beton.normalisation(Holdout())[0])

    def learned_from_train(self, beton: Beton) -> bool:
        return "train" in (self.card.saw or {}).get(beton.manifest.name, ())

    def seen(self, cell: Cell, height: int, width: int) -> str:
        return ""

    def use_of(self, beton: Beton, split: str) -> str:
        if self.card.saw is None:
            return UNKNOWN
        saw = self.card.saw.get(beton.manifest.name, ())
        return USED if split in saw or (split == ALL and saw) else UNUSED

    def about(self, beton: Beton) -> dict[str, str]:
        card, task, classes = self.card, self.task(beton), labels_of(beton, self.card.labels).classes
        colours = card.channels or ("gray" if task.channels == 1 else "rgb")
        return {
            "trained on": card.trained_on or "not stated",
            "takes": f"{colours}, {task.height} x {task.width} pixels",
            "left out": ", ".join(
                name or "an unnamed output" for name in card.classes if name not in classes
            ),
            "lacks": ", ".join(name for name in classes if name not in card.classes),
            "source": card.source,
            "licence": card.license,
        }

    def cost(self, beton: Beton) -> tuple[int | None, int | None]:
        if self.graph is not None:
            task = self.task(beton)
            return self.graph.cost((task.channels, task.height, task.width), self.card.layout)
        if self.network is None:
            return None, None
        return parameter_count(self.network), multiply_adds(self.network, self.task(beton))

    def scorer(self, beton: Beton, device: torch.device, tta: str = "none") -> Scorer:
        classes, task = labels_of(beton, self.card.labels).classes, self.task(beton)
        at_once = max(1, VALUES_AT_ONCE // (task.channels * task.height * task.width))
        kept = [number for number, name in enumerate(self.card.classes) if name in classes]
        places = [classes.index(str(self.card.classes[number])) for number in kept]

        @torch.inference_mode()
        def scorer(images: Tensor) -> Tensor:
            shown = views(images, tta)
            total = torch.zeros(len(images), len(classes), device=images.device)
            for view in shown:
                parts = [self._outputs(self.prepared(part, task)) for part in torch.split(view, at_once)]
                total[:, places] += self._probabilities(torch.cat(parts).to(images.device))[:, kept]
            if len(kept) == len(self.card.classes):
                return total / len(shown)
            # A model that is sure of a class that the data lack says nothing about the others.
            sums = total[:, places].sum(1, keepdim=True)
            total[:, places] = torch.where(sums == 0, 1 / len(places), total[:, places] / sums)
            return total

        return scorer

    def precision(self, device: torch.device) -> str:
        return "its own"

    def prepared(self, images: Tensor, task: Task) -> Tensor:
        """uint8 images (B, C, H, W) of the data as the model takes them, float32 or uint8."""
        card, size = self.card, (task.height, task.width)
        pixels = images.float()
        if task.channels == 1 and images.shape[1] == 3:
            pixels = (pixels * pixels.new_tensor(LUMA)[:, None, None]).sum(1, keepdim=True)
        pixels = pixels.expand(-1, task.channels, -1, -1)
        if card.channels == "bgr":
            pixels = pixels.flip(1)
        if pixels.shape[2:] != size:
            pixels = F.interpolate(pixels, size, mode="bilinear", antialias=True)
        if self.graph is not None and self.graph.raw:
            pixels = pixels.round().to(torch.uint8)
        else:
            pixels = pixels / 255 if card.scale == 1 else pixels
            mean, std = (pixels.new_tensor(values).reshape(-1, 1, 1) for values in (card.mean, card.std))
            pixels = (pixels - mean) / std
        nhwc = card.layout == "nhwc" or (self.graph is not None and self.graph.nhwc(card.layout))
        return pixels.permute(0, 2, 3, 1) if nhwc else pixels

    def _outputs(self, pixels: Tensor) -> Tensor:
        """What the model gives for prepared images, (B, outputs)."""
        try:
            rows = self.answer(pixels.contiguous())
        except FerdistError:
            raise
        except Exception as error:  # whatever a model of somebody else raises
            shape = tuple(pixels.shape)
            raise RunError(f"{self.name}: it fails on images {shape}: {reason_of(error)}") from error
        wanted = (len(pixels), len(self.card.classes))
        if not isinstance(rows, Tensor) or rows.flatten(1).shape != wanted:
            given = tuple(rows.shape) if isinstance(rows, Tensor) else f"a {type(rows).__name__}"
            raise RunError(
                f"{self.name}: for {wanted[0]} images it gives {given}, and its classes are {wanted[1]}"
            )
        return rows.flatten(1).float()

    def _probabilities(self, rows: Tensor) -> Tensor:
        sums = rows.sum(1)
        look_so = bool((rows >= 0).all()) and bool(((sums - 1).abs() <= SUM).all())
        if self.card.output == "logits":
            if look_so:
                raise RunError(f"{self.name}: its outputs are probabilities, not logits: say so (output)")
            return rows.softmax(1)
        if not look_so and torch.isfinite(rows).all():
            raise RunError(f"{self.name}: its outputs are no probabilities: set output to logits")
        return rows


def _from_onnx(path: Path, card: Card) -> ExternalModel:
    graph = read_graph(path, card.output_name)
    if not card.classes:
        card = replace(card, classes=_own_classes(graph, path), output="probabilities")

    def answer(pixels: Tensor) -> Tensor:
        return torch.from_numpy(graph.run(pixels.cpu().numpy()))

    identity = {"weights": path.name, "weights_sha256": graph.sha256}
    return ExternalModel(card.name or path.stem, card, answer, identity, graph=graph)


def _own_classes(graph: Graph, path: Path) -> tuple[str, ...]:
    """The classes that `ferdist export` writes into the metadata."""
    try:
        return msgspec.convert(json.loads(graph.metadata["classes"]), tuple[str, ...])
    except (KeyError, ValueError, RecursionError):
        raise ConfigError(
            f"{path}: what its outputs are is not known: give --classes, or a card {path.stem}.yaml beside it"
        ) from None


def _from_module(model: str, card: Card, device: torch.device, trust_code: bool) -> ExternalModel:
    module, _, name = model.partition(":")
    if not trust_code:
        raise ConfigError(
            f"{model}: this runs the code of the module {module!r}: give --trust-code if you trust it"
        )
    if not card.classes:
        raise ConfigError(f"{model}: what its outputs are is not known: give --classes, or --card FILE.yaml")
    found = import_module(module, model)
    try:
        made = getattr(found, name)
        if not isinstance(made, nn.Module):
            made = made()
    except Exception as error:
        raise ConfigError(f"{model}: {name!r} makes no model: {reason_of(error)}") from error
    if not callable(made):
        raise ConfigError(f"{model}: it returns a {type(made).__name__}, neither a module nor a function")
    network = made.to(device).eval() if isinstance(made, nn.Module) else None
    digest = hashlib.sha256()
    for key, tensor in (network.state_dict() if network else {}).items():
        digest.update(key.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    identity = {"weights": model, "weights_sha256": digest.hexdigest() if network else ""}
    label = card.name or name
    if not NAME.fullmatch(label):
        raise ConfigError(f"{model}: give it a plain name in its card: {NAME_RULE}")
    return ExternalModel(label, card, made, identity, network=network)
