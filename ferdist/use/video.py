"""Expressions of the faces in a video: each face is followed, its probabilities are smoothed over time."""

from __future__ import annotations

import csv
import math
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from ferdist.data.record import Images
from ferdist.errors import ConfigError, DataError, RunError, reason_of, tell
from ferdist.evaluation.model import TrainedModel
from ferdist.io import atomic_path, open_untrusted, scratch_folder, sync, writing
from ferdist.table import Number, Table
from ferdist.use import decode
from ferdist.use.detect import Box, choose_detector, find_faces
from ferdist.use.pictures import LONGEST, MOST_PIXELS
from ferdist.use.predict import Face, answer, draw_faces, progress_bar

SUFFIXES: Final = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm")
BEGINNINGS: Final = (
    (4, b"ftyp"),
    (4, b"moov"),
    (4, b"mdat"),
    (4, b"wide"),
    (0, b"RIFF"),
    (0, b"\x1a\x45\xdf\xa3"),
)
"""How files in these formats begin. Others, such as playlists, could make FFmpeg open other files."""
MOST_BYTES: Final = 64 * 2**30
PATIENCE: Final = 120.0
"""Seconds after which a frame that has not come is an error."""
CLAIMED_SHARE: Final = 0.9
"""Of the frames that a file claims: with fewer it is cut or damaged. Some formats only estimate them."""

SAME_FACE: Final = 0.3
"""Least intersection over union of a face's boxes in two frames."""
LOST: Final = 0.5
"""Seconds after which a face that is not found is given up."""
SMOOTHED: Final = 0.3
"""Time constant in seconds of the exponential average of a face's probabilities."""
MOST_LISTED: Final = 20


@dataclass
class Followed:
    """A face that is followed through a video.

    Attributes:
        number: from 1, in order of appearance.
        box: in the last frame that has it.
        probabilities: float64 (K,), smoothed up to that frame.
        first, last: seconds.
        frames: that have it.
        total: float64 (K,), sum of the probabilities over these frames, before smoothing.
    """

    number: int
    box: Box
    probabilities: npt.NDArray[np.float64]
    first: float
    last: float
    frames: int
    total: npt.NDArray[np.float64]


@dataclass
class Follower:
    """Tells which face in a frame is which of those before: by the overlap of their boxes."""

    faces: list[Followed] = field(default_factory=list)

    def update(self, found: Sequence[Face], seconds: float) -> list[Followed]:
        """The faces of the next frame, in the order of ``found``."""
        known = [face for face in self.faces if seconds - face.last <= LOST]
        pairs = [
            (overlap(face.box, one.box), place, face) for place, one in enumerate(found) for face in known
        ]
        by_place: dict[int, Followed] = {}
        taken: set[int] = set()
        for shared, place, face in sorted(pairs, key=lambda pair: -pair[0]):
            if shared >= SAME_FACE and place not in by_place and face.number not in taken:
                by_place[place] = face
                taken.add(face.number)
        return [self._seen(by_place.get(place), one, seconds) for place, one in enumerate(found)]

    def _seen(self, face: Followed | None, found: Face, seconds: float) -> Followed:
        now = found.probabilities.astype(np.float64)
        if face is None:
            face = Followed(len(self.faces) + 1, found.box, now, seconds, seconds, 1, now.copy())
            self.faces.append(face)
            return face
        kept = math.exp((face.last - seconds) / SMOOTHED)
        face.probabilities = kept * face.probabilities + (1 - kept) * now
        face.box, face.last, face.frames, face.total = found.box, seconds, face.frames + 1, face.total + now
        return face


