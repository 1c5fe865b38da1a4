"""Score a trained model on a split: predictions into files, every score from them into results.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from ferdist import environment
from ferdist.config import to_dict
from ferdist.data.beton import Beton, BetonLoader, Labels, labels_of, open_beton
from ferdist.data.folds import HOLDOUT, Holdout
from ferdist.data.record import SPLITS, Images, Integers
from ferdist.errors import ConfigError, DataError, RunError
from ferdist.evaluation import attention
from ferdist.evaluation.attention import Watched, choose_faces, watch
from ferdist.evaluation.benchmark import Benchmark, Cell, choose_donors, covered_fraction, seen_in_training
from ferdist.evaluation.board import show_benchmark
from ferdist.evaluation.metrics import Scores, score, score_all
from ferdist.evaluation.model import ModelCard, TrainedModel, default_checkpoint, load_trained
from ferdist.evaluation.predict import TTA, cluster_of, predict
from ferdist.evaluation.predictions import Predictions, by_sequence, check_same_samples
from ferdist.evaluation.realfaces import listed_samples
from ferdist.evaluation.records import OCCLUSION, Damage, Evaluation, EvaluationKey, Results
from ferdist.evaluation.results import add_evaluations
from ferdist.evaluation.robustness import compare_benchmarks
from ferdist.io import sha256
from ferdist.runtime.distributed import World, join_world
from ferdist.runtime.folder import RunFolder
from ferdist.runtime.precision import configure_kernels, scoring_dtype

BATCH_SIZE: Final = 256


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
) -> Results | None:
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
        results.json, the new evaluations last; None on other ranks than the main one.

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
        raise ConfigError("the published lists name test images: give --split test")
    with join_world(device) as world:
        trained = load_trained(model, checkpoint, world.device, trust_code=trust_code)
        if data is None and trained.weights is not None:
            raise ConfigError(f"{model}: exported weights do not name their data: give --data FILE.beton")
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
            f"{folder.path}: holds evaluations of weights other than {trained.weights}: "
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
) -> Results | None:
    """As `evaluate`, with what it opens already open; all ranks must call."""
    plan = plan or Plan()
    scoring = Scoring(trained, beton, world, split, tta)
    reference = None if plan.reference is None else scoring.reference(plan.reference)
    parts = {"all": (scoring.indices, scoring.labels)}
    parts |= {name: listed_samples(beton, path, scoring.labels) for name, path in plan.lists.items()}
    plain = {name: scoring.predict(labels, indices) for name, (indices, labels) in parts.items()}
    covered = scoring.predict(scoring.labels, scoring.indices, plan.cells) if plan.cells else None
    results = None
    if world.is_main:
        evaluations: list[Evaluation] = []
        for name, predictions in plain.items():
            predictions.save(folder.predictions / scoring.file(replace(scoring.key, subset=name)))
            evaluations += scoring.evaluations(predictions, name)
        comparison = None
        if covered is not None:
            of_cells = scoring.covered_evaluations(covered)
            if reference is not None:
                compared = compare_benchmarks([covered], [reference])
                conditions = scoring.key.conditions_json()
                comparison = {**conditions, "reference": str(plan.reference), **compared}
            covered.merged_into(folder.predictions / of_cells[0].predictions)
            evaluations += of_cells
        results = add_evaluations(
            folder.results,
            evaluations,
            classes=trained.card.classes,
            config=to_dict(trained.card.config),
            environment={
                **environment.describe(world.device, world.size),
                "training": folder.stored_environment(),
            },
            comparison=comparison,
        )
        if covered is not None:
            same = [one for one in results.evaluations if one.occlusion and one.conditions == scoring.key]
            board = folder.tensorboard / OCCLUSION / Path(scoring.file(scoring.key)).stem
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
        self.card, self.beton, self.world, self.network = card, beton, world, trained.network
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
        self.key = EvaluationKey(
            data=beton.manifest.name,
            beton_sha256=beton.manifest.sha256,
            split=split,
            fold=self.holdout.fold,
            inner_fold=self.holdout.inner_fold,
            tta=tta,
            checkpoint=trained.checkpoint,
        )

    def file(self, key: EvaluationKey) -> str:
        """The file in ``predictions/`` of an evaluation with this key."""
        return key.predictions_name(own_data=self.own_data)

    def predict(self, labels: Labels, indices: Integers, cells: Sequence[Cell] = ()) -> Predictions:
        """Predictions for samples as they are, or under cells of the benchmark; all ranks must call."""
        return predict(
            self.network,
            self.beton,
            labels,
            self.loader,
            indices,
            self.world,
            mean=self.card.mean,
            std=self.card.std,
            dtype=scoring_dtype(self.card.config.train.precision, self.world.device),
            tta=self.key.tta,
            benchmark=self.benchmark(cells) if cells else None,
            cells=cells,
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

    def reference(self, run: Path) -> Predictions:
        """The stored predictions of another run under the same conditions, with its own checkpoint.

        Raises:
            RunError: if there is no such run, or it was not evaluated so with the same samples and labels.
        """
        folder = RunFolder(run)
        key = replace(self.key, checkpoint=default_checkpoint(folder.stored_config()))
        own_data = folder.stored_environment().get("beton_sha256") == key.beton_sha256
        path = folder.predictions / OCCLUSION / key.predictions_name(own_data=own_data)
        if not path.exists():
            raise RunError(f"{path}: no such file: run `ferdist evaluate {run} --occlusion` first")
        found = Predictions.load(path)
        index = np.sort(self.labels.scorable(self.indices))
        wanted = Predictions(index, self.labels.label[index], found.probabilities, key.beton_sha256)
        check_same_samples(wanted, found)
        return found

    def evaluations(self, predictions: Predictions, part: str) -> list[Evaluation]:
        """The evaluations that predictions for images as they are give.

        They are scored with all samples and, where the model was trained on these data's training images,
        without those that have a copy in the parts that it may have learned from; per image and, where there
        are sequences, per sequence.

        Args:
            predictions: of the split or of the samples of a list.
            part: name of the list; ``all`` for the split.
        """
        index = predictions.index
        cluster, sequence = cluster_of(self.beton, index), self.beton.sequence[index]
        subsets = {part: np.ones(len(index), dtype=bool)}
        if self.learned_from_train and self.key.split != "train":
            without = "no_copies" if part == "all" else f"{part}_no_copies"
            subsets[without] = ~has_copy(self.beton, index, self.key.split, self.holdout)
        found = []
        for subset, keep in subsets.items():
            if not keep.any():
                continue
            kept = predictions.select(keep)
            key = replace(self.key, subset=subset)
            found.append(self._evaluation(key, score(kept, cluster[keep])))
            if (sequence >= 0).all():
                whole = by_sequence(kept, sequence[keep])
                scores = score(whole, cluster[np.searchsorted(index, whole.index)])
                found.append(self._evaluation(replace(key, unit="sequence"), scores))
        return found

    def covered_evaluations(self, covered: Predictions) -> list[Evaluation]:
        """The evaluations of a benchmark: all samples, per image."""
        _, height, width = self.beton.manifest.image_shape
        cells = range(len(covered.cells))
        scores = score_all([covered.cell(number) for number in cells], cluster_of(self.beton, covered.index))
        found = []
        for cell, checksum, of_cell in zip(covered.cells, covered.checksums, scores, strict=True):
            damage = Damage(
                *(cell.kind, cell.severity, cell.fill),
                covered=covered_fraction(cell, height, width),
                seen=seen_in_training(cell, self.card.config.augment, height, width),
                checksum=checksum,
            )
            found.append(self._evaluation(replace(self.key, occlusion=damage), of_cell))
        return found

    def _evaluation(self, key: EvaluationKey, scores: Scores) -> Evaluation:
        return Evaluation(**vars(key), **vars(scores), predictions=self.file(key))


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
        raise DataError(f"{beton.path}: images are {shape} (C, H, W), but the model expects {wanted}")
    if labels.classes != card.classes:
        raise DataError(
            f"{beton.path}: classes are {', '.join(labels.classes)}, "
            f"but the model's are {', '.join(card.classes)}"
        )


def main_evaluation(results: Results, split: str = "val") -> Evaluation:
    """The newest plain evaluation of a split: all samples, per image, nothing covered, one view."""
    plain = (split, "all", "image", None, "none")
    return next(
        one
        for one in reversed(results.evaluations)
        if (one.split, one.subset, one.unit, one.occlusion, one.tta) == plain
    )
