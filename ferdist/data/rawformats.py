"""Drawn faces in the layouts in which FER2013 and CK+ are published: what the readers are tested on."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from ferdist.data.ckplus import EMOTION_CODES, FOLDER_CLASSES
from ferdist.data.fer2013 import USAGE_SPLIT
from ferdist.data.record import CKPLUS7_CLASSES, FaceDataset, Images
from ferdist.data.synthetic import CELL, ckplus_faces, ckplus_sequences, synthesize
from ferdist.errors import DataError
from ferdist.io import scratch_folder


def write_synthetic(out_dir: Path, images: int, seed: int, layout: str) -> Path:
    """Draw faces and write them in a raw layout, whole or not at all.

    Args:
        out_dir: folder, made if it does not exist.
        images: how many; for CK+ rounded up to whole sequences.
        seed: of the drawing; the three layouts of CK+ show the same faces for the same seed.
        layout: a key of ``LAYOUTS``.

    Returns:
        The file or folder that was written.

    Raises:
        ConfigError: if a number is out of its range.
        DataError: if the result exists already, since a real data set may lie there, or cannot be written.
    """
    name, write = LAYOUTS[layout]
    path = out_dir / name
    if path.exists():
        raise DataError(f"{path} exists already; remove it or choose another folder")
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        with scratch_folder(path) as scratch:
            write(scratch / name, images, seed)
            (scratch / name).replace(path)
    except OSError as error:
        raise DataError(f"{path}: cannot write there ({error.strerror}); choose another folder") from error
    return path


def write_fer2013_csv(dataset: FaceDataset, path: Path) -> Path:
    """Write ``fer2013.csv``: faces in FER2013's classes, each in a split, a row a sample."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns, usages = (np.asarray(dataset.images), dataset.labels, dataset.split), list(USAGE_SPLIT)
    with path.open("w", encoding="ascii") as file:
        file.write("emotion,pixels,Usage\n")
        for image, label, split in zip(*columns, strict=True):
            file.write(f"{label},{' '.join(map(str, image.ravel().tolist()))},{usages[split]}\n")
    return path


def write_ckplus48(path: Path, images: int, seed: int) -> None:
    """Write ``<class>/S010_004_00000017.png``."""
    folders = {ours: theirs for theirs, ours in FOLDER_CLASSES.items()}
    for label, name, face in ckplus_faces(images, seed):
        _write_png(path / folders[CKPLUS7_CLASSES[label]] / f"{name}.png", face)


def write_ckplus_h5(path: Path, images: int, seed: int) -> None:
    """Write data_pixel, uint8 (N, 48, 48), and data_label, int64 (N,), without subjects."""
    import h5py

    labels, _, faces = zip(*ckplus_faces(images, seed), strict=True)
    content = BytesIO()  # where the disk is full, Python says so in fewer words than the HDF5 library
    with h5py.File(content, "w") as file:
        file["data_pixel"] = np.stack(faces)
        file["data_label"] = np.array(labels, dtype=np.int64)
    path.write_bytes(content.getvalue())


def write_ckplus_original(path: Path, images: int, seed: int) -> None:
    """Write all frames, 640 x 490 pixels, with 68 landmarks each, and emotions.

    A frame is the drawn scene enlarged five times, so the area average of its ``face_box`` is the 48 x 48
    face again, to the pixel.
    """
    for sequence in ckplus_sequences(images, seed):
        folder = sequence.name.replace("_", "/")
        for frame in range(1, sequence.frames + 1):
            name = sequence.frame_name(frame)
            cells, landmarks = sequence.scene(frame)
            picture = cells.repeat(CELL, axis=0).repeat(CELL, axis=1)
            _write_png(path / "cohn-kanade-images" / folder / f"{name}.png", picture)
            _write_numbers(path / "Landmarks" / folder / f"{name}_landmarks.txt", CELL * landmarks)
        if sequence.labelled:
            emotion = [[EMOTION_CODES.index(sequence.expression)]]
            _write_numbers(path / "Emotion" / folder / f"{name}_emotion.txt", emotion)


LAYOUTS: Final[dict[str, tuple[str, Callable[[Path, int, int], object]]]] = {
    "fer2013-csv": ("fer2013.csv", lambda path, n, seed: write_fer2013_csv(synthesize(n, seed), path)),
    "ckplus48": ("CK+48", write_ckplus48),
    "ckplus-h5": ("CK_data.h5", write_ckplus_h5),
    "ckplus-original": ("CK+", write_ckplus_original),
}
"""What each ``--format`` writes, and how: path, number of images, seed."""


def _write_png(path: Path, image: Images) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, compress_level=1)


def _write_numbers(path: Path, rows: npt.ArrayLike) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savetxt(path, rows, fmt="   %.7e", delimiter="")
