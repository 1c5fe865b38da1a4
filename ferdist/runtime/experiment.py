"""experiment.json: which runs an experiment has, as the launchers write it and reports read it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from ferdist.config import Config, from_dict
from ferdist.errors import RunError, reason_of
from ferdist.io import read_json

SCHEMA: Final = 1
FILE: Final = "experiment.json"


@dataclass(frozen=True)
class Trial:
    """One run of an experiment.

    Attributes:
        fold: that is held out, where folds are held out in turn.
        seed: of the run.
        part: what the experiment calls the config that the run has.
    """

    fold: int | None
    seed: int
    part: str = ""

    def __post_init__(self) -> None:
        if ".." in Path(self.part).parts or Path(self.part).is_absolute():
            raise ValueError(f"part {self.part!r} leads out of the experiment's folder")

    @property
    def name(self) -> str:
        """Of the run's folder, seen from the experiment's."""
        name = f"seed-{self.seed}" if self.fold is None else f"fold-{self.fold:02d}-seed-{self.seed}"
        return f"{self.part}/{name}" if self.part else name


@dataclass(frozen=True)
class Part:
    """What some runs of an experiment share.

    Attributes:
        config: with seed 0 and no run_dir (nor the fold that the trials hold out in turn).
        beton_sha256: checksum of the data.
    """

    config: Config
    beton_sha256: str


@dataclass(frozen=True)
class StoredExperiment:
    """The content of experiment.json.

    Attributes:
        parts: the experiment's configs by name; an only one is called "".
        trials: its runs.
        jobs: the jobs of each run by its name, the newest last.
    """

    parts: dict[str, Part]
    trials: list[Trial]
    jobs: dict[str, list[dict[str, Any]]]


def read_experiment(folder: Path) -> StoredExperiment:
    """Read an experiment's file.

    Raises:
        RunError: if it cannot be read, or is of another schema.
    """
    path = folder / FILE
    try:
        stored = read_json(path)
        if stored["schema"] != SCHEMA:
            raise ValueError(f"its schema is {stored['schema']}, and this version reads {SCHEMA}")
        parts = {
            name: Part(from_dict(part["config"], path), part["beton_sha256"])
            # A file from before there were parts holds the only one's values itself.
            for name, part in stored.get("parts", {"": stored}).items()
        }
        trials = msgspec.convert(list(stored["cells"].values()), list[Trial])
        jobs = msgspec.convert(stored["jobs"], dict[str, list[dict[str, Any]]])
        return StoredExperiment(parts, trials, jobs)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{path}: unreadable experiment file: {reason_of(error)}") from None
