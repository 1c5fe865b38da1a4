"""Expressions of the faces in pictures."""

from __future__ import annotations

import csv
import hashlib
import io
import math
import os
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn

from ferdist.data.record import Images
from ferdist.errors import ConfigError, DataError, RunError, printable, reason_of
from ferdist.evaluation.model import TrainedModel
from ferdist.io import MIB, atomic_path, open_untrusted, writing
from ferdist.table import Number, Table
from ferdist.use.detect import Box, Detector, choose_detector, detector_name, find_faces, planes_of
from ferdist.use.pictures import Picture, find_pictures, read_picture

SMALLEST_ANNOTATED: Final = 240
"""Pixels of the longer side of an annotated picture, at least, so that the class at a face can be read."""
PIXELS_AT_ONCE: Final = 2**22
"""Most pixels that the network gets at once, whatever the batch size: each may take hundreds of bytes."""
EDGES: Final = ("left", "top", "right", "bottom")
"""Columns of a box in a csv file."""
TABLE_LIMIT: Final = 1024 * MIB
"""Largest csv file that is continued: of some five million faces."""
NO_FACE: Final = "no face found"
WHOLE_IMAGE: Final = "whole-image"
"""In a csv file: the detector, where there was none."""
DIGITS: Final = 16
"""Of the weights' checksum in a csv file."""


@dataclass(frozen=True)
class Face:
    """A face and what the model makes of it.

    Attributes:
        box: left, top, right, bottom in pixels of the upright file, right and bottom exclusive.
        probabilities: float32 (K,), in the order of the model's classes.
    """

    box: Box
    probabilities: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Result:
    """A file's faces, largest first, or why there are none; ``failed`` if it could not be read."""

    path: Path
    faces: tuple[Face, ...]
    note: str | None = None
    failed: bool = False


@dataclass(frozen=True)
class _Seen:
    path: Path
    annotated: tuple[Picture, Path] | None
    boxes: list[Box]
    crops: list[Images]
    note: str | None = None
    failed: bool = False


def predict_pictures(
    trained: TrainedModel,
    paths: Sequence[Path],
    *,
    whole_image: bool = False,
    batch_size: int = 64,
    out: Path | None = None,
    done: Collection[str] = (),
    detector: str = "auto",
) -> Iterator[Result]:
    """Find the faces in pictures and classify them, as docs/use.md describes.

    Args:
        trained: the model.
        paths: image files, and folders to search for such.
        whole_image: every picture is a face already.
        batch_size: number of faces, or of pictures without any, that wait for the network at most.
        out: folder for annotated pictures (PNG, named like the file and under the same folders).
        done: files, by their paths, that are passed over.
        detector: see `choose_detector`.

    Yields:
        A result for each file, in order; a path that cannot be read is a failed result.

    Raises:
        ConfigError: if the batch size is not positive, the model's input is not square, ``out`` is one of the
            folders to search, or two annotated pictures would have the same name.
        RunError: if an annotated picture cannot be written.
    """
    task = trained.card.task
    if batch_size < 1:
        raise ConfigError(f"--batch-size is {batch_size}: it must be at least 1")
    if task.height != task.width or task.channels not in (1, 3):
        raise ConfigError(
            f"the model takes {task.channels}x{task.height}x{task.width} images: "
            "predict needs square ones with 1 or 3 channels"
        )
    if out is not None and out.is_dir() and any(path.is_dir() and out.samefile(path) for path in paths):
        raise ConfigError(f"--out is {out}: that is the folder of the pictures itself: give another folder")
    detect = None if whole_image else choose_detector(detector)
    taken: set[Path] = set()
    waiting: list[_Seen] = []
    for path in paths:
        try:
            found = find_pictures(path, out)
        except DataError as error:
            found = []
            waiting.append(_Seen(path, None, [], [], str(error), failed=True))
        for file, name in found:
            target = None if out is None else out / name.with_name(f"{name.name}.png")
            if target is not None and target in taken:
                raise ConfigError(f"{target}: two pictures would be written there: predict one at a time")
            if target is not None:
                taken.add(target)
            if str(file) in done:
                continue
            try:
                waiting.append(_look(trained, file, target, detect))
            except DataError as error:
                waiting.append(_Seen(file, None, [], [], str(error), failed=True))
            if max(len(waiting), sum(len(seen.crops) for seen in waiting)) >= batch_size:
                yield from _classify(trained, waiting, batch_size)
                waiting = []
    yield from _classify(trained, waiting, batch_size)


