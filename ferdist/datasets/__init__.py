"""Readers of raw data sets, folds and the audit; every reader returns a FaceDataset."""

from ferdist.datasets.audit import Audit, audit
from ferdist.datasets.ckplus import read_ckplus
from ferdist.datasets.fer2013 import read_ckextended, read_fer2013
from ferdist.datasets.ferplus import FERPLUS_CLASSES, ferplus_labels, read_ferplus, read_name_list
from ferdist.datasets.folders import read_folders
from ferdist.datasets.folds import assign_folds, fold_evenness
from ferdist.datasets.record import (
    CKPLUS7_CLASSES,
    CKPLUS8_CLASSES,
    FER2013_CLASSES,
    SPLITS,
    FaceDataset,
    Images,
    Integers,
    no_values,
)

__all__ = [
    "CKPLUS7_CLASSES",
    "CKPLUS8_CLASSES",
    "FER2013_CLASSES",
    "FERPLUS_CLASSES",
    "SPLITS",
    "Audit",
    "FaceDataset",
    "Images",
    "Integers",
    "assign_folds",
    "audit",
    "ferplus_labels",
    "fold_evenness",
    "no_values",
    "read_ckextended",
    "read_ckplus",
    "read_fer2013",
    "read_ferplus",
    "read_folders",
    "read_name_list",
]
