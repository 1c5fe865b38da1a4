"""Drawn faces in the layouts in which RAF-DB and AffectNet are published, on a small scale."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from ferdist.data.record import FER2013_CLASSES
from ferdist.data.synthetic import synthesize
from tests.data.files import encoded, write_files

RAFDB_NUMBERS = {"surprise": 1, "fear": 2, "disgust": 3, "happy": 4, "sad": 5, "angry": 6, "neutral": 7}
"""The numbers of the list of labels."""

AFFECTNET_NUMBERS = {
    **{"neutral": 0, "happy": 1, "sad": 2, "surprise": 3, "fear": 4, "disgust": 5, "angry": 6},
    **{"contempt": 7, "none": 8, "uncertain": 9, "no-face": 10},
}
"""The numbers of the column ``expression`` and of ``N_exp.npy``; the last three are left out."""

AFFECTNET_COLUMNS = (
    "subDirectory_filePath,face_x,face_y,face_width,face_height,facial_landmarks,expression,valence,arousal"
)
FACE_BOX = (30, 20, 80, 80)
"""x, y, width and height of the face in each drawn picture of the release with csv files."""


@lru_cache
def jpegs(images: int, size: int, seed: int = 0) -> list[bytes]:
    """Drawn faces in colour, size x size pixels; number k shows FER2013's class ``shown(images)[k]``."""
    drawn = synthesize(images, seed).images[:, 0]
    return [encoded(_tinted(face, size, number), "jpeg", quality=92) for number, face in enumerate(drawn)]


def shown(images: int, seed: int = 0) -> list[str]:
    """The expressions of `jpegs`."""
    return [FER2013_CLASSES[label] for label in synthesize(images, seed).labels]


def _tinted(face: npt.NDArray[np.uint8], size: int, number: int) -> Image.Image:
    tint = np.array([1.0, 0.8, 0.65]) * (1 - 0.02 * (number % 7))
    pixels = (face[..., None] * tint).round().astype(np.uint8)
    return Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC)


def rafdb_tree(folder: Path, train: int = 28, test: int = 14, *, outer: str = "basic/") -> Path:
    """RAF-DB as it is unpacked: train_00001, ... and test_0001, ... of 100 x 100 pixels, and their list."""
    stems = [f"train_{n:05d}" for n in range(1, train + 1)] + [f"test_{n:04d}" for n in range(1, test + 1)]
    pictures, classes = jpegs(len(stems), 100), shown(len(stems))
    lines = [f"{stem}.jpg {RAFDB_NUMBERS[name]}\n" for stem, name in zip(stems, classes, strict=True)]
    files = {
        f"{outer}Image/aligned/{stem}_aligned.jpg": data for stem, data in zip(stems, pictures, strict=True)
    }
    files[f"{outer}EmoLabel/list_patition_label.txt"] = "".join(lines).encode()
    return write_files(folder, files)


def rafdb_sorted(folder: Path, train: int = 28, test: int = 14) -> Path:
    """The re-sorted copy of RAF-DB: DATASET/train/1/train_00001_aligned.jpg."""
    stems = [f"train_{n:05d}" for n in range(1, train + 1)] + [f"test_{n:04d}" for n in range(1, test + 1)]
    files = {
        f"DATASET/{stem.partition('_')[0]}/{RAFDB_NUMBERS[name]}/{stem}_aligned.jpg": data
        for stem, name, data in zip(stems, shown(len(stems)), jpegs(len(stems), 100), strict=True)
    }
    return write_files(folder, files)


def affectnet_hash(part: str, number: int) -> str:
    """The name without ending of an image of the release with csv files; ``part`` is train or val."""
    return hashlib.sha224(f"{part} {number}".encode()).hexdigest()


def _affectnet_classes(images: int, seed: int) -> list[str]:
    """The drawn expressions, every eighth called contempt."""
    return ["contempt" if n % 8 == 7 else name for n, name in enumerate(shown(images, seed))]


def affectnet_tree(folder: Path, train: int = 32, validation: int = 16, *, others: int = 3) -> Path:
    """AffectNet's release with training.csv and validation.csv, and pictures larger than the faces.

    Args:
        folder: where.
        train, validation: images of the eight classes in each; image ``n`` is called
            ``affectnet_hash("train" or "val", n)``.
        others: images besides of what is no expression, in each.
    """
    files = {}
    for part, file, count in (("train", "training", train), ("val", "validation", validation)):
        seed = int(part == "val")
        classes = [*_affectnet_classes(count, seed), *(("none", "uncertain", "no-face") * others)[:others]]
        rows = [AFFECTNET_COLUMNS]
        for number, (name, face) in enumerate(zip(classes, jpegs(len(classes), 80, seed), strict=True)):
            path = f"{number % 3 + 1}/{affectnet_hash(part, number)}.jpg"
            files[f"Manually_Annotated_Images/{path}"] = _picture(face)
            points = ";".join(f"{10.5 + point:.2f};{20.25 + point:.2f}" for point in range(68))
            box = ",".join(map(str, FACE_BOX))
            rows.append(f"{path},{box},{points},{AFFECTNET_NUMBERS[name]},0.1,-0.2")
        files[f"Manually_Annotated_file_lists/{file}.csv"] = "\n".join([*rows, ""]).encode()
    return write_files(folder, files)


def _picture(face: bytes) -> bytes:
    """A picture of 150 x 130 pixels that holds a face of 80 x 80 at ``FACE_BOX``."""
    whole = Image.new("RGB", (150, 130), (200, 30, 30))
    whole.paste(Image.open(BytesIO(face)), FACE_BOX[:2])
    return encoded(whole, "jpeg", quality=92)


def affectnet_numbers_tree(folder: Path, train: int = 32, validation: int = 16) -> Path:
    """AffectNet's release with train_set/images/N.jpg and train_set/annotations/N_exp.npy."""
    files = {}
    for part, count in (("train", train), ("val", validation)):
        seed = int(part == "val")
        faces = zip(_affectnet_classes(count, seed), jpegs(count, 64, seed), strict=True)
        for number, (name, face) in enumerate(faces):
            files[f"{part}_set/images/{number}.jpg"] = face
            values = {"exp": np.array(str(AFFECTNET_NUMBERS[name])), "val": np.array("0.1")}
            for kind, value in values.items():
                files[f"{part}_set/annotations/{number}_{kind}.npy"] = npy(value)
    return write_files(folder, files)


def npy(array: npt.NDArray[np.generic]) -> bytes:
    """The bytes of an npy file."""
    content = BytesIO()
    np.save(content, array, allow_pickle=True)
    return content.getvalue()