def overlap(a: Box, b: Box) -> float:
    """Intersection over union of two boxes."""
    width = max(0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return width * height / max(1, sum(areas) - width * height)


def predict_video(
    trained: TrainedModel,
    path: Path,
    *,
    out: Path | None = None,
    table: Path | None = None,
    detector: str = "auto",
) -> Table:
    """Follow the faces of a video and classify them, frame by frame.

    Args:
        trained: the model.
        path: the video.
        out: an .mp4 file for a copy with a frame and a class at each face, without sound.
        table: a csv file with a row for each face and frame.
        detector: see `choose_detector`.

    Returns:
        A row for each face: when it is seen, and the class of its mean probabilities.

    Raises:
        ConfigError: if ``out`` does not end in .mp4, or a result would replace the video.
        DataError: if the video cannot be read, or has no frames.
        RunError: if a result cannot be written.
    """
    if out is not None and out.suffix.lower() != ".mp4":
        raise ConfigError(f"--out is {out}: the copy of a video must be named .mp4")
    for option, result in (("--out", out), ("--csv", table)):
        if result is not None and result.exists() and result.samefile(path):
            raise ConfigError(f"{option} is {result}: that is the video itself: give another file")
    detect, follower, task = choose_detector(detector), Follower(), trained.card.task
    classes = trained.card.classes
    with ExitStack() as stack:
        video = stack.enter_context(open_video(path))
        rows = stack.enter_context(_rows_into(table, classes)) if table is not None else None
        copy = stack.enter_context(_copy_into(out, video)) if out is not None else None
        progress = stack.enter_context(progress_bar())
        bar = progress.add_task(path.name, total=video.count or None)
        number = -1
        for number, (seconds, frame) in enumerate(video):
            found = find_faces(detect, frame, path)
            crops = [face.crop(frame, task.channels, task.width) for face in found]
            answers = answer(trained, np.stack(crops)) if crops else ()
            seen = [Face(face.clipped(*frame.size), row) for face, row in zip(found, answers, strict=True)]
            faces = follower.update(seen, seconds)
            if rows is not None:
                for face in faces:
                    edges = [round(edge * video.factor) for edge in face.box]
                    best = classes[int(face.probabilities.argmax())]
                    shares = (f"{share:.4f}" for share in face.probabilities)
                    rows.writerow([number, f"{seconds:.3f}", face.number, *edges, best, *shares])
            if copy is not None:
                shown = [Face(face.box, face.probabilities.astype(np.float32)) for face in faces]
                copy(np.asarray(draw_faces(frame, shown, classes))[..., ::-1])
            progress.update(bar, completed=number + 1)
        if number < 0:
            raise DataError(f"{path}: no frame in it could be decoded")
    if number + 1 < CLAIMED_SHARE * video.count:
        tell(
            f"ferdist: {path}: only {number + 1} of about {video.count} frames could be decoded: it may be "
            "cut off or damaged"
        )
    return _summary(follower.faces, classes, number + 1)


def _summary(faces: Sequence[Followed], classes: Sequence[str], frames: int) -> Table:
    longest = sorted(faces, key=lambda face: -face.frames)[:MOST_LISTED]
    rows = []
    for face in longest:
        mean = face.total / face.frames
        best = int(mean.argmax())
        when = [Number(f"{face.first:.1f}"), Number(f"{face.last:.1f}")]
        rows.append(
            (str(face.number), *when, Number(str(face.frames)), classes[best], Number(f"{mean[best]:.2f}"))
        )
    head = ("face", "from, s", "to, s", f"of {frames} frames", "expression", "mean probability")
    return Table("", head, tuple(rows))


class Video:
    """A video that is being decoded: iterate over seconds and frames, PIL images in RGB."""

    def __init__(self, path: Path, child: subprocess.Popen[bytes]) -> None:
        self._path, self._child, self._timed_out = path, child, False
        head = self._read(decode.HEAD.size)
        if head is None:
            raise self._fault()
        self.width, self.height, self.factor, self.rate, self.count = decode.HEAD.unpack(head)

    def __iter__(self) -> Iterator[tuple[float, Image.Image]]:
        while (stamp := self._read(decode.STAMP.size)) is not None:
            pixels = self._read(3 * self.width * self.height)
            if pixels is None:
                raise self._fault()
            frame: Images = np.frombuffer(pixels, np.uint8).reshape(self.height, self.width, 3)
            yield decode.STAMP.unpack(stamp)[0], Image.fromarray(frame[..., ::-1])
        if self._child.wait():
            raise self._fault()

    def _read(self, count: int) -> bytes | None:
        assert self._child.stdout is not None
        timer = threading.Timer(PATIENCE, self._give_up)
        timer.start()
        try:
            data = self._child.stdout.read(count)
        finally:
            timer.cancel()
        return data if len(data) == count else None

    def _give_up(self) -> None:
        self._timed_out = True
        self._child.kill()

    def _fault(self) -> DataError:
        code = self._child.wait()
        if self._timed_out:
            reason = f"no frame for {PATIENCE:.0f} seconds"
        elif code == decode.TOO_LARGE:
            reason = f"its frames have more than {MOST_PIXELS // 10**6} million pixels"
        elif code == decode.UNREADABLE:
            reason = "no frame in it could be decoded"
        else:
            reason = f"the decoder failed ({f'signal {-code}' if code < 0 else f'exit code {code}'})"
        return DataError(f"{self._path}: not a readable video: {reason}")


@contextmanager
def open_video(path: Path) -> Iterator[Video]:
    """Decode a video in a process of its own.

    Raises:
        DataError: if it cannot be read, is not a video, or has no frame.
    """
    try:
        with open_untrusted(path, MOST_BYTES) as file:
            beginning = file.read(16)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {reason_of(error)}") from None
    if not any(beginning[at:].startswith(mark) for at, mark in BEGINNINGS):
        reason = f"none of {', '.join(SUFFIXES)}" if beginning else "empty file"
        raise DataError(f"{path}: not a readable video: {reason}")
    command = [
        sys.executable,
        "-m",
        "ferdist.use.decode",
        str(path.resolve()),
        str(LONGEST),
        str(MOST_PIXELS),
    ]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **decode.ONE_THREAD},
    ) as child:
        try:
            yield Video(path, child)
        finally:
            child.kill()


