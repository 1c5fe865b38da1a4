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
    EXPRESSIONS,
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

NEUTRAL: Final = "neutral"
PEAK_FRAMES: Final = 3
"""Frames at the end of a sequence that carry its label, as in CK+48."""
WILD_FRAMES: Final = 6
"""Frames in a sequence of ``synthesize``: at 0, 20, 40, 60, 80 and 100 % of the peak."""
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
        subject: the person's number.
        number: the sequence's number among the person's, from 1.
        expression: its name.
        frames: how many there are; they are numbered from 1.
        seed: of the data set.
        person: how the person looks.
        shot: the expression at its peak, the camera and the light.
        labelled: whether the data set gives the expression; CK+ has sequences where it does not.
    """

    subject: int
    number: int
    expression: str
    frames: int
    seed: int
    person: Subject
    shot: Shot
    labelled: bool = True

    @property
    def name(self) -> str:
        """Subject and sequence as CK+ names them: ``S001_003``."""
        return f"{self.subject_name}_{self.number:03d}"

    @property
    def subject_name(self) -> str:
        """``S001`` for subject 0, as CK+ names people."""
        return f"S{self.subject + 1:03d}"

    def frame_name(self, frame: int) -> str:
        """A frame's name as in CK+: ``S001_003_00000012``."""
        return f"{self.name}_{frame:08d}"

    def face(self, frame: int) -> Images:
        """uint8 (48, 48): the face alone."""
        picture, _ = render(self.person, self.shot, self._intensity(frame), self._noise(frame))
        return picture

    def scene(self, frame: int) -> tuple[Images, Points]:
        """A wider view, uint8 (98, 128), and (68, 2) landmarks in its cells.

        The face has the 48 x 48 cells from ``SCENE_FACE``.
        """
        intensity, noise = self._intensity(frame), self._noise(frame)
        return render(self.person, self.shot, intensity, noise, size=SCENE_SIZE, corner=SCENE_FACE)

    def _intensity(self, frame: int) -> float:
        return (frame - 1) / (self.frames - 1)

    def _noise(self, frame: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, 2, self.subject, self.number, frame])


