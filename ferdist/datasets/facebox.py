"""Where the face is in a CK+ frame: one rule, used by the reader and by the writer of synthetic frames."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from ferdist.datasets.record import Images

Points = npt.NDArray[np.float64]

BOX_MARGIN: Final = 1.2
"""Side of the face box relative to the larger side of the landmarks' bounding box: from brows to chin the
landmarks leave out the forehead, and a tenth more on each side keeps it and the rim of the jaw."""


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
