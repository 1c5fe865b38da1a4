"""Score a trained model on a split: predictions into files, every figure from them into results.json."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ferdist import environment
from ferdist.beton import Beton, BetonLoader, Labels, labels_of, open_beton
from ferdist.config import to_dict
from ferdist.datasets.record import Integers
from ferdist.errors import ConfigError, DataError
from ferdist.evaluation import metrics, occlusion
from ferdist.evaluation.metrics import Predictions
from ferdist.evaluation.model import ModelCard, TrainedModel, load_trained
from ferdist.evaluation.predict import TTA, predict
from ferdist.evaluation.results import add_evaluations
from ferdist.training.distributed import World, join_world
from ferdist.training.folder import RunFolder
from ferdist.training.precision import configure_kernels, scoring_dtype

BATCH_SIZE = 256


def evaluate(
    model: str,
    *,
    data: Path | None = None,
    split: str = "val",
    with_occlusion: bool = False,
    tta: str = "none",
    checkpoint: str | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Evaluate a run and write its results.json; under torchrun the ranks share the samples.

    Args:
        model: a run folder.
        data: a beton file, by default the run's own.
        split: ``val`` (the held-out fold where the run has one) or ``test``.
        with_occlusion: also under squares and circles of five sizes.
        tta: one of ``none``, ``flip``, ``ten-crop``.
        checkpoint: ``best``, ``last`` or a path; by default what the run's config selects.
        device: ``auto``, ``cpu`` or ``cuda``.

    Returns:
        The content of results.json, the new evaluations last.

    Raises:
        ConfigError, DataError, RunError: one line that says what does not fit.
    """
    if split not in ("train", "val", "test"):
        raise ConfigError(f"--split is {split!r}: it must be val or test (or train)")
    if tta not in TTA:
        raise ConfigError(f"--tta is {tta!r}: it must be one of {', '.join(TTA)}")
    with join_world(device) as world:
        folder = RunFolder(Path(model))
        trained = load_trained(model, checkpoint, world.device)
        beton = open_beton(data or Path(trained.card.config.data.path), checksum=True)
        return evaluate_trained(
            trained, beton, world, folder, split=split, with_occlusion=with_occlusion, tta=tta
        )


def evaluate_trained(
    trained: TrainedModel,
    beton: Beton,
    world: World,
    folder: RunFolder,
    *,
    split: str,
    with_occlusion: bool = False,
    tta: str = "none",
) -> dict[str, Any]:
    """As `evaluate`, with what it opens already open; all ranks must call."""
    card = trained.card
    labels = labels_of(beton, card.config.data.labels)
    check_fit(card, beton, labels)
    configure_kernels(card.config.train.deterministic, card.config.train.precision)
    # A fold is a part of the data that the run trained on; other data are taken as their splits say.
    own_data = beton.manifest.sha256 == card.beton_sha256
    folds = (card.config.data.fold, card.config.data.inner_fold) if own_data else (None, None)
    indices = beton.indices(split, *folds)
    loader = BetonLoader(
        beton,
        batch_size=BATCH_SIZE,
        device=world.device,
        workers=card.config.data.workers,
        timeout=card.config.data.timeout,
    )
    cells: list[dict[str, Any] | None] = [None]
    if with_occlusion:
        cells += [
            {"kind": kind, "severity": severity, "fill": occlusion.FILL}
            for kind in occlusion.KINDS
            for severity in range(1, len(occlusion.SIDES) + 1)
        ]
    entries: list[dict[str, Any]] = []
    for cell in cells:
        cover = None
        if cell is not None:
            cover = partial(
                occlusion.cover, kind=cell["kind"], severity=cell["severity"], samples=beton.manifest.samples
            )
        predictions = predict(
            trained.network,
            beton,
            labels,
            loader,
            indices,
            world,
            mean=card.mean,
            std=card.std,
            dtype=scoring_dtype(card.config.train.precision, world.device),
            tta=tta,
            cover=cover,
        )
        key = {
            "data": beton.manifest.name,
            "beton_sha256": beton.manifest.sha256,
            "split": split,
            "fold": folds[0],
            "inner_fold": folds[1],
            "tta": tta,
            "occlusion": cell,
            "checkpoint": trained.checkpoint,
        }
        if world.is_main:
            entries += entries_of(predictions, beton, key, own_data=own_data)
            predictions.save(folder.predictions / predictions_name(key, own_data=own_data))
    results: dict[str, Any] = {}
    if world.is_main:
        results = add_evaluations(
            folder.results,
            entries,
            classes=list(card.classes),
            config=to_dict(card.config),
            environment={
                **environment.describe(world.device, world.size),
                "training": folder.stored_environment(),
            },
        )
    world.barrier()
    return results


