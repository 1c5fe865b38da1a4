"""Really occluded and strongly turned faces: the published lists of FER2013's PrivateTest.

Wang et al., Region Attention Networks for Pose and Occlusion Robust Facial Expression Recognition, IEEE TIP
2020, name by their FER+ images 605 occluded faces and 1,170 that are turned by more than 30 degrees.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from ferdist.data.beton import Beton, Labels
from ferdist.data.ferplus import FERPLUS_CLASSES, read_name_list
from ferdist.data.record import SPLITS, Integers, no_values
from ferdist.errors import DataError


def listed_samples(beton: Beton, path: Path, labels: Labels) -> tuple[Integers, Labels]:
    """The samples that a published list names, and what they are scored by.

    Args:
        beton: FER2013, prepared with --ferplus.
        path: ``occlusion_ferplus_list.txt`` or ``pose_30_ferplus_list.txt``.
        labels: the model's. FER2013's seven classes stay FER2013's labels. For FER+'s eight classes the
            list's own labels are taken, as for the published scores: a few of them are not the majority.

    Returns:
        int64 (M,) sample numbers, ascending, and labels in which no other sample can be scored.

    Raises:
        DataError: if the beton knows no FER+ names, or the list cannot be read or names an image that is not
            in test.
    """
    if "image_name" not in beton.samples.columns:
        raise DataError(
            f"{beton.path}: it has no FER+ image names, which {path.name} lists: run `ferdist prepare "
            "fer2013` again with --ferplus fer2013new.csv"
        )
    test = beton.samples[beton.split == SPLITS.index("test")]
    number = dict(zip(test["image_name"], test["index"], strict=True))
    label = no_values(len(beton.label))
    for name, listed in read_name_list(path).items():
        if name not in number:
            raise DataError(
                f"{path}: {name} is not a test image of {beton.path}: give the published list "
                "and the original fer2013.csv and fer2013new.csv"
            )
        sample = number[name]
        label[sample] = listed if labels.classes == FERPLUS_CLASSES else labels.label[sample]
    return np.flatnonzero(label >= 0).astype(np.int64), replace(labels, label=label)