@contextmanager
def _rows_into(path: Path, classes: Sequence[str]) -> Iterator[Any]:
    with (
        writing(path),
        atomic_path(path) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as file,
    ):
        rows = csv.writer(file)
        rows.writerow(["frame", "seconds", "face", "left", "top", "right", "bottom", "expression", *classes])
        yield rows


@contextmanager
def _copy_into(path: Path, video: Video) -> Iterator[Callable[[Images], None]]:
    """What takes the frames, BGR, of a file that becomes ``path`` when the block ends well.

    All of them are read back first, since OpenCV does not say when it cannot write.
    """
    import cv2

    with writing(path), scratch_folder(path) as folder:
        temporary = folder / path.name
        code = cv2.VideoWriter.fourcc(*"mp4v")
        copy = cv2.VideoWriter(str(temporary), cv2.CAP_FFMPEG, code, video.rate, (video.width, video.height))
        if not copy.isOpened():
            raise _no_copy(path, f"OpenCV takes no video of {video.width} x {video.height} pixels there")
        given = 0

        def write(frame: Images) -> None:
            nonlocal given
            copy.write(frame)
            given += 1

        try:
            yield write
        finally:
            copy.release()
        sync(temporary)
        written = _count(temporary)
        if written != given:
            raise _no_copy(path, f"{written} of its {given} frames can be read back")
        temporary.replace(path)


def _no_copy(path: Path, reason: str) -> RunError:
    return RunError(f"{path}: cannot be written ({reason}): free space there or choose another place")


def _count(path: Path) -> int:
    """The number of frames that can be decoded; 0 if one of them cannot."""
    with suppress(DataError), open_video(path) as video:
        return sum(1 for _ in video)
    return 0
