"""Really occluded and turned faces: the samples that published lists name, and what they are scored by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

import numpy as np
import pandas as pd

from ferdist.data.beton import Beton, Labels
from ferdist.data.namelists import SUBSETS, NameList
from ferdist.data.record import SPLITS, Integers, no_values
from ferdist.errors import DataError
from ferdist.evaluation.records import Listed


@dataclass(frozen=True)
class ListedFaces:
    """The faces of a list in a beton.

    Attributes:
        names: the list.
        indices: int64 (M,), sample numbers, ascending.
        labels: in which no other sample can be scored.
        listed: what the evaluation records of it.
    """

    names: NameList
    indices: Integers
    labels: Labels
    listed: Listed

    def missing(self, classes: Sequence[str]) -> str:
        """What of the list is not scored, in words; empty where all of it is.

        Args:
            classes: of the data.
        """
        lacking = self.listed.names - self.listed.met
        if not lacking:
            return ""
        left_out = [name for name in self.names.classes if name not in classes]
        if self.listed.labels != "list":
            left_out = []
        of_these = sum(self.names.classes[label] in left_out for label in self.names.label.values())
        classless = f", {of_these:,} for being {' or '.join(left_out)}" if of_these else ""
        return f"{self.names.path}: {lacking:,} of its {self.listed.names:,} faces are not scored{classless}"


def lists_of_data(beton: Beton, lists: Sequence[NameList]) -> list[NameList]:
    """Those of the lists that are of the same data set as the beton: at least one of its names is in one.

    Raises:
        DataError: if no list is.
    """
    known: dict[str, set[str]] = {data: set(_image_names(beton, data)) for data in {o.data for o in lists}}
    met = {one.data for one in lists if not known[one.data].isdisjoint(one.label)}
    if not met:
        names = sum(len(one.label) for one in lists)
        raise DataError(
            f"{beton.path}: it has none of the {names:,} names in {lists[0].path.parent}; {_remedy(lists)}"
        )
    return [one for one in lists if one.data in met]


def listed_faces(
    beton: Beton, split: str, chosen: Integers, labels: Labels, lists: Sequence[NameList]
) -> list[ListedFaces]:
    """Find the faces that lists name in the part of a beton that is scored.

    The lists' own labels are taken, as for the published scores, by the names of the classes; a few of FER+'s
    are not the majority of the votes. But FER2013's seven classes stay FER2013's labels. A name that several
    samples of the part bear stands for all of them.

    Args:
        beton: the data; FER2013 prepared with --ferplus, else files with their own names.
        split: what the part is called.
        chosen: int64 (N,), its samples.
        labels: the model's.
        lists: of these data, one for each subset.

    Raises:
        DataError: if two lists are of the same subset; or at most half of a list's names are in the part, or
            at most half of its labels are the data's.
    """
    found: dict[str, ListedFaces] = {}
    for names in lists:
        if names.subset in found:
            raise DataError(
                f"{names.path}: a second list of faces that are {SUBSETS[names.subset]}, beside "
                f"{found[names.subset].names.path}; give one of them"
            )
        found[names.subset] = _match(beton, split, chosen, labels, names)
    return list(found.values())


def _match(beton: Beton, split: str, chosen: Integers, labels: Labels, names: NameList) -> ListedFaces:
    borne = _image_names(beton, names.data)
    if names.data == "ferplus" and "image_name" not in beton.samples.columns:
        raise DataError(
            f"{beton.path}: it has no FER+ image names, which {names.path.name} lists: run `ferdist prepare "
            "fer2013` again with --ferplus fer2013new.csv"
        )
    bearing = np.flatnonzero(borne.isin(list(names.label)))
    inside = np.intersect1d(bearing, chosen)
    _check_place(beton, split, names, borne, bearing, inside)
    position = np.array([_position(labels.classes, name) for name in names.classes])
    listed_label = position[[names.label[name] for name in borne[inside]]]
    # FER2013's seven classes are other annotators' labels than FER+'s eight
    by_list = names.data != "ferplus" or set(names.classes) == set(labels.classes)
    label = no_values(len(labels.label))
    label[inside] = listed_label if by_list else labels.label[inside]
    indices = np.flatnonzero(label >= 0).astype(np.int64)
    met = borne[indices].nunique()
    _check_enough(beton, split, names, met)
    if by_list:
        _check_labels(beton, names, label[indices], labels.label[indices])
    listed = Listed(names.data, names.lines, len(names.label), met, "list" if by_list else "data")
    return ListedFaces(names, indices, replace(labels, label=label), listed)


def _position(classes: Sequence[str], name: str) -> int:
    return classes.index(name) if name in classes else -1


def _image_names(beton: Beton, data: str) -> pd.Series[str]:
    """The name of each sample as lists of a data set have it, "" for none."""
    samples = beton.samples
    if data == "ferplus":
        if "image_name" not in samples.columns:
            return pd.Series("", index=samples.index)
        return samples["image_name"].fillna("").astype(str).str.removesuffix(".png")
    return samples["source_id"].map(lambda name: PurePosixPath(name).stem.removesuffix("_aligned"))


def _check_place(
    beton: Beton, split: str, names: NameList, borne: pd.Series[str], bearing: Integers, inside: Integers
) -> None:
    """Refuse a list whose faces are in another part than the one that is scored."""
    outside = bearing[~borne[bearing].isin(borne[inside])]
    if len(outside):
        places = [SPLITS[code] if code >= 0 else "no split" for code in np.unique(beton.split[outside])]
        remedy = f"give --split {places[0]}" if places in (["val"], ["test"]) else _remedy([names])
        raise DataError(
            f"{names.path}: {borne[outside].nunique():,} of its {len(names.label):,} names are in "
            f"{' and '.join(places)} of {beton.path}, not in {split}; {remedy}"
        )


def _check_enough(beton: Beton, split: str, names: NameList, met: int) -> None:
    if 2 * met <= len(names.label):
        raise DataError(
            f"{names.path}: {met:,} of its {len(names.label):,} names are in {split} of {beton.path}, "
            f"such as {next(iter(names.label))}; {_remedy([names])}"
        )


def _check_labels(beton: Beton, names: NameList, listed: Integers, own: Integers) -> None:
    agreeing = int((listed == own)[own >= 0].sum())
    known = int((own >= 0).sum())
    if known and 2 * agreeing <= known:
        raise DataError(
            f"{names.path}: {agreeing:,} of its {known:,} labels are those of {beton.path}; "
            f"{_remedy([names])}"
        )


def _remedy(lists: Sequence[NameList]) -> str:
    """What to do where lists and data do not belong together."""
    if any(one.data == "affectnet" for one in lists):
        return (
            "give the lists of these data; of AffectNet, only the release with validation.csv has the names"
        )
    return "give the lists of these data"
