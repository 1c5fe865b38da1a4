"""The typed configuration of a run: dataclass defaults < YAML file < key=value overrides."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec
import yaml

from ferdist.augment.config import AugmentConfig
from ferdist.data.folds import Holdout
from ferdist.errors import ConfigError, reason_of
from ferdist.io import MIB, read_untrusted
from ferdist.models.config import ModelConfig

OWN_LABELS: Final = "own"
LABELS = (OWN_LABELS, "ferplus-majority", "ferplus-soft", "ferplus-voted")
CACHES = ("auto", "none", "device")
LOG_LIMIT: Final = 50
"""Most steps between two readings of the device's counters: a non-finite gradient is noticed by then."""

_CHOICES: Final[dict[str, tuple[Any, ...]]] = {
    "optimizer": ("sgd", "adamw"),
    "schedule": ("onecycle", "cosine"),
    "class_weights": ("none", "balanced", "sqrt"),
    "precision": ("auto", "bf16", "fp16", "fp32"),
    "tta": ("none", "flip", "ten-crop"),
    "resume": ("auto", "never"),
    "select": ("auto", "best", "last"),
    "compile": ("auto", True, False),
}

SHIPPED: Final = Path(__file__).parent / "configs"
"""The configs that ship."""

BASE_KEY = "base"
"""Top-level key of a YAML file that names, relative to it, the file whose values it starts from."""

MOST_BASES: Final = 10
DEEPEST: Final = 20
"""Levels of mappings and lists in a config."""
MOST_VALUES: Final = 10_000
"""Keys and values in a config: lists of a checkpoint can share their items, which makes few bytes many."""

RECORD_KEY = "environment"
"""Top-level key under which a run's config.yaml records versions; it configures nothing."""

_FORMER: dict[str, dict[str, Any]] = {
    "model": {"gate": "sigmoid"},
    "train": {"attention_decay": True},
}
"""What the keys that came later stood at before: stored configs and cards without them mean these values."""

FREE_KEYS = (
    "run_dir",
    "data.path",
    "data.workers",
    "data.timeout",
    "data.cache",
    "data.stage",
    "train.checkpoint_seconds",
    "train.checkpoint_steps",
    "train.keep_checkpoints",
    "train.resume",
    "device",
    "profile",
)
"""Keys that may differ when a run resumes: they say where and how it runs, not what it computes."""

RESUME_KEYS = (*FREE_KEYS, "train.accumulate")
"""Keys that may differ when a run resumes, the last with a warning, as the number of processes may."""


