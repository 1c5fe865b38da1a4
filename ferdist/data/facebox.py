"""Where the face is in a frame: by landmarks or by a detector, and how it is cropped."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from ferdist.data.record import Images
from ferdist.errors import DataError

Points = npt.NDArray[np.float64]

BOX_MARGIN: Final = 1.2
"""Side of the face box relative to the larger side of the landmarks' bounding box: from brows to chin the
landmarks leave out the forehead, and a tenth more on each side keeps it and the rim of the jaw."""


CASCADE: Final = "haarcascade_frontalface_alt2.xml"


def face_box(landmarks: Points) -> tuple[int, int, int, int]:
    """The square around a face, from its landmarks.

    The box is centred on the landmarks' bounding box; its side is ``BOX_MARGIN`` times the larger side of
    that bounding box. Centre and side are rounded to whole pixels, so that noise in the last digits of a
    landmark file cannot move the box.

    Args:
        landmarks: (L, 2) x and y in pixels, y downwards.

    Returns:
        left, top, right, bottom in pixels, right and bottom exclusive; it may reach beyond the frame.
    """
    low, high = landmarks.min(axis=0), landmarks.max(axis=0)
    side = round(float(BOX_MARGIN * (high - low).max()))
    left, top = np.rint((low + high - side) / 2).astype(int).tolist()
    return left, top, left + side, top + side


def detect_faces(frame: Images, smallest: float) -> list[tuple[int, int, int, int]]:
    """Squares around the faces that OpenCV's Haar cascade finds (Viola and Jones, CVPR 2001), largest first.

    The cascade comes inside opencv-python. On CK+48's images pasted into larger frames its box has the size
    and place of the image itself (side 1.00 +- 0.03 of it, centre within 2 pixels of 240), so crops by it
    are framed as CK+48 is.

    Args:
        frame: uint8 (H, W), gray.
        smallest: side of the smallest face, as a share of the frame's shorter side; never below 24 pixels.

    Returns:
        left, top, right, bottom of each in pixels, right and bottom exclusive.
    """
    side = max(24, int(min(frame.shape) * smallest))
    found = _cascade().detectMultiScale(frame, scaleFactor=1.1, minNeighbors=5, minSize=(side, side))
    boxes = [(x, y, x + width, y + height) for x, y, width, height in np.reshape(found, (-1, 4)).tolist()]
    return sorted(boxes, key=lambda box: (box[0] - box[2]) * (box[3] - box[1]))


@cache
def _cascade() -> Any:
    import cv2

    cascade = cv2.CascadeClassifier(str(Path(cv2.__file__).parent / "data" / CASCADE))
    if cascade.empty():
        raise DataError(f"{CASCADE}: OpenCV has no such cascade: install opencv-python 4")
    return cascade


def crop_face(frame: Images, box: tuple[int, int, int, int], size: int = 48) -> Images:
    """The face in a box, resized to a square by area averaging.

    Args:
        frame: uint8 (H, W), gray.
        box: as ``face_box`` gives it; beyond the frame its edge pixels are repeated.
        size: side of the result in pixels.

    Returns:
        uint8 (size, size).
    """
    left, top, right, bottom = box
    height, width = frame.shape
    rows = np.clip(np.arange(top, bottom), 0, height - 1)
    columns = np.clip(np.arange(left, right), 0, width - 1)
    face = Image.fromarray(frame[np.ix_(rows, columns)])
    return np.asarray(face.resize((size, size), Image.Resampling.BOX))
