"""Drawn faces as data sets: what the demo and the tests train on, so that nobody has to download anything.

People, sequences and frames draw from generators of their own, keyed by the seed and their numbers, so a
frame does not depend on how much else is drawn.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np

from ferdist.data.drawnface import (
    FACE_SIZE,
    IN_THE_LAB,
    IN_THE_WILD,
    Conditions,
    Shot,
    Subject,
    draw_shot,
    draw_subject,
    render,
)
from ferdist.data.facebox import Points
from ferdist.data.record import CKPLUS7_CLASSES, FER2013_CLASSES, FaceDataset, Images, Integers
from ferdist.errors import ConfigError

SHOWN: Final = FER2013_CLASSES[:-1]
"""The expressions of sequences in the manner of FER2013; their first frames are its neutral faces."""
PEAK_FRAMES: Final = 3
"""Frames at the end of a sequence that carry its label, as in CK+48."""
WILD_FRAMES: Final = 6
"""Frames in a sequence of ``synthesize``: at 0, 20, 40, 60, 80 and 100 % of the peak."""
SUBJECTS: Final = 60
CKPLUS_SUBJECTS: Final = 118
SEQUENCES_PER_SUBJECT: Final = 3
"""About as many labelled sequences as a person has in CK+."""
MIN_SUBJECTS: Final = 10
"""So that ten subject-independent folds can be made of any data set that is large enough."""

SCENE_SIZE: Final = (98, 128)
"""Height and width of a scene in cells; a cell is ``CELL`` x ``CELL`` pixels of the 490 x 640 frame."""
CELL: Final = 5
SCENE_FACE: Final = (24, 40)
"""Row and column of the cell where the 48 x 48 cells of the face begin in a scene."""


@dataclass(frozen=True)
class DrawnSequence:
    """A person who goes from a neutral face to the peak of an expression.

    Attributes:
        subject: the person, ``S001`` for the first, as CK+ names people.
        name: subject and sequence, ``S001_003``.
        expression: its name.
        frames: how many there are; they are numbered from 1.
        key: of the generators that draw the frames' noise.
        person: how the person looks.
        shot: the expression at its peak, the camera and the light.
        labelled: whether the data set gives the expression; CK+ has sequences where it does not.
    """

    subject: str
    name: str
    expression: str
    frames: int
    key: tuple[int, ...]
    person: Subject
    shot: Shot
    labelled: bool = True

    def frame_name(self, frame: int) -> str:
        """A frame's name as in CK+: ``S001_003_00000012``."""
        return f"{self.name}_{frame:08d}"

    def face(self, frame: int) -> Images:
        """uint8 (48, 48): the face alone."""
        return self._render(frame, (FACE_SIZE, FACE_SIZE), (0, 0))[0]

    def scene(self, frame: int) -> tuple[Images, Points]:
        """A wider view, uint8 (98, 128), and (68, 2) landmarks in its cells.

        The face has the 48 x 48 cells from ``SCENE_FACE``.
        """
        return self._render(frame, SCENE_SIZE, SCENE_FACE)

    def _render(self, frame: int, size: tuple[int, int], corner: tuple[int, int]) -> tuple[Images, Points]:
        intensity, noise = (frame - 1) / (self.frames - 1), np.random.default_rng([*self.key, frame])
        return render(self.person, self.shot, intensity, noise, size, corner)