@dataclass
class DataConfig:
    """What `data.*` in a config may say.

    Attributes:
        path: the beton file.
        fold: the fold that is held out as val, or nothing where the data's own splits are used.
        inner_fold: a second fold, held out as val in place of ``fold``, which nothing reads then: for
            choosing settings without the fold that will be scored (docs/protocol.md).
        val_share: share of the train split, [0, 0.5], that is held out of the training and validated on, so
            that settings are chosen without the data's own val: whole subjects, or groups of copies.
        soft_labels: predictions of teachers on the training samples (.npz files of ``ferdist evaluate --split
            train``, with commas between them): their mean is learned beside the labels, see
            ``train.soft_weight``.
        batch_size: samples in a step, over all ranks and micro-batches together.
        workers: loader threads per rank.
        timeout: seconds after which a loader that gives nothing is an error.
        labels: ``own``, ``ferplus-majority``, ``ferplus-soft`` or ``ferplus-voted`` (see
            ``ferdist.data.beton.labels``).
        cache: ``device`` reads the samples once and keeps them on the device; ``none`` reads each batch from
            the file; ``auto`` is ``device`` where the pixels fit 512 MiB. The batches are the same.
        stage: a folder on each host's own disk, such as ``$TMPDIR``: the beton is copied there, checked, and
            read from there. Empty: it is read where it is.
    """

    path: str = ""
    fold: int | None = None
    inner_fold: int | None = None
    val_share: float = 0.0
    soft_labels: str = ""
    batch_size: int = 128
    workers: int = 1
    timeout: float = 300.0
    labels: str = OWN_LABELS
    cache: str = "auto"
    stage: str = ""

    @property
    def holdout(self) -> Holdout:
        """What the run does not train on."""
        return Holdout(self.fold, self.inner_fold, self.val_share)

    def __post_init__(self) -> None:
        for key, number in (("batch_size", self.batch_size), ("workers", self.workers)):
            if number < 1:
                raise ConfigError(f"data.{key} is {number}: it must be at least 1")
        for key, fold in (("fold", self.fold), ("inner_fold", self.inner_fold)):
            if fold is not None and fold < 0:
                raise ConfigError(f"data.{key} is {fold}: it must be 0 or more, or null")
        if self.inner_fold is not None and self.fold in (None, self.inner_fold):
            raise ConfigError(
                f"data.inner_fold is {self.inner_fold} and data.fold is {self.fold}: "
                "the inner fold must differ from data.fold, which must be set"
            )
        if not 0.0 <= self.val_share <= 0.5:
            raise ConfigError(f"data.val_share is {self.val_share}: it must lie in [0, 0.5]")
        if self.val_share and self.fold is not None:
            raise ConfigError(
                f"data.val_share is {self.val_share} and data.fold is {self.fold}: hold out a share of "
                "train or a fold, not both; data.inner_fold is for choosing settings"
            )
        for key, value, allowed in (("labels", self.labels, LABELS), ("cache", self.cache, CACHES)):
            if value not in allowed:
                raise ConfigError(f"data.{key} is {value!r}: it must be one of {', '.join(allowed)}")
        if self.timeout <= 0:
            raise ConfigError(f"data.timeout is {self.timeout}: it must be more than 0 seconds")


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
        precision: ``auto`` is bf16 where the device gains from it, else fp16 on a GPU, else fp32.
        resolution: side of the images as a share of the data's, each with the share of steps that it begins
            at: ``[[0, 0.67], [0.5, 1]]`` trains the first half on smaller images. Empty: the data's own.
            Evaluation always sees the data's own size, so val says little before the last pair.
        channels_last: memory format of the convolutions.
        compile: torch.compile the network and the augmentation; ``auto`` does so on a GPU if the run
            is long enough to win back the minute that it takes.
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
    compile: bool | str = "auto"
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
                words = ", ".join(str(value).lower() for value in allowed)
                raise ConfigError(f"train.{key} is {getattr(self, key)!r}: it must be one of {words}")
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
        rising = all(a < b for a, b in itertools.pairwise([*starts, 1.0]))
        if self.resolution and not (len(starts) == len(self.resolution) and starts[0] == 0 and rising):
            raise ConfigError(
                f"train.resolution is {self.resolution}: give pairs [share of the steps, share of the side], "
                "in ascending order from 0 to below 1, such as [[0, 0.67], [0.5, 1]]"
            )

    def side(self, step: int, total_steps: int) -> float:
        """Side of the images at a step, 1 to ``total_steps``, as a share of the data's."""
        held = [share for start, share in self.resolution if start * total_steps < step]
        return held[-1] if held else 1.0


@dataclass
class Config:
    """Everything that defines a run.

    Attributes:
        run_dir: folder of the run; by default ``runs/`` and the config file's name, with the fold.
        seed: of the weights, the order of samples and the augmentation.
        device: ``auto``, ``cpu`` or ``cuda``.
        profile: record a few steps with torch's profiler, into ``profile/`` in the run's folder.
    """

    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    seed: int = 0
    device: str = "auto"
    run_dir: str = ""
    profile: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**31:
            raise ConfigError(f"seed is {self.seed}: it must lie in 0..2147483647")
        if self.train.select == "best" and self.data.fold is not None and self.data.inner_fold is None:
            raise ConfigError(
                "train.select is best and data.fold is set: that would pick an epoch on the fold that is "
                "scored; leave it at auto, or choose a schedule with data.inner_fold (docs/protocol.md)"
            )


Given = dict[str, tuple[Any, str]]
"""Values by their dotted keys, each with what gave it: a file, or an override."""

