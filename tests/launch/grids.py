"""Configs of a small grid for `launch.table1`: a data set with a file for resnet18, and one without."""

from __future__ import annotations

from pathlib import Path

import yaml

from ferdist.data import prepare


def write_grid(place: Path, ckplus: Path) -> Path:
    """A folder of configs for drawn faces: a new beton in FER2013's layout, and ``ckplus`` with its folds."""
    raw = prepare.synthetic(place / "raw", images=140, seed=3, format="fer2013-csv")
    grid = (("fer2013/resnet18", prepare.fer2013(raw, place), None), ("ckplus/base", ckplus, 0))
    for name, beton, fold in grid:
        file = place / "configs" / f"{name}.yaml"
        file.parent.mkdir(parents=True)
        values = {
            "data": {"path": str(beton), "fold": fold, "batch_size": 16},
            "model": {"name": "resnet18", "stem": "imagenet", "width": 8},
            "train": {"epochs": 2, "precision": "fp32", "lr": 0.02, "resolution": [[0, 0.5], [0.5, 1]]},
            "device": "cpu",
        }
        file.write_text(yaml.safe_dump(values))
    return place / "configs"
