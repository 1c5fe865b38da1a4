"""Readers of raw data sets, folds and the audit; every reader returns a FaceDataset."""

from ferdist.datasets.audit import Audit, audit
from ferdist.datasets.ckplus import read_ckplus
from ferdist.datasets.fer2013 import read_fer2013
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
    "SPLITS",
    "Audit",
    "FaceDataset",
    "Images",
    "Integers",
    "assign_folds",
    "audit",
    "fold_evenness",
    "no_values",
    "read_ckplus",
    "read_fer2013",
    "read_folders",
]
