"""Score a trained model on a split: predictions into files, every figure from them into results.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from ferdist import environment
from ferdist.config import to_dict
from ferdist.data.beton import Beton, BetonLoader, Labels, labels_of, open_beton
from ferdist.data.folds import HOLDOUT, Holdout
from ferdist.data.record import SPLITS, Images, Integers
from ferdist.errors import ConfigError, DataError, RunError
from ferdist.evaluation import attention, metrics
from ferdist.evaluation.attention import Watched, choose_faces, watch
from ferdist.evaluation.benchmark import (
    Benchmark,
    Cell,
    choose_donors,
    covered_fraction,
    seen_in_training,
)
from ferdist.evaluation.board import show_benchmark
from ferdist.evaluation.metrics import Predictions
from ferdist.evaluation.model import ModelCard, TrainedModel, default_checkpoint, load_trained
from ferdist.evaluation.predict import TTA, predict, predict_covered
from ferdist.evaluation.realfaces import listed_samples
from ferdist.evaluation.results import add_evaluations
from ferdist.evaluation.robustness import GridPredictions, compare
from ferdist.io import sha256
from ferdist.runtime.distributed import World, join_world
from ferdist.runtime.folder import RunFolder
from ferdist.runtime.precision import configure_kernels, scoring_dtype

BATCH_SIZE = 256
OCCLUSION: Final = "occlusion"
"""Folder inside ``predictions/`` for those under the occlusion benchmark."""


@dataclass(frozen=True)
class Plan:
    """What is scored besides a split's plain images.

    Attributes:
        cells: of the occlusion benchmark.
        reference: a run folder whose stored predictions under the same cells are the reference, or None.
        lists: published lists of really occluded or turned faces of test, by the name of the subset.
    """

    cells: tuple[Cell, ...] = ()
    reference: Path | None = None
    lists: Mapping[str, Path] = field(default_factory=dict)


def evaluate(
    model: str,
    *,
    data: Path | None = None,
    split: str = "val",
    plan: Plan | None = None,
    tta: str = "none",
    checkpoint: str | None = None,
    device: str = "auto",
    trust_code: bool = False,
) -> dict[str, Any]:
    """Evaluate a run and write its results.json; under torchrun the ranks share the samples.

    Args:
        model: a run folder, a .safetensors file or the name of shipped weights; the results of the latter
            two go into ``runs/weights/NAME``.
        data: a beton file, by default the run's own.
        split: ``val`` (the held-out fold where the run has one) or ``test``.
        plan: what else is scored.
        tta: one of ``none``, ``flip``, ``ten-crop``.
        checkpoint: ``best``, ``last`` or a path; by default what the run's config selects.
        device: ``auto``, ``cpu`` or ``cuda``.
        trust_code: whether a module that the model's card names may be imported, which runs its code.

    Returns:
        The content of results.json, the new evaluations last.

    Raises:
        ConfigError, DataError, RunError: one line that says what does not fit.
    """
    plan = plan or Plan()
    if split not in (*SPLITS, HOLDOUT):
        raise ConfigError(f"--split is {split!r}: it must be val or test (or train, or holdout)")
    if tta not in TTA:
        raise ConfigError(f"--tta is {tta!r}: it must be one of {', '.join(TTA)}")
    if plan.reference is not None and not plan.cells:
        raise ConfigError("--reference compares under occlusion: give --occlusion too")
    if plan.lists and split != "test":
        raise ConfigError("the published lists name images of test: give --split test")
    with join_world(device) as world:
        trained = load_trained(model, checkpoint, world.device, trust_code=trust_code)
        if data is None and trained.weights is not None:
            raise ConfigError(f"{model}: exported weights come without data: give --data FILE.beton")
        beton = open_beton(data or Path(trained.card.config.data.path), checksum=True)
        folder = RunFolder(Path(model)) if trained.weights is None else _folder_of_weights(trained)
        return evaluate_trained(trained, beton, world, folder, split=split, plan=plan, tta=tta)


def _folder_of_weights(trained: TrainedModel) -> RunFolder:
    """The folder that collects the evaluations of exported weights, made where it does not exist.

    Raises:
        RunError: if it belongs to other weights of the same name.
    """
    assert trained.weights is not None
    folder = RunFolder(Path("runs") / "weights" / trained.weights.stem)
    record = {
        "beton_sha256": trained.card.beton_sha256,
        "weights": trained.weights.name,
        "weights_sha256": sha256(trained.weights),
    }
    if folder.config.exists() and folder.stored_environment() != record:
        raise RunError(
            f"{folder.path}: the evaluations there are of other weights than {trained.weights}: "
            "move the folder away or rename the weights"
        )
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.write_config(trained.card.config, record)
    return folder


def evaluate_trained(
    trained: TrainedModel,
    beton: Beton,
    world: World,
    folder: RunFolder,
    *,
    split: str,
    plan: Plan | None = None,
    tta: str = "none",
) -> dict[str, Any]:
    """As `evaluate`, with what it opens already open; all ranks must call."""
    plan = plan or Plan()
    scoring = Scoring(trained, beton, world, split, tta)
    listed = {name: listed_samples(beton, path, scoring.labels) for name, path in plan.lists.items()}
    reference = None if plan.reference is None else scoring.reference(plan.reference)
    plain = scoring.predict(scoring.labels, scoring.indices)
    of_lists = {name: scoring.predict(labels, indices) for name, (indices, labels) in listed.items()}
    covered = scoring.predict_covered(plan.cells) if plan.cells else None
    results: dict[str, Any] = {}
    if world.is_main:
        path = folder.predictions / predictions_name(scoring.key, own_data=scoring.own_data)
        entries = scoring.entries(plain)
        plain.save(path)
        for name, predictions in of_lists.items():
            entries += scoring.entries(predictions, name)
            predictions.save(path.with_name(f"{path.stem}-{name}.npz"))
        comparison = None
        if covered is not None:
            entries += scoring.covered_entries(covered)
            if reference is not None:
                compared = compare([covered], [reference])
                comparison = {**scoring.key, "reference": str(plan.reference), **compared}
            covered.merged_into(path.parent / OCCLUSION / path.name)
        results = add_evaluations(
            folder.results,
            entries,
            classes=list(trained.card.classes),
            config=to_dict(trained.card.config),
            environment={
                **environment.describe(world.device, world.size),
                "training": folder.stored_environment(),
            },
            comparison=comparison,
        )
        if covered is not None:
            same = [
                entry
                for entry in results["evaluations"]
                if entry["occlusion"] and all(entry[name] == value for name, value in scoring.key.items())
            ]
            board = folder.tensorboard / OCCLUSION / path.stem
            show_benchmark(board, same, scoring.watch(), trained.card.classes)
    world.barrier()
    return results


class Scoring:
    """A model, a split and how it is looked at: what all predictions of one evaluation share.

    Args:
        trained: the model.
        beton: the data; refused if the model does not fit them.
        world: this rank.
        split: name of the split.
        tta: of ``TTA``.
    """

    def __init__(self, trained: TrainedModel, beton: Beton, world: World, split: str, tta: str) -> None:
        card = trained.card
        self.card, self.beton, self.world = card, beton, world
        self.labels = labels_of(beton, card.config.data.labels)
        check_fit(card, beton, self.labels)
        configure_kernels(card.config.train.deterministic, card.config.train.precision)
        # A fold is a part of the data that the run trained on; other data are taken as their splits say.
        self.own_data = beton.manifest.sha256 == card.beton_sha256
        self.holdout = card.config.data.holdout if self.own_data else Holdout()
        # Another file whose training images have these very moments (of exact sums) has the same ones.
        moments = {"mean": list(card.mean), "std": list(card.std)}
        self.learned_from_train = self.own_data or beton.manifest.statistics.get("train") == moments
        self.indices = beton.indices(split, self.holdout)
        self.loader = BetonLoader(
            beton,
            batch_size=BATCH_SIZE,
            device=world.device,
            workers=card.config.data.workers,
            timeout=card.config.data.timeout,
        )
        self.network = trained.network
        self.view: dict[str, Any] = {
            "mean": card.mean,
            "std": card.std,
            "dtype": scoring_dtype(card.config.train.precision, world.device),
            "tta": tta,
        }
        self.key: dict[str, Any] = {
            "data": beton.manifest.name,
            "beton_sha256": beton.manifest.sha256,
            "split": split,
            "fold": self.holdout.fold,
            "inner_fold": self.holdout.inner_fold,
            "tta": tta,
            "checkpoint": trained.checkpoint,
        }

    def predict(self, labels: Labels, indices: Integers) -> Predictions:
        """Predictions for samples as they are; all ranks must call."""
        return predict(self.network, self.beton, labels, self.loader, indices, self.world, **self.view)

    def predict_covered(self, cells: tuple[Cell, ...]) -> GridPredictions:
        """Predictions for the split under each cell of the benchmark; all ranks must call."""
        benchmark = self.benchmark(cells)
        covers = [partial(benchmark.cover, cell=cell) for cell in cells]
        covered = predict_covered(
            self.network, self.beton, self.labels, self.loader, self.indices, self.world, covers, **self.view
        )
        first = covered[0].predictions
        return GridPredictions(
            first.index,
            first.label,
            cluster_of(self.beton, first.index),
            cells,
            tuple(part.checksum for part in covered),
            np.stack([part.predictions.probabilities for part in covered]),
            first.beton_sha256,
        )

    def benchmark(self, cells: Sequence[Cell]) -> Benchmark:
        """What makes the images of these cells."""
        return benchmark_on(self.beton, self.loader, self.indices, self.card.mean, cells)

    def watch(self) -> list[Watched]:
        """Where the model looks in one face of each class; nothing where its features do not tell."""
        (index,) = choose_faces(self.labels.scorable(self.indices), self.labels.label, rounds=1)
        images = read_images(self.beton, self.loader, index)
        benchmark, label = self.benchmark(attention.CELLS), self.labels.label[index]
        try:
            return watch(self.network, images, index, label, benchmark, self.card.mean, self.card.std)
        except RunError:
            return []

    def reference(self, run: Path) -> GridPredictions:
        """The stored predictions of another run under the same conditions, with its own checkpoint.

        Raises:
            RunError: if there is no such run, or it was not evaluated so with the same samples and labels.
        """
        folder = RunFolder(run)
        key = {**self.key, "checkpoint": default_checkpoint(folder.stored_config())}
        own_data = folder.stored_environment().get("beton_sha256") == self.beton.manifest.sha256
        name = predictions_name(key, own_data=own_data)
        found = GridPredictions.load(folder.predictions / OCCLUSION / name)
        index = np.sort(self.labels.scorable(self.indices))
        found.check_samples(index, self.labels.label[index], self.beton.manifest.sha256)
        return found

    def entries(self, predictions: Predictions, name: str | None = None) -> list[dict[str, Any]]:
        """The entries of results.json that predictions for images as they are give.

        They are scored with all samples and, where the model was trained on these data's training images,
        without those that have a copy in the parts that it may have learned from; per image and, where there
        are sequences, per sequence.

        Args:
            predictions: of the split or of the samples of a list.
            name: of the list.
        """
        index = predictions.index
        cluster, sequence = cluster_of(self.beton, index), self.beton.sequence[index]
        subsets = {name or "all": np.ones(len(index), dtype=bool)}
        if self.learned_from_train and self.key["split"] != "train":
            without = f"{name}_no_copies" if name else "no_copies"
            subsets[without] = ~has_copy(self.beton, index, self.key["split"], self.holdout)
        entries = []
        for subset, keep in subsets.items():
            if not keep.any():
                continue
            kept = predictions.select(keep)
            entries.append(self._entry(subset, "image", metrics.score(kept, cluster[keep])))
            if (sequence >= 0).all():
                whole = metrics.by_sequence(kept, sequence[keep])
                of_sequence = cluster[np.searchsorted(index, whole.index)]
                entries.append(self._entry(subset, "sequence", metrics.score(whole, of_sequence)))
        return entries

    def covered_entries(self, covered: GridPredictions) -> list[dict[str, Any]]:
        """The entries of results.json of a benchmark: all samples, per image."""
        _, height, width = self.beton.manifest.image_shape
        scores = metrics.score_all(
            [covered.predictions(number) for number in range(len(covered.cells))], covered.cluster
        )
        entries = []
        for cell, checksum, figures in zip(covered.cells, covered.checksums, scores, strict=True):
            damage = {
                **cell.to_json(),
                "covered": covered_fraction(cell, height, width),
                "seen": seen_in_training(cell, self.card.config.augment, height, width),
                "checksum": checksum,
            }
            entries.append(self._entry("all", "image", figures, damage))
        return entries

    def _entry(
        self, subset: str, unit: str, figures: dict[str, Any], damage: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        return {**self.key, "occlusion": damage, "subset": subset, "unit": unit, **figures}


def benchmark_on(
    beton: Beton, loader: BetonLoader, indices: Integers, mean: Sequence[float], cells: Sequence[Cell]
) -> Benchmark:
    """What makes the images of the occlusion benchmark on a part of the data.

    Args:
        beton: the data.
        loader: of ``beton``.
        indices: int64 (M,), all samples of the split or fold that is scored.
        mean: that the network's inputs are normalised with, per channel, in [0, 1] units.
        cells: the patches of ``patch`` are read only if it is among them.
    """
    patches = any(cell.kind == "patch" for cell in cells)
    donors = choose_donors(indices) if patches else np.empty(0, dtype=np.int64)
    return Benchmark(
        tuple(round(255 * level) for level in mean),
        cluster_of(beton, np.arange(beton.manifest.samples)),
        donors,
        read_images(beton, loader, donors),
    )


def read_images(beton: Beton, loader: BetonLoader, indices: Integers) -> Images:
    """The images of these samples in this order, uint8 (M, C, H, W)."""
    none = np.empty((0, *beton.manifest.image_shape), dtype=np.uint8)
    return np.concatenate([none, *(batch.image.cpu().numpy() for batch in loader.batches(indices))])


def cluster_of(beton: Beton, index: Integers) -> Integers:
    """What intervals resample, and who is on an image: subjects, or groups of copies where not every one of
    these samples has a subject."""
    subject = beton.subject[index]
    return subject if (subject >= 0).all() else beton.copy_group[index]


def has_copy(
    beton: Beton, index: Integers, split: str, holdout: Holdout
) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which samples, bool (N,), have an exact copy in train, or in train or val (of ``test``)."""
    learned = [beton.indices("train", holdout)]
    if split == "test" and (beton.split == 1).any():
        learned.append(beton.indices("val", holdout))
    return np.isin(beton.copy_group[index], beton.copy_group[np.concatenate(learned)])


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


def main_entry(entries: list[dict[str, Any]], split: str = "val") -> dict[str, Any]:
    """The newest plain entry of a split: all samples, per image, nothing covered, one view."""
    plain = {"split": split, "subset": "all", "unit": "image", "occlusion": None, "tta": "none"}
    return next(e for e in reversed(entries) if all(e[name] == value for name, value in plain.items()))


def predictions_name(key: dict[str, Any], *, own_data: bool = True) -> str:
    """Name of the file in ``predictions/`` that the evaluation with this key writes.

    Args:
        key: data, split, fold, inner_fold, tta and checkpoint as in results.json.
        own_data: whether the run was trained on these data.
    """
    parts = [key["data"] if own_data else f"{key['data']}-{key['beton_sha256'][:8]}", key["split"]]
    if key["fold"] is not None:
        parts.append(f"fold{key['fold']}")
    if key["inner_fold"] is not None:
        parts.append(f"inner{key['inner_fold']}")
    if key["tta"] != "none":
        parts.append(key["tta"])
    parts.append(Path(key["checkpoint"]).stem)
    return "-".join(parts) + ".npz"
