"""What a person watches: metrics.jsonl, TensorBoard and progress on stderr. Rank 0 only."""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TypedDict, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column
from torch.utils.tensorboard import SummaryWriter

from ferdist.config import Config, flatten, to_dict
from ferdist.errors import printable
from ferdist.runtime.folder import RunFolder
from ferdist.training.liveness import PREFIX

T = TypeVar("T")
_log = logging.getLogger(__name__)

PLAIN_LINE_SECONDS = 10.0
"""Where stderr is not a terminal, a line of training metrics at most this often."""


class Stopwatch:
    """Seconds in total and seconds waiting for batches, since the last reading."""

    def __init__(self) -> None:
        self.start, self.waited = time.perf_counter(), 0.0

    def timed(self, batches: Iterator[T]) -> Iterator[T]:
        """The same batches, with the time that each is waited for added up."""
        while True:
            before = time.perf_counter()
            batch = next(batches, None)
            self.waited += time.perf_counter() - before
            if batch is None:
                return
            yield batch

    def read(self, samples: int) -> dict[str, float]:
        """Images per second and the share of time spent waiting for batches, then start over."""
        elapsed = time.perf_counter() - self.start
        rates = {"rate/images_per_second": samples / elapsed, "rate/loader_wait": self.waited / elapsed}
        self.reset()
        return rates

    def reset(self) -> None:
        """Start over."""
        self.start, self.waited = time.perf_counter(), 0.0


class Monitor:
    """Records one run.

    Args:
        folder: of the run.
        config: of the run.
        step: the step that the run resumes from; later lines of metrics.jsonl are cut off.
        total_steps: of the run.
        seconds: what the run has taken before, over all its starts.
    """

    def __init__(
        self, folder: RunFolder, config: Config, step: int, total_steps: int, seconds: float
    ) -> None:
        self.folder, self.config = folder, config
        self.before, self.start = seconds, time.perf_counter()
        cut_back(folder.metrics, step)
        self.lines = folder.metrics.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(folder.tensorboard), purge_step=step + 1)
        self.console = Console(stderr=True, highlight=False)
        self.progress = Progress(
            BarColumn(bar_width=12),
            MofNCompleteColumn(table_column=Column(no_wrap=True, min_width=2 * len(str(total_steps)) + 1)),
            TimeRemainingColumn(table_column=Column(no_wrap=True, min_width=len("0:00:00"))),
            TextColumn("{task.fields[metrics]}", table_column=Column(no_wrap=True, overflow="ellipsis")),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.task = self.progress.add_task("training", total=total_steps, completed=step, metrics="")
        self.progress.start()
        self.total_steps = total_steps
        self.last_plain_line = 0.0

    @property
    def seconds(self) -> float:
        """Seconds that the run has taken, over all its starts."""
        return self.before + time.perf_counter() - self.start

    @property
    def board(self) -> SummaryWriter:
        """TensorBoard's events; a folder of them that was deleted is begun again."""
        if not self.folder.tensorboard.exists() and self.folder.config.exists():
            _log.warning(
                "%s: deleted during the run; what follows is written there again", self.folder.tensorboard
            )
            self._close_board()
            self._board = SummaryWriter(str(self.folder.tensorboard))
        return self._board

    def _close_board(self) -> None:
        with suppress(FileNotFoundError):  # deleted
            self._board.close()

    def record(self, step: int, epoch: float, values: dict[str, float]) -> None:
        """Write one line of metrics.jsonl, the same numbers to TensorBoard, and show them."""
        plain = {name: value if math.isfinite(value) else None for name, value in values.items()}
        line = {"step": step, "epoch": round(epoch, 4), "time": round(self.seconds, 3), **plain}
        self.lines.write(json.dumps(line) + "\n")
        self.lines.flush()
        for name, value in values.items():
            self.board.add_scalar(name, value, step)
        shown = "  ".join(f"{_short(name)} {value:.4g}" for name, value in values.items() if name in _SHOWN)
        self.show(step)
        if not shown:
            return
        self.progress.update(self.task, metrics=shown)
        evaluated = any(name.startswith("val/") for name in values)
        due = time.perf_counter() - self.last_plain_line > PLAIN_LINE_SECONDS
        if evaluated or (not self.console.is_terminal and due):
            self.console.print(f"step {step}/{self.total_steps}  epoch {epoch:.4g}  {shown}", soft_wrap=True)
            self.last_plain_line = time.perf_counter()

    def say(self, line: str) -> None:
        """Print a line above the progress bar."""
        self.console.print(printable(line), markup=False, soft_wrap=True)

    def show(self, step: int) -> None:
        """Move the progress bar."""
        self.progress.update(self.task, completed=step)

    def sync(self) -> None:
        """Flush metrics.jsonl to the disk: before a checkpoint, which must not be ahead of it."""
        self.lines.flush()
        os.fsync(self.lines.fileno())

    def images(self, grid: npt.NDArray[np.uint8], step: int) -> None:
        """Show a grid of augmented images, uint8 (H, W, 3), in TensorBoard."""
        self.board.add_image("augmented", grid, step, dataformats="HWC")

    def confusion(self, matrix: npt.NDArray[np.int64], classes: tuple[str, ...], step: int) -> None:
        """Show a confusion matrix (K, K), rows: true class, in TensorBoard."""
        from ferdist.charts import confusion_chart

        self.board.add_figure("val/confusion", confusion_chart(matrix, classes), step)

    def hyperparameters(self, metrics: dict[str, float]) -> None:
        """Show the config beside the final metrics in TensorBoard's HPARAMS tab."""
        plain = {
            key: value if isinstance(value, bool | int | float) else printable(str(value))
            for key, value in flatten(to_dict(self.config)).items()
        }
        self.board.add_hparams(plain, {f"final/{k}": v for k, v in metrics.items()}, run_name=".")

    def close(self) -> None:
        """Flush and close everything."""
        self.progress.stop()
        self.sync()
        self.lines.close()
        self._close_board()


_SHOWN = (
    "train/loss",
    "train/accuracy",
    "rate/images_per_second",
    "val/loss",
    "val/accuracy",
    "val/macro_f1",
)


def _short(name: str) -> str:
    return {"rate/images_per_second": "img/s"}.get(name, name.replace("/", " "))


class _Line(TypedDict):
    step: int


def cut_back(path: Path, step: int) -> None:
    """Drop the lines of metrics.jsonl after ``step``, the validation at it, and a half-written last line.

    The checkpoint at an epoch's end comes before its validation, which the resumed run does again.
    """
    if not path.exists():
        return
    keep = 0
    with path.open("rb+") as file:
        for line in file:
            try:
                entry: dict[str, Any] = json.loads(line)
                done = msgspec.convert(entry, _Line)["step"]
            except (ValueError, RecursionError):
                break
            validation = done == step and any(key.startswith(("val/", PREFIX)) for key in entry)
            if not line.endswith(b"\n") or done > step or validation:
                break
            keep += len(line)
        file.truncate(keep)