def synthesize(images: int, seed: int = 0) -> FaceDataset:
    """Drawn faces in the manner of FER2013: any light, pose and framing, split by subject.

    Sample ``k`` shows subject ``k % n`` of ``n``; a subject's samples go round the classes. So the classes
    and the subjects are balanced to within one sample, and for a given ``n`` more images only append. There
    are fewer than 60 subjects where each would otherwise not show every class, but not fewer than ten unless
    there are fewer images. Every class is in every split from ten images a class on.

    Args:
        images: how many, at least 1.
        seed: not negative; the same seed gives the same pixels.

    Returns:
        48 x 48 gray images with split (70, 15 and 15 % of the people), subject (``S001``) and sequence
        (``S001_003``). Neutral ones are first frames of sequences, all others are among the last three
        frames, at 60 to 100 % of the peak.

    Raises:
        ConfigError: if a number is out of its range.
    """
    _check(images, seed)
    people = min(SUBJECTS, images, max(MIN_SUBJECTS, images // len(FER2013_CLASSES)))
    labels, shown = [], []
    for k in range(images):
        turn, subject = divmod(k, people)
        labels.append((turn + subject) % len(FER2013_CLASSES))
        shown.append(_wild_frame(seed, subject, labels[-1], turn // len(FER2013_CLASSES)))
    return FaceDataset.of(
        "synthetic",
        np.stack([sequence.face(frame) for sequence, frame in shown])[:, None],
        labels,
        FER2013_CLASSES,
        [sequence.frame_name(frame) for sequence, frame in shown],
        split=_split_subjects(people, seed)[np.arange(images) % people],
        subjects=[sequence.subject for sequence, _ in shown],
        sequences=[sequence.name for sequence, _ in shown],
    )


def ckplus_sequences(images: int, seed: int = 0) -> list[DrawnSequence]:
    """Sequences in the manner of CK+: calm light, nearly frontal, framed by their landmarks; by name.

    Some have no label, as in CK+.

    Args:
        images: labelled images, at least 1, rounded up to whole sequences: three of each.
        seed: not negative; the same seed gives the same pixels.

    Raises:
        ConfigError: if a number is out of its range.
    """
    _check(images, seed)
    labelled = math.ceil(images / PEAK_FRAMES)
    people = min(CKPLUS_SUBJECTS, labelled, max(MIN_SUBJECTS, labelled // SEQUENCES_PER_SUBJECT))

    def draw(subject: int, number: int, expression: int, labelled: bool) -> DrawnSequence:
        frames = int(np.random.default_rng([seed, 4, subject, number]).integers(9, 17))
        shown = CKPLUS7_CLASSES[expression % len(CKPLUS7_CLASSES)]
        return _sequence(seed, subject, number, shown, IN_THE_LAB, frames, labelled)

    sequences = [draw(k % people, k // people + 1, k // people + k % people, True) for k in range(labelled)]
    for subject in range(0, people, 3):
        sequences.append(draw(subject, len(range(subject, labelled, people)) + 1, subject, False))
    return sorted(sequences, key=lambda sequence: sequence.name)


def ckplus_faces(images: int, seed: int = 0) -> list[tuple[int, str, Images]]:
    """The last three faces of each labelled sequence of `ckplus_sequences`, in the order of CK_data.h5.

    Returns:
        Label among ``CKPLUS7_CLASSES``, CK+48's file name without ending, and pixels, uint8 (48, 48).
    """
    top, left = SCENE_FACE
    faces = []
    for sequence in ckplus_sequences(images, seed):
        if sequence.labelled:
            label = CKPLUS7_CLASSES.index(sequence.expression)
            for frame in range(sequence.frames - PEAK_FRAMES + 1, sequence.frames + 1):
                scene, _ = sequence.scene(frame)
                face = scene[top : top + FACE_SIZE, left : left + FACE_SIZE]
                faces.append((label, sequence.frame_name(frame), face))
    return sorted(faces, key=lambda face: face[:2])


def _check(images: int, seed: int) -> None:
    if images < 1:
        raise ConfigError(f"images={images}: must be at least 1")
    if seed < 0:
        raise ConfigError(f"seed={seed}: must not be negative")


def _split_subjects(people: int, seed: int) -> Integers:
    """(people,) split codes: 15 % of the people each into val and test, at least one of three or more."""
    held_out = max(round(0.15 * people), int(people >= 3))
    split = np.zeros(people, dtype=np.int64)
    shuffled = np.random.default_rng([seed, 3]).permutation(people)
    split[shuffled[:held_out]] = 1
    split[shuffled[held_out : 2 * held_out]] = 2
    return split


def _wild_frame(seed: int, subject: int, label: int, occurrence: int) -> tuple[DrawnSequence, int]:
    """The sequence, and the frame in it, of the n-th time that a subject shows a class.

    A sequence gives its last three frames to its expression and its first frame to neutral.
    """
    if label < len(SHOWN):
        (repetition, back), which = divmod(occurrence, PEAK_FRAMES), label
        frame = WILD_FRAMES - back
    else:
        repetition, which, frame = occurrence // len(SHOWN), (occurrence + subject) % len(SHOWN), 1
    number = repetition * len(SHOWN) + which + 1
    return _sequence(seed, subject, number, SHOWN[which], IN_THE_WILD, WILD_FRAMES), frame


@lru_cache(maxsize=4096)
def _sequence(
    seed: int,
    subject: int,
    number: int,
    expression: str,
    conditions: Conditions,
    frames: int,
    labelled: bool = True,
) -> DrawnSequence:
    shot = draw_shot(expression, conditions, np.random.default_rng([seed, 1, subject, number]))
    person = draw_subject(np.random.default_rng([seed, 0, subject]))
    name, key = f"S{subject + 1:03d}", (seed, 2, subject, number)
    return DrawnSequence(name, f"{name}_{number:03d}", expression, frames, key, person, shot, labelled)
