"""Expressions of the faces in pictures."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ferdist.data.facebox import crop_face, detect_faces
from ferdist.data.record import Images
from ferdist.errors import ConfigError, DataError, printable
from ferdist.evaluation.model import TrainedModel
from ferdist.io import atomic_path, writing
from ferdist.table import Number, Table
from ferdist.use.pictures import Picture, find_pictures, read_picture

Box = tuple[int, int, int, int]

SMALLEST_FACE: Final = 1 / 12
"""Side of the smallest face that is looked for, as a share of the picture's shorter side."""
SMALLEST_ANNOTATED: Final = 240
"""Pixels of the longer side of an annotated picture, at least, so that the class at a face can be read."""
PIXELS_AT_ONCE: Final = 2**22
"""Most pixels that the network gets at once, whatever the batch size: each may take hundreds of bytes."""
NO_FACE: Final = "no face found"


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
) -> Iterator[Result]:
    """Find the faces in pictures and classify them, as docs/use.md describes.

    Args:
        trained: the model.
        paths: image files, and folders to search for such.
        whole_image: every picture is a face already.
        batch_size: number of faces, or of pictures without any, that wait for the network at most.
        out: folder for annotated pictures (PNG, named like the file and under the same folders).

    Yields:
        A result for each file, in order; a path that cannot be read is a failed result.

    Raises:
        ConfigError: if the batch size is not positive, the model's input is not square, or two annotated
            pictures would have the same name.
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
            try:
                waiting.append(_look(trained, file, target, whole_image))
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


def _look(trained: TrainedModel, path: Path, target: Path | None, whole_image: bool) -> _Seen:
    """Read a picture and cut out its faces, uint8 (C, H, W) each; a DataError if it cannot be read."""
    task = trained.card.task
    picture = read_picture(path)
    annotated = None if target is None else (picture, target)
    size = (task.width, task.height)
    if whole_image or (picture.size == size and (task.channels == 3 or picture.is_gray())):
        whole = picture.image.resize(size, Image.Resampling.BILINEAR)
        crop = _planes(whole, task.channels)
        return _Seen(path, annotated, [(0, 0, *picture.size)], [crop])
    boxes = detect_faces(np.asarray(picture.image.convert("L")), SMALLEST_FACE)
    planes = _planes(picture.image, task.channels)
    crops = [np.stack([crop_face(plane, box, task.width) for plane in planes]) for box in boxes]
    scaled = [tuple(round(edge * picture.scale) for edge in box) for box in boxes]
    note = None if boxes else f"{NO_FACE} (for face crops, use --whole-image)"
    return _Seen(path, annotated, scaled, crops, note)  # type: ignore[arg-type]


def _planes(image: Image.Image, channels: int) -> Images:
    """uint8 (C, H, W): gray, or the three colours."""
    if channels == 1:
        return np.asarray(image.convert("L"))[None]
    return np.asarray(image).transpose(2, 0, 1)


def _classify(trained: TrainedModel, waiting: Sequence[_Seen], batch_size: int) -> Iterator[Result]:
    crops = [crop for seen in waiting for crop in seen.crops]
    at_once = max(1, min(batch_size, PIXELS_AT_ONCE // (trained.card.task.height * trained.card.task.width)))
    rows = [
        _answer(trained, torch.from_numpy(np.stack(crops[start : start + at_once])))
        for start in range(0, len(crops), at_once)
    ]
    answers = iter(np.concatenate(rows) if rows else ())
    for seen in waiting:
        faces = tuple(Face(box, next(answers)) for box in seen.boxes)
        if seen.annotated is not None:
            _annotate(*seen.annotated, faces, trained.card.classes)
        yield Result(seen.path, faces, seen.note, seen.failed)


def _answer(trained: TrainedModel, images: Tensor) -> npt.NDArray[np.float32]:
    """uint8 (N, C, H, W) to probabilities (N, K), in the precision that evaluation uses."""
    device = next(trained.network.parameters()).device
    rows = trained.scorer(None, device)(images.to(device))
    if not torch.isfinite(rows).all():
        raise DataError("the network's output is not finite: these weights cannot be used")
    return np.asarray(rows.cpu().numpy())


def _annotate(picture: Picture, target: Path, faces: Sequence[Face], classes: Sequence[str]) -> None:
    """Write the picture, enlarged where it is too small for words, with a frame and a class at each face."""
    enlarged = math.ceil(SMALLEST_ANNOTATED / max(picture.image.size))
    image = picture.image.resize([enlarged * side for side in picture.image.size], Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(image)
    thick = max(1, max(image.size) // 400)
    font = ImageFont.load_default(max(10, max(image.size) // 50))
    for face in faces:
        left, top, right, bottom = (round(edge / picture.scale * enlarged) for edge in face.box)
        draw.rectangle((left, top, right - 1, bottom - 1), outline=(255, 200, 0), width=thick)
        best = int(face.probabilities.argmax())
        text = f"{printable(classes[best])} {100 * face.probabilities[best]:.0f} %"
        x0, y0, x1, y1 = draw.textbbox((left, max(0, top)), text, font=font)
        draw.rectangle((x0 - 2, y0 - 2, x1 + 2, y1 + 2), fill=(0, 0, 0))
        draw.text((left, max(0, top)), text, fill=(255, 200, 0), font=font)
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(target) as temporary:
            image.save(temporary, "PNG")