def synthesize(
    images: int,
    seed: int = 0,
    classes: tuple[str, ...] = FER2013_CLASSES,
    name: str = "synthetic",
    subjects: int = 60,
) -> FaceDataset:
    """Drawn faces in the manner of FER2013: any light, pose and framing, split by subject.

    Sample ``k`` shows subject ``k % n`` of ``n``; a subject's samples go round the classes. So the classes
    and the subjects are balanced to within one sample, and for a given ``n`` more images only append. There
    are fewer subjects than asked for where each would otherwise not show every class, but not fewer than ten
    unless there are fewer images. Every class is in every split from ten images a class on.

    Args:
        images: how many, at least 1.
        seed: not negative; the same seed gives the same pixels.
        classes: names of expressions, in label order. Neutral samples are first frames of sequences, all
            others are among the last three frames, at 60 to 100 % of the peak.
        name: of the data set.
        subjects: at most so many people, split 70/15/15 into train, val and test.

    Returns:
        A data set of 48 x 48 gray images with split, subject (``S001``) and sequence (``S001_003``) set.

    Raises:
        ConfigError: if a number is out of its range or an expression is unknown.
    """
    _check(images, seed, classes)
    if subjects < 1:
        raise ConfigError(f"subjects={subjects}: must be at least 1")
    people = min(subjects, images, max(MIN_SUBJECTS, images // len(classes)))
    labels, shown = [], []
    for k in range(images):
        turn, subject = divmod(k, people)
        labels.append((turn + subject) % len(classes))
        shown.append(_wild_frame(seed, subject, classes, classes[labels[-1]], turn // len(classes)))
    return _dataset(
        name,
        np.stack([sequence.face(frame) for sequence, frame in shown]),
        labels,
        classes,
        shown,
        split=_split_subjects(people, seed)[np.arange(images) % people],
    )


def synthesize_ckplus(
    images: int, seed: int = 0, classes: tuple[str, ...] = CKPLUS7_CLASSES, name: str = "ckplus"
) -> FaceDataset:
    """Drawn faces in the manner of CK+: calm light, nearly frontal, framed by their landmarks, no splits.

    The last three frames of each sequence have its label; where neutral is a class, the first frame is it.
    Samples are in the order of label and name, as in CK_data.h5, and their source ids are CK+48's file names
    without ending.

    Args:
        images: how many, at least 1; rounded up to whole sequences.
        seed: not negative; the same seed gives the same pixels.
        classes: names of expressions, in label order.
        name: of the data set.

    Returns:
        A data set of 48 x 48 gray images with subject and sequence set.

    Raises:
        ConfigError: if a number is out of its range or an expression is unknown.
    """
    samples = []
    for sequence in ckplus_sequences(images, seed, classes):
        if sequence.labelled:
            peak = range(sequence.frames - PEAK_FRAMES + 1, sequence.frames + 1)
            samples += [(classes.index(sequence.expression), sequence, frame) for frame in peak]
        if sequence.labelled and NEUTRAL in classes:
            samples.append((classes.index(NEUTRAL), sequence, 1))
    samples.sort(key=lambda sample: (sample[0], sample[1].frame_name(sample[2])))
    labels, shown = [label for label, *_ in samples], [(sequence, frame) for _, sequence, frame in samples]
    top, left = SCENE_FACE
    faces = [s.scene(frame)[0][top : top + FACE_SIZE, left : left + FACE_SIZE] for s, frame in shown]
    return _dataset(name, np.stack(faces), labels, classes, shown)


def ckplus_sequences(
    images: int, seed: int = 0, classes: tuple[str, ...] = CKPLUS7_CLASSES
) -> list[DrawnSequence]:
    """The sequences behind ``synthesize_ckplus``, and a few that have no label, as in CK+; ordered by name.

    Args:
        images: labelled images, rounded up to whole sequences.
        seed: not negative.
        classes: names of expressions; neutral gets the first frame of each labelled sequence.

    Raises:
        ConfigError: if a number is out of its range or an expression is unknown.
    """
    _check(images, seed, classes)
    shown = [c for c in classes if c != NEUTRAL]
    if not shown:
        raise ConfigError(f"classes={list(classes)}: CK+ needs an expression besides neutral")
    labelled = math.ceil(images / (PEAK_FRAMES + (NEUTRAL in classes)))
    people = min(CKPLUS_SUBJECTS, labelled, max(MIN_SUBJECTS, labelled // SEQUENCES_PER_SUBJECT))

    def draw(subject: int, number: int, expression: int, labelled: bool) -> DrawnSequence:
        frames = int(np.random.default_rng([seed, 4, subject, number]).integers(9, 17))
        return _sequence(seed, subject, number, shown[expression % len(shown)], IN_THE_LAB, frames, labelled)

    sequences = [draw(k % people, k // people + 1, k // people + k % people, True) for k in range(labelled)]
    for subject in range(0, people, 3):
        sequences.append(draw(subject, len(range(subject, labelled, people)) + 1, subject, False))
    return sorted(sequences, key=lambda sequence: sequence.name)


def _dataset(
    name: str,
    faces: Images,
    labels: list[int],
    classes: tuple[str, ...],
    shown: list[tuple[DrawnSequence, int]],
    split: Integers | int = -1,
) -> FaceDataset:
    return FaceDataset.of(
        name,
        faces[:, None],
        labels,
        classes,
        [sequence.frame_name(frame) for sequence, frame in shown],
        split=split,
        subjects=[sequence.subject_name for sequence, _ in shown],
        sequences=[sequence.name for sequence, _ in shown],
    )


def _check(images: int, seed: int, classes: tuple[str, ...]) -> None:
    if images < 1:
        raise ConfigError(f"images={images}: must be at least 1")
    if seed < 0:
        raise ConfigError(f"seed={seed}: must not be negative")
    if not classes or not set(classes) <= set(EXPRESSIONS):
        raise ConfigError(f"classes={list(classes)}: choose among {', '.join(EXPRESSIONS)}")


def _split_subjects(people: int, seed: int) -> Integers:
    """(people,) split codes: 15 % of the people each into val and test, at least one of three or more."""
    held_out = max(round(0.15 * people), int(people >= 3))
    split = np.zeros(people, dtype=np.int64)
    shuffled = np.random.default_rng([seed, 3]).permutation(people)
    split[shuffled[:held_out]] = 1
    split[shuffled[held_out : 2 * held_out]] = 2
    return split


def _wild_frame(
    seed: int, subject: int, classes: tuple[str, ...], expression: str, occurrence: int
) -> tuple[DrawnSequence, int]:
    """The sequence, and the frame in it, of the n-th time that a subject shows an expression.

    A sequence gives its last three frames to its expression and its first frame to neutral.
    """
    shown = [c for c in classes if c != NEUTRAL] or [NEUTRAL]
    if expression == NEUTRAL:
        repetition, which, frame = occurrence // len(shown), (occurrence + subject) % len(shown), 1
    else:
        repetition, back = divmod(occurrence, PEAK_FRAMES)
        which, frame = shown.index(expression), WILD_FRAMES - back
    number = repetition * len(shown) + which + 1
    return _sequence(seed, subject, number, shown[which], IN_THE_WILD, WILD_FRAMES), frame


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
    return DrawnSequence(subject, number, expression, frames, seed, person, shot, labelled)