_TYPES: Final = {
    **{"int": "an integer", "float": "a number", "bool": "true or false", "str": "text"},
    **{"array": "a list", "Number out of range": "a finite number"},
}
"""How an error calls the types of values."""


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file over the defaults, then apply ``key=value`` overrides.

    Args:
        path: a config file, the config.yaml of a run, or the name of a config that ships.
        overrides: such as ``train.epochs=10``; values are parsed as YAML.

    Raises:
        ConfigError: for a missing file or invalid YAML, an unknown key (the nearest valid one is named),
            or a value of the wrong type or range.
    """
    found = find_config(path)
    if found is None:
        names = sorted(
            file.relative_to(SHIPPED).with_suffix("").as_posix() for file in SHIPPED.rglob("*.yaml")
        )
        raise ConfigError(f"{path}: no such config file; these ship: {', '.join(names)}")
    path = found
    given: Given = {}
    for origin, values in [*_yaml_chain(path), *_parse_overrides(overrides)]:
        given |= _given(values, origin)
    config = _to_config(given, path)
    if not config.run_dir:
        fold = "" if config.data.fold is None else f"-fold{config.data.fold}"
        fold += "" if config.data.inner_fold is None else f"-inner{config.data.inner_fold}"
        config.run_dir = str(Path("runs") / path.resolve().parent.name / f"{path.stem}{fold}")
    return config


def find_config(path: Path) -> Path | None:
    """The file at ``path``, or the config that ships as ``fer2013/base`` or ``configs/fer2013/base.yaml``."""
    places = (path, SHIPPED.parent / path, SHIPPED / f"{path}.yaml")
    return next((place for place in places if place.exists()), None)


class _Loader(yaml.SafeLoader):
    """YAML of plain values: no anchors, aliases, tags and dates, no infinite number, no key twice.

    What it takes for a number is one for `yaml.safe_dump`, too, which quotes strings that look like one.
    """

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012
    nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        self.nodes += 1
        plain = not (isinstance(event, yaml.AliasEvent) or event.anchor or getattr(event, "tag", None))
        if not plain or self.nodes > MOST_VALUES:
            problem = f"more than {MOST_VALUES} values" if plain else "anchors and tags are not allowed"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        mapping = super().construct_mapping(node, deep)
        if len(mapping) < len(node.value):
            raise yaml.MarkedYAMLError(problem="a key stands there twice", problem_mark=node.start_mark)
        return mapping


for _tag, _pattern, _first in (
    ("null", "~|null|Null|NULL|", "~nN"),
    ("bool", "(?i:yes|no|true|false|on|off)", "yYnNtTfFoO"),
    ("int", "[-+]?(0|[1-9][0-9]{0,17})", "-+0123456789"),
    ("float", r"[-+]?([0-9]{1,40}\.[0-9]{0,40}|\.[0-9]{1,40})([eE][-+][0-9]{1,2})?", "-+.0123456789"),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})\Z"), [*_first, ""]
    )


def read_yaml(path: Path) -> dict[str, Any]:
    """The keys and values of a YAML file, plain and of bounded size.

    Raises:
        ConfigError: if it cannot be read, or is not such a file.
    """
    try:
        values = _parsed(read_untrusted(path, MIB).decode("utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such config file") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as a config: {reason_of(error)}") from None
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: must hold keys and values, not a {type(values).__name__}")
    check_plain(values, str(path))
    return values


def _parsed(text: str) -> Any:
    """The content of YAML. Raises ValueError if it is not YAML as `_Loader` takes it."""
    try:
        return yaml.load(text, _Loader)
    except RecursionError:
        raise ValueError("invalid YAML: nested too deeply") from None
    except yaml.YAMLError as error:
        raise ValueError(f"invalid YAML: {' '.join(str(error).split())}") from None


def to_dict(config: Config) -> dict[str, Any]:
    """The config as nested plain values, for YAML and JSON."""
    return dataclasses.asdict(config)


def from_dict(values: dict[str, Any], origin: Path) -> Config:
    """The config that ``to_dict`` gave, in this version or an earlier one; ``origin`` is named in errors."""
    return _to_config(_given(_completed(values), str(origin)), origin)


def differences(old: Config, new: Config, free: Sequence[str] = FREE_KEYS) -> list[str]:
    """What differs between two configs, but for the ``free`` keys, as ``key: old -> new`` lines."""
    before, after = flatten(to_dict(old)), flatten(to_dict(new))
    return [
        f"{key}: {before.get(key)} -> {after.get(key)}"
        for key in sorted(before.keys() | after.keys())
        if key not in free and before.get(key) != after.get(key)
    ]


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one dict with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def check_plain(values: Any, origin: str) -> None:
    """Refuse values that are nested deeply, too many, or no text in Unicode.

    Args:
        values: of a config or what belongs to one, from outside.
        origin: is named in errors.

    Raises:
        ConfigError: if there is such a value.
    """
    waiting = [(values, 0)]
    for value, depth in waiting:
        if depth > DEEPEST or len(waiting) > MOST_VALUES:
            raise ConfigError(f"{origin}: more than {DEEPEST} levels or {MOST_VALUES} values: not a config")
        if isinstance(value, Mapping):
            waiting += [(item, depth + 1) for pair in value.items() for item in pair]
        elif isinstance(value, list | tuple):
            waiting += [(item, depth + 1) for item in value]
        elif isinstance(value, str) and any("\ud800" <= letter <= "\udfff" for letter in value):
            raise ConfigError(f"{origin}: holds half a character (a surrogate): not a config")


def _yaml_chain(path: Path, seen: tuple[Path, ...] = ()) -> list[tuple[str, dict[str, Any]]]:
    """The values of a file's bases, then its own."""
    values = read_yaml(path)
    if path.resolve() in seen:
        raise ConfigError(f"{path}: circular chain of `{BASE_KEY}` files")
    if len(seen) > MOST_BASES:
        raise ConfigError(f"{path}: more than {MOST_BASES} `{BASE_KEY}` files: put some together")
    if values.pop(RECORD_KEY, None) is not None:
        values = _completed(values)
    base = values.pop(BASE_KEY, None)
    chain = [] if base is None else _yaml_chain(path.parent / str(base), (*seen, path.resolve()))
    return [*chain, (str(path), values)]