def to_json(result: Result, classes: Sequence[str]) -> list[dict[str, Any]]:
    """An entry for each face, or one that says why there is none.

    ``file``, ``box``, ``class``, ``probabilities`` by class, ``note`` (None where there is a face) and
    ``failed``.
    """
    none: dict[str, Any] = {"file": str(result.path), "box": None, "class": None, "probabilities": None}
    none |= {"note": result.note, "failed": result.failed}
    entries = [
        {
            **none,
            "box": list(face.box),
            "class": classes[int(face.probabilities.argmax())],
            "probabilities": dict(zip(classes, face.probabilities.tolist(), strict=True)),
        }
        for face in result.faces
    ]
    return entries or [none]


def made_with(model: str, trained: TrainedModel, detector: str, whole_image: bool) -> dict[str, str]:
    """What the rows of a table depend on, by column.

    Args:
        model: as it is given on the command line.
        trained: the model.
        detector, whole_image: see `predict_pictures`.

    Returns:
        ``model``; ``weights``: the beginning of a SHA-256 of them; ``detector``: ``whole-image`` without one.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(trained.network.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().numpy().tobytes())
    found_by = WHOLE_IMAGE if whole_image else detector_name(detector)
    return {"model": model, "weights": digest.hexdigest()[:DIGITS], "detector": found_by}


class FaceTable:
    """A csv file with a row for each face, or for a picture without one, that grows with the results.

    It goes on where an earlier one stopped: pictures that failed are tried again, and so is the last one, as
    the file may not have all of it.

    Args:
        path: of the csv file, new or made with the same.
        pictures: files and folders that are asked for; rows of others stay as they are.
        made_with: what its rows depend on (see `made_with`); columns hold it.
        classes: of the model.

    Attributes:
        done: files, by their paths, that it holds.

    Raises:
        RunError: if there is a file that is not such a table, or was made with something else.
    """

    def __init__(
        self, path: Path, pictures: Collection[Path], made_with: Mapping[str, str], classes: Sequence[str]
    ) -> None:
        self.path, self._made_with, self._classes = path, made_with, classes
        self._head = ["file", *EDGES, "expression", *classes, "note", "failed", *made_with]
        rows = self._read() if path.exists() else []
        again = {row[0] for row in rows if row[self._head.index("failed")] == str(True)}
        again |= {row[0] for row in rows[-1:]}
        again = {file for file in again if not {Path(file), *Path(file).parents}.isdisjoint(pictures)}
        kept = [row for row in rows if row[0] not in again]
        self.done = {row[0] for row in kept}
        with writing(path), atomic_path(path) as temporary:
            self._write(temporary, [self._head, *kept])

    def add(self, result: Result) -> None:
        """Add the rows of a file, in one piece."""
        with writing(self.path):
            self._write(self.path, list(self._rows(result)))

    def _rows(self, result: Result) -> Iterator[list[Any]]:
        ends = [result.note or "", result.failed, *self._made_with.values()]
        for face in result.faces:
            best = self._classes[int(face.probabilities.argmax())]
            shares = (f"{share:.4f}" for share in face.probabilities)
            yield [result.path, *face.box, best, *shares, *ends]
        if not result.faces:
            yield [result.path, *[""] * (len(self._head) - 1 - len(ends)), *ends]

    def _read(self) -> list[list[str]]:
        """The whole rows, without the head."""
        try:
            with open_untrusted(self.path, TABLE_LIMIT) as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
                whole = file.read(1) == b"\n"
                file.seek(0)
                lines = io.TextIOWrapper(file, "utf-8", "surrogateescape", newline="")
                rows = [row for row in csv.reader(lines) if row]
        except (OSError, csv.Error) as error:
            raise RunError(f"{self.path}: cannot be read: {reason_of(error)}; give another --csv") from None
        if rows and not (whole and len(rows[-1]) == len(self._head)):  # it was cut
            rows.pop()
        if not rows or rows[0] != self._head or any(len(row) != len(self._head) for row in rows):
            raise RunError(
                f"{self.path}: its columns are not those of a table by {self._made_with['model']}: give "
                "another --csv, or remove the file"
            )
        for row in rows[1:]:
            for (name, own), other in zip(self._made_with.items(), row[-len(self._made_with) :], strict=True):
                if other != own:
                    raise RunError(
                        f"{self.path}: made with {name} {other}, not {own}: give another --csv, or remove "
                        "the file"
                    )
        return rows[1:]

    @staticmethod
    def _write(path: Path, rows: Sequence[Sequence[Any]]) -> None:
        text = io.StringIO(newline="")
        csv.writer(text).writerows(rows)
        with path.open("ab") as file:
            file.write(text.getvalue().encode("utf-8", "surrogateescape"))


def print_results(results: Sequence[Result], classes: Sequence[str]) -> None:
    """Print a table on stdout: padded columns on a terminal, else plain lines with tabs.

    Args:
        results: of `predict_pictures`; failed ones are left out.
        classes: of the model.
    """
    rows = tuple(row for result in results if not result.failed for row in _rows(result, classes))
    table = Table("", ("file", "box", "expression", "probability", "next"), rows)
    if rows and sys.stdout.isatty():
        print(table.text())
    else:
        print(*("\t".join(map(printable, row)) for row in (table.head, *rows)), sep="\n")


def progress_bar() -> Progress:
    """A bar on stderr with a count and a rate, where that is a terminal."""
    speed = TaskProgressColumn(show_speed=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), speed)
    console = Console(stderr=True)
    return Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty())


def _rows(result: Result, classes: Sequence[str]) -> Iterator[tuple[str, ...]]:
    if not result.faces:
        yield str(result.path), "", result.note or "", "", ""
    for face in result.faces:
        best, second = face.probabilities.argsort()[::-1][:2]
        yield (
            str(result.path),
            " ".join(map(str, face.box)),
            classes[best],
            Number(f"{face.probabilities[best]:.2f}"),
            f"{classes[second]} {face.probabilities[second]:.2f}",
        )


def _look(trained: TrainedModel, path: Path, target: Path | None, detect: Detector | None) -> _Seen:
    """Read a picture and cut out its faces, uint8 (C, H, W) each; a DataError if that fails.

    Without a detector all of it is a face.
    """
    task = trained.card.task
    picture = read_picture(path)
    annotated = None if target is None else (picture, target)
    size = (task.width, task.height)
    if detect is None or (picture.size == size and (task.channels == 3 or picture.is_gray())):
        whole = picture.image.resize(size, Image.Resampling.BILINEAR)
        crop = planes_of(whole, task.channels)
        return _Seen(path, annotated, [(0, 0, *picture.size)], [crop])
    found = find_faces(detect, picture.image, path)
    boxes = [face.clipped(*picture.image.size) for face in found]
    scaled = [tuple(round(edge * picture.scale) for edge in box) for box in boxes]
    crops = [face.crop(picture.image, task.channels, task.width) for face in found]
    note = None if boxes else f"{NO_FACE} (for face crops, use --whole-image)"
    return _Seen(path, annotated, scaled, crops, note)  # type: ignore[arg-type]


def _classify(trained: TrainedModel, waiting: Sequence[_Seen], batch_size: int) -> Iterator[Result]:
    crops = [crop for seen in waiting for crop in seen.crops]
    at_once = max(1, min(batch_size, PIXELS_AT_ONCE // (trained.card.task.height * trained.card.task.width)))
    rows = [
        answer(trained, np.stack(crops[start : start + at_once])) for start in range(0, len(crops), at_once)
    ]
    answers = iter(np.concatenate(rows) if rows else ())
    for seen in waiting:
        faces = tuple(Face(box, next(answers)) for box in seen.boxes)
        if seen.annotated is not None:
            _annotate(*seen.annotated, faces, trained.card.classes)
        yield Result(seen.path, faces, seen.note, seen.failed)


def answer(trained: TrainedModel, crops: Images) -> npt.NDArray[np.float32]:
    """uint8 (N, C, H, W) to probabilities (N, K), in the precision that evaluation uses."""
    device = next(trained.network.parameters()).device
    rows = trained.scorer(None, device)(torch.from_numpy(crops).to(device))
    if not torch.isfinite(rows).all():
        raise DataError("the network's output is not finite: these weights cannot be used")
    return np.asarray(rows.cpu().numpy())


def draw_faces(
    image: Image.Image, faces: Sequence[Face], classes: Sequence[str], scale: float = 1.0
) -> Image.Image:
    """Draw a frame and the class at each face; ``scale`` takes the boxes' pixels to the image's."""
    draw = ImageDraw.Draw(image)
    thick = max(1, max(image.size) // 400)
    font = ImageFont.load_default(max(10, max(image.size) // 50))
    for face in faces:
        left, top, right, bottom = (round(edge * scale) for edge in face.box)
        draw.rectangle((left, top, right - 1, bottom - 1), outline=(255, 200, 0), width=thick)
        best = int(face.probabilities.argmax())
        text = f"{printable(classes[best])} {100 * face.probabilities[best]:.0f} %"
        x0, y0, x1, y1 = draw.textbbox((left, max(0, top)), text, font=font)
        draw.rectangle((x0 - 2, y0 - 2, x1 + 2, y1 + 2), fill=(0, 0, 0))
        draw.text((left, max(0, top)), text, fill=(255, 200, 0), font=font)
    return image


def _annotate(picture: Picture, target: Path, faces: Sequence[Face], classes: Sequence[str]) -> None:
    """Write the picture, enlarged where it is too small for words, with a frame and a class at each face."""
    enlarged = math.ceil(SMALLEST_ANNOTATED / max(picture.image.size))
    image = picture.image.resize([enlarged * side for side in picture.image.size], Image.Resampling.NEAREST)
    draw_faces(image, faces, classes, enlarged / picture.scale)
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(target) as temporary:
            image.save(temporary, "PNG")
