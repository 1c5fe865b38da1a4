"""What `ferdist inspect` prints and draws."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from ferdist.data.audit import EQUALISED_TEXT
from ferdist.data.beton import BetonLoader, open_beton
from ferdist.data.record import Integers
from ferdist.errors import printable

GRID_COLUMNS = 8


def inspect(path: Path) -> dict[str, Any]:
    """Verify a beton with its full checksum and say what is in it, as `ferdist inspect --json` prints it.

    Raises:
        DataError: if the file is not what its manifest says.
    """
    manifest = open_beton(path, checksum=True).manifest
    keys = "name samples image classes splits folds sha256 audit statistics sources"
    return {key: getattr(manifest, key) for key in keys.split()}


def as_text(contents: dict[str, Any]) -> str:
    """The same for people: counts per split, fold and class, and what the audit found."""
    image, classes = contents["image"], [printable(name) for name in contents["classes"]]
    width = max(8, *(len(name) for name in classes)) + 2
    lines = [
        f"{contents['name']}: {contents['samples']} images "
        f"{image['channels']}x{image['height']}x{image['width']}, sha256 {contents['sha256'][:16]}",
        "",
        " " * 10 + f"{'samples':>9}" + "".join(f"{name:>{width}}" for name in classes),
    ]
    parts = list(contents["splits"].items())
    parts += [(f"fold {fold}", part) for fold, part in contents["folds"].items()]
    for name, part in parts:
        counts = "".join(f"{count:>{width}}" for count in part["per_class"])
        subjects = f"   {len(part['subjects'])} subjects" if "subjects" in part else ""
        lines.append(f"{name:<10}{part['samples']:>9}{counts}{subjects}")
    audit = contents["audit"]
    lines.append("")
    if "folds" in audit:
        samples, subjects = audit["folds"]["samples"], audit["folds"]["subjects"]
        lines.append(
            f"folds: {samples[0]} to {samples[1]} samples and {subjects[0]} to {subjects[1]} subjects each, "
            "no subject in two"
        )
    copies, conflicts = audit["copies"], audit["conflicting_labels"]
    leaks = ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in audit["leaks"].items())
    lines += [
        f"{audit['unique_images']} distinct images",
        f"{copies['samples']} images in {copies['groups']} groups of exact copies",
        f"{conflicts['samples']} of them in {conflicts['groups']} groups whose labels disagree",
        f"copies across parts: {leaks}",
        f"{audit['near_constant']['samples']} images are near-constant",
    ]
    if audit.get("equalised"):  # manifests of earlier versions do not say
        lines.append(EQUALISED_TEXT)
    return "\n".join(map(printable, lines))


def save_grid(path: Path, out: Path, augment_config: Path | None) -> None:
    """Write a PNG of samples: a row per class, or each sample beside augmented versions of it.

    Raises:
        DataError: if the beton is not whole.
        ConfigError: if the config cannot be read.
    """
    from ferdist.augment import Augment, grid
    from ferdist.config import load_config

    beton = open_beton(path)
    chosen = _some_of_each_class(beton.label)
    loader = BetonLoader(beton, batch_size=len(chosen), device=torch.device("cpu"))
    batch = next(loader.batches(chosen))
    images = batch.image.numpy()
    if augment_config is None:
        label = batch.label.numpy()
        names = [beton.manifest.classes[number] for number in np.unique(label)]
        grid.save_grid(grid.by_class(images, label, GRID_COLUMNS), GRID_COLUMNS, out, names)
        return
    mean, std = beton.normalisation()
    augment = Augment(load_config(augment_config).augment, mean, std)
    shown = grid.augmented(images[::GRID_COLUMNS], augment, GRID_COLUMNS, seed=0)
    grid.save_grid(shown, GRID_COLUMNS, out)


def _some_of_each_class(label: Integers) -> Integers:
    generator = np.random.default_rng(0)
    classes = np.unique(label)
    picks = [generator.permutation(np.flatnonzero(label == k))[:GRID_COLUMNS] for k in classes]
    return np.concatenate(picks)
