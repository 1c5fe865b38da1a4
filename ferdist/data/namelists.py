"""Published lists of really occluded and turned faces in FER+, RAF-DB and AffectNet.

Wang et al., Region Attention Networks for Pose and Occlusion Robust Facial Expression Recognition, IEEE
Transactions on Image Processing 2020. The authors publish the lists in
https://github.com/kaiwang960112/Challenge-condition-FER-dataset.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from ferdist.data.affectnet import AFFECTNET_CLASSES
from ferdist.data.ferplus import FERPLUS_CLASSES
from ferdist.data.rafdb import RAFDB_CLASSES
from ferdist.errors import DataError
from ferdist.io import read_untrusted

SUBSETS: Final = {
    "occluded": "occluded",
    "turned": "turned by more than 30°",
    "turned45": "turned by more than 45°",
}
"""What the lists name, by the names that evaluations have."""

LISTED_CLASSES: Final = {
    "ferplus": FERPLUS_CLASSES,
    "rafdb": RAFDB_CLASSES,
    "affectnet": AFFECTNET_CLASSES,
}
"""Classes in the order of the lists' numbers, by data set; RAF-DB's are its own numbers minus 1."""

PUBLISHED_FILES: Final = (
    "occlusion_ferplus_list.txt",
    "jianfei_occlusion_list.txt",  # what its authors call the one above
    "pose_30_ferplus_list.txt",
    "pose_45_ferplus_list.txt",
    "rafdb_occlusion_list.txt",
    "val_raf_db_list.txt",
    "val_raf_db_list_45.txt",
    "occlusion_affectnet_list.txt",
    "pose_30_affectnet_list.txt",
    "pose_45_affectnet_list.txt",
)


class _Form(NamedTuple):
    data: str
    occluded: bool
    example: str
    line: re.Pattern[str]


_LABEL: Final = r"(?P<label>\d{1,2})"
_RAFDB, _AFFECTNET = r"(?P<name>test_\d{4})_aligned", r"(?P<name>[0-9a-f]{56})"
_FERPLUS: Final = r"(?P<name>fer\d{7})\.(?:png|jpg)"
_FORMS: Final = tuple(
    _Form(data, occluded, example, re.compile(line))
    for data, occluded, example, line in (
        ("ferplus", True, "0_fer0033508.png 8 3", rf"{_LABEL}_{_FERPLUS} \d+ \d+"),
        ("ferplus", False, "0/fer0032226.jpg", rf"{_LABEL}/{_FERPLUS}"),
        ("rafdb", True, "test_0003_aligned 3 4", rf"{_RAFDB} {_LABEL} \d+"),
        ("rafdb", False, "0/test_0004_aligned.jpg", rf"{_LABEL}/{_RAFDB}\.jpg"),
        ("affectnet", True, "val/0/<56 digits>/", rf"val/{_LABEL}/{_AFFECTNET}/"),
        ("affectnet", False, "0/<56 digits>.jpg", rf"{_LABEL}/{_AFFECTNET}(?:/8)?\.jpg"),
    )
)


@dataclass(frozen=True)
class NameList:
    """A published list.

    Attributes:
        path: of the file.
        data: the data set that its names are of, a key of ``LISTED_CLASSES``.
        subset: what it names, a key of ``SUBSETS``.
        lines: that are not empty.
        label: index into ``classes`` by image name, in the order of the lines. A name is that of the file
            without its ending, and without ``_aligned``.
    """

    path: Path
    data: str
    subset: str
    lines: int
    label: Mapping[str, int]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names, in the order of the list's numbers."""
        return LISTED_CLASSES[self.data]


def read_name_list(path: Path) -> NameList:
    """Read a published list; its form says which data set it is of and whether its faces are occluded.

    A list of turned faces is one of 45 degrees if its file's name has 45 in it. A name may appear twice with
    the same label, as in three of the published files.

    Raises:
        DataError: if the file cannot be read, a line has another form than the first or a label that is no
            class, or a name has two labels.
    """
    try:
        lines = read_untrusted(path).decode("ascii").splitlines()
    except OSError as error:
        raise DataError(f"{path}: cannot read it: {error.strerror}; give the published list") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a text file; give the published list") from error
    numbered = [(number, line.strip()) for number, line in enumerate(lines, start=1) if line.strip()]
    if not numbered:
        raise DataError(f"{path}: no image in it; give the published list")
    form = next((form for form in _FORMS if form.line.fullmatch(numbered[0][1])), None)
    wanted = "a line of a published list, such as " + ", ".join(one.example for one in _FORMS if one.occluded)
    if form is not None:
        wanted = f"like the first line, {form.example}"
    label: dict[str, int] = {}
    for number, line in numbered:
        match = None if form is None else form.line.fullmatch(line)
        if form is None or match is None:
            raise DataError(f"{path}: line {number}: {line[:40]!r} is not {wanted}; give the published list")
        name, value = match["name"], int(match["label"])
        classes = len(LISTED_CLASSES[form.data])
        if value >= classes:
            raise DataError(
                f"{path}: line {number}: label {value} is not from 0 to {classes - 1}; "
                "give the published list"
            )
        if label.setdefault(name, value) != value:
            raise DataError(
                f"{path}: line {number}: {name} has label {value}, but {label[name]} in a line before; "
                "give the published list"
            )
    assert form is not None  # there is a line
    subset = "occluded" if form.occluded else "turned"
    if not form.occluded and re.search(r"(?<!\d)45(?!\d)", path.stem):
        subset = "turned45"
    return NameList(path, form.data, subset, len(numbered), label)


def find_name_lists(folder: Path) -> tuple[NameList, ...]:
    """Read the published lists, under their published names, in a folder and the folders in it.

    Raises:
        DataError: if there is none, or one cannot be read.
    """
    try:
        places = [folder, *sorted(place for place in folder.iterdir() if place.is_dir())]
    except OSError as error:
        raise DataError(
            f"{folder}: cannot read it: {error.strerror}; give the folder of the published lists"
        ) from error
    paths = [place / name for place in places for name in PUBLISHED_FILES if (place / name).exists()]
    if not paths:
        raise DataError(
            f"{folder}: no published list in it or the folders in it, such as {PUBLISHED_FILES[0]}; "
            "give the folder of the published lists"
        )
    return tuple(read_name_list(path) for path in paths)