def entries_of(
    predictions: Predictions, beton: Beton, key: dict[str, Any], *, own_data: bool
) -> list[dict[str, Any]]:
    """The entries of results.json that one set of predictions gives.

    Clean images are scored with all samples and, in the data that the model was trained on, without those
    that have a copy in the parts that it may have learned from; per image and, where there are sequences, per
    sequence. Covered images are scored with all samples, per image.
    """
    cluster = cluster_of(beton, predictions.index)
    sequence = beton.sequence[predictions.index]
    if key["occlusion"] is not None:
        return [_entry(predictions, cluster, key, "all", "image")]
    subsets = {"all": np.ones(len(cluster), dtype=bool)}
    if own_data and key["split"] != "train":
        part = key["split"], key["fold"], key["inner_fold"]
        subsets["no_copies"] = ~has_copy(beton, predictions.index, *part)
    entries = []
    for subset, keep in subsets.items():
        if not keep.any():
            continue
        entries.append(_entry(predictions.select(keep), cluster[keep], key, subset, "image"))
        if (sequence >= 0).all():
            whole = metrics.by_sequence(predictions.select(keep), sequence[keep])
            of_sequence = cluster[np.searchsorted(predictions.index, whole.index)]
            entries.append(_entry(whole, of_sequence, key, subset, "sequence"))
    return entries


def has_copy(
    beton: Beton, index: Integers, split: str, fold: int | None, inner_fold: int | None = None
) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which samples, bool (N,), have an exact copy in train (of ``val``) or in train or val (of ``test``)."""
    learned = [beton.indices("train", fold, inner_fold)]
    if split == "test" and (beton.split == 1).any():
        learned.append(beton.indices("val", fold))
    return np.isin(beton.copy_group[index], beton.copy_group[np.concatenate(learned)])


def cluster_of(beton: Beton, index: Integers) -> Integers:
    """What intervals and tests take together, int64 (N,): subjects or, where some are unknown, copies."""
    subject = beton.subject[index]
    cluster: Integers = subject if (subject >= 0).all() else beton.copy_group[index]
    return cluster


def check_fit(card: ModelCard, beton: Beton, labels: Labels) -> None:
    """Refuse data that the model cannot be scored on.

    Raises:
        DataError: if image shape or classes differ from the model's.
    """
    image = beton.manifest.image
    shape = (image["channels"], image["height"], image["width"])
    wanted = (card.task.channels, card.task.height, card.task.width)
    if shape != wanted:
        raise DataError(f"{beton.path}: images are {shape} (C, H, W), but the model takes {wanted}")
    if labels.classes != card.classes:
        raise DataError(
            f"{beton.path}: classes are {', '.join(labels.classes)}, "
            f"but the model knows {', '.join(card.classes)}"
        )


def _entry(
    predictions: Predictions, cluster: Integers, key: dict[str, Any], subset: str, unit: str
) -> dict[str, Any]:
    return {**key, "subset": subset, "unit": unit, **metrics.score(predictions, cluster)}


def main_entry(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """The newest plain entry: val, all samples, per image, nothing covered, one view."""
    plain = {"split": "val", "subset": "all", "unit": "image", "occlusion": None, "tta": "none"}
    return next(e for e in reversed(entries) if all(e[name] == value for name, value in plain.items()))


def predictions_name(key: dict[str, Any], *, own_data: bool = True) -> str:
    """Name of the file in ``predictions/`` that the evaluation with this key writes.

    Args:
        key: data, split, fold, inner_fold, tta, occlusion and checkpoint as in results.json.
        own_data: whether the run was trained on these data.
    """
    parts = [key["data"] if own_data else f"{key['data']}-{key['beton_sha256'][:8]}", key["split"]]
    if key["fold"] is not None:
        parts.append(f"fold{key['fold']}")
    if key["inner_fold"] is not None:
        parts.append(f"inner{key['inner_fold']}")
    if key["tta"] != "none":
        parts.append(key["tta"])
    if key["occlusion"] is not None:
        parts += [key["occlusion"]["kind"], str(key["occlusion"]["severity"])]
    parts.append(Path(key["checkpoint"]).stem)
    return "-".join(parts) + ".npz"