def _completed(values: dict[str, Any]) -> dict[str, Any]:
    """The values of a whole stored config, with what a version before a key of them computed without it."""
    completed = dict(values)
    for section, former in _FORMER.items():
        if isinstance(values.get(section), dict):
            completed[section] = {**former, **values[section]}
    return completed


def _parse_overrides(overrides: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
    parsed = []
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise ConfigError(f"{override!r} is not an override: write key=value, such as train.epochs=10")
        check_plain(text, override)
        try:
            values = _parsed(text)
        except ValueError:
            raise ConfigError(f"{override!r}: invalid YAML: quote lists, 'key=[a, b]'") from None
        for part in reversed(key.split(".")):
            values = {part: values}
        parsed.append((override, values))
    return parsed


def _given(values: dict[str, Any], origin: str) -> Given:
    """Values that an origin gives for keys that there are."""
    check_plain(values, origin)
    known = flatten(to_dict(Config()))
    sections = {key.rpartition(".")[0] for key in known} - {""}
    given = {}
    for key, value in flatten(values).items():
        if key in sections:
            raise ConfigError(f"{origin}: {key} is a section with keys of its own and cannot be {value!r}")
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            by_name = [k for k in known if k.rpartition(".")[2] == key.rpartition(".")[2]]
            best = by_name[0] if by_name else near[0] if near else None
            hint = f"did you mean {best}?" if best else f"there are {', '.join(sorted(known))}"
            raise ConfigError(f"{origin}: unknown config key {key}: {hint}")
        number = isinstance(value, int | float) and not isinstance(value, bool)
        given[key] = (str(value) if number and isinstance(known[key], str) else value, origin)
    return given


def _to_config(given: Given, path: Path) -> Config:
    nested: dict[str, Any] = {}
    for key, (value, _) in given.items():
        *sections, name = key.split(".")
        functools.reduce(lambda inner, section: inner.setdefault(section, {}), sections, nested)[name] = value
    try:
        config = msgspec.convert(nested, Config, strict=False)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except msgspec.ValidationError as error:
        fault, _, place = str(error).partition(" - at `$.")
        place = place.rstrip("`")
        key = place.partition("[")[0]
        value, origin = given[key]
        types = fault.removeprefix("Expected `").partition("`")[0].split(" | ")
        wanted = " or ".join(_TYPES.get(name, name) for name in types)
        what = "it" if place == key else place
        raise ConfigError(f"{origin}: {key} is {value!r}: {what} must be {wanted}") from None
    for key, value in flatten(to_dict(config)).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{path}: {key} is {value}: it must be a finite number")
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise ConfigError(f"{path}: {key} does not fit into 64 bits")
    return config
