"""A run's folder: its config, its state in words, and who may write to it."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypedDict

import msgspec
import yaml

from ferdist.config import RECORD_KEY, RESUME_KEYS, Config, differences, load_config, read_yaml, to_dict
from ferdist.errors import RunError
from ferdist.io import LOCK, held, locked, read_json, sha256, write_json, write_text, writing

PROGRESS_KEYS: Final = ("step", "total_steps", "epoch", "world_size")
"""Of status.json: how far the run is."""


class Status(TypedDict, total=False):
    """The content of status.json."""

    state: str
    reason: str | None
    step: int
    total_steps: int
    epoch: float
    world_size: int
    pid: int
    host: str
    updated: str


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """Paths inside a run's folder."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved config, with the environment of its last start."""
        return self.path / "config.yaml"

    @property
    def status(self) -> Path:
        """State in words: running, finished, preempted or failed."""
        return self.path / "status.json"

    @property
    def metrics(self) -> Path:
        """One JSON object a line; the truth that TensorBoard shows."""
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        """Event files."""
        return self.path / "tb"

    @property
    def checkpoints(self) -> Path:
        """Training states and the best weights."""
        return self.path / "checkpoints"

    @property
    def predictions(self) -> Path:
        """Probabilities per sample of each evaluation."""
        return self.path / "predictions"

    @property
    def results(self) -> Path:
        """All evaluations."""
        return self.path / "results.json"

    def contents(self) -> tuple[Path, ...]:
        """All that a training and its evaluations may write into the folder."""
        own = (self.config, self.status, self.metrics, self.tensorboard, self.checkpoints)
        return (*own, self.predictions, self.results, self.path / LOCK, self.path / "profile")

    @contextmanager
    def updating(self) -> Iterator[None]:
        """Hold results.json and predictions/ against other evaluations, which wait for their turn.

        Raises:
            RunError: if the folder cannot be written.
        """
        with ExitStack() as stack:
            with writing(self.results):
                stack.enter_context(held(self.path / ".results.lock", wait=True))
            yield

    def remove_predictions(self, name: str) -> None:
        """Remove a file below predictions/; a results.json, which may be anyone's, names no other one."""
        path = self.predictions / name
        if path.is_file() and path.resolve().is_relative_to(self.predictions.resolve()):
            path.unlink()

    def set_status(self, state: str, reason: str | None = None, **details: Any) -> None:
        """Write status.json: a state of ``running``, ``finished``, ``preempted`` or ``failed``, and why."""
        status = {
            "state": state,
            "reason": reason,
            **details,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "updated": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        try:
            write_json(self.status, status)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not self.status.exists():
                raise
            # A full disk has no room for a second file, but the old one's block can be written again.
            self._overwrite_status(json.dumps(status).encode())

    def _overwrite_status(self, content: bytes) -> None:
        with self.status.open("rb+", buffering=0) as file:
            file.write(content)
            file.truncate()

    def state(self) -> str | None:
        """The state that status.json tells, None where there is none."""
        return self.stored_status().get("state")

    def progress(self) -> dict[str, Any]:
        """How far the run is by status.json: what goes with a new state that nobody counted steps for."""
        stored: dict[str, Any] = {**self.stored_status()}
        return {key: stored[key] for key in PROGRESS_KEYS if key in stored}

    def stored_status(self) -> Status:
        """The content of status.json, empty where there is none or it is damaged."""
        try:
            return msgspec.convert(read_json(self.status), Status)
        except (OSError, ValueError):
            return {}

    def stored_config(self) -> Config:
        """The config that the run was started with.

        Raises:
            RunError: if this is not a run folder.
        """
        if self.path.is_file():
            onnx = "; `ferdist evaluate` alone takes ONNX files" if self.path.suffix == ".onnx" else ""
            raise RunError(f"{self.path}: neither a run folder nor a .safetensors file{onnx}")
        if not self.config.is_file():
            raise RunError(f"{self.path}: not a run folder: it has no config.yaml")
        return load_config(self.config)

    def stored_environment(self) -> dict[str, Any]:
        """The environment recorded at the last start, empty where there is none.

        Raises:
            ConfigError: if config.yaml cannot be read.
        """
        environment = read_yaml(self.config).get(RECORD_KEY)
        return environment if isinstance(environment, dict) else {}

    def write_config(self, config: Config | dict[str, Any], environment: dict[str, Any]) -> None:
        """Write config.yaml, which `ferdist train` also takes as a config if it is a whole one."""
        whole = to_dict(config) if isinstance(config, Config) else config
        values = {**whole, RECORD_KEY: environment}
        write_text(self.config, yaml.safe_dump(values, sort_keys=False))

    def config_checksum(self) -> int:
        """Below 2**63: which start wrote config.yaml, as far as its content tells; 0 where there is none."""
        try:
            return int(sha256(self.config)[:15], 16)
        except OSError:
            return 0


@contextmanager
def claim(config: Config, beton_sha256: str) -> Iterator[RunFolder]:
    """Take the run's folder for writing.

    Raises:
        RunError: if another process writes to it, or it belongs to another config or other data.
    """
    folder = RunFolder(Path(config.run_dir))
    busy = "another process is training in this run folder: wait for it, or set run_dir"
    with locked(folder.path, "run folder", busy=busy, instead="set run_dir to another one"):
        for leftover in folder.checkpoints.glob(".*.tmp"):  # of a process that died while it wrote
            leftover.unlink(missing_ok=True)
        _check_owner(folder, config, beton_sha256)
        yield folder


def _check_owner(folder: RunFolder, config: Config, beton_sha256: str) -> None:
    if not folder.config.exists():
        return
    if config.train.resume == "never":
        raise RunError(f"{folder.path}: it holds a run and train.resume is never: set another run_dir")
    different = differences(folder.stored_config(), config, RESUME_KEYS)
    stored = folder.stored_environment().get("beton_sha256")
    if stored != beton_sha256:
        different.append(f"content of {config.data.path}: {str(stored)[:12]} -> {beton_sha256[:12]}")
    if different:
        raise RunError(
            f"{folder.path}: this run folder belongs to another config ({'; '.join(different)}): "
            "set another run_dir or remove the folder"
        )
