"""Score a model on a split: predictions into files, every score from them into results.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from ferdist import environment
from ferdist.config import RECORD_KEY, read_yaml
from ferdist.data.beton import Beton, Labels, labels_of, open_beton
from ferdist.data.folds import ALL, HOLDOUT
from ferdist.data.namelists import NameList
from ferdist.data.record import SPLITS, Integers
from ferdist.errors import ConfigError, DataError, RunError, tell
from ferdist.evaluation.attention import Watched
from ferdist.evaluation.benchmark import Cell, covered_fraction
from ferdist.evaluation.board import show_benchmark
from ferdist.evaluation.data import ScoredData, has_copy, key_of, ways
from ferdist.evaluation.external import load_model
from ferdist.evaluation.metrics import Scores, score, score_all
from ferdist.evaluation.model import UNKNOWN, UNUSED, ScoredModel, TrainedModel, default_checkpoint
from ferdist.evaluation.predict import TTA, cluster_of, predict
from ferdist.evaluation.predictions import Predictions, check_same_samples
from ferdist.evaluation.realfaces import ListedFaces, listed_faces, lists_of_data
from ferdist.evaluation.records import (
    OCCLUSION,
    Damage,
    Evaluation,
    EvaluationKey,
    Listed,
    Results,
    conditions_of,
    read_results,
)
from ferdist.evaluation.results import add_evaluations, outdated
from ferdist.evaluation.robustness import compare_benchmarks
from ferdist.io import writing
from ferdist.runtime.distributed import World, join_world
from ferdist.runtime.folder import RunFolder
from ferdist.runtime.precision import configure_kernels


@dataclass(frozen=True)
class Plan:
    """What is scored besides a split's plain images.

    Attributes:
        cells: of the occlusion benchmark.
        reference: a run folder whose stored predictions under the same cells are the reference, or None.
        lists: of really occluded or turned faces of these data.
        lists_of_any: further ones, of which those of these data are scored.
    """

    cells: tuple[Cell, ...] = ()
    reference: Path | None = None
    lists: tuple[NameList, ...] = ()
    lists_of_any: tuple[NameList, ...] = ()


def evaluate(
    model: str,
    *,
    data: Path | None = None,
    split: str = "val",
    plan: Plan = Plan(),
    tta: str = "none",
    checkpoint: str | None = None,
    device: str = "auto",
    trust_code: bool = False,
    card: Path | None = None,
    given: Mapping[str, Any] = MappingProxyType({}),
) -> Results | None:
    """Evaluate a model and write its results.json; under torchrun the ranks share the samples.

    Args:
        model, checkpoint, trust_code, card, given: as for `load_model`; results of exported weights and of
            models from elsewhere go into ``runs/weights/NAME``.
        data: a beton file, by default the run's own.
        split: ``val`` (the held-out fold where the run has one), ``test``, ``train``, ``holdout``, or ``all``
            of data without splits that the model was not trained on.
        plan: what else is scored.
        tta: one of ``none``, ``flip``, ``ten-crop``.
        device: ``auto``, ``cpu`` or ``cuda``.

    Returns:
        results.json, the new evaluations last; None on other ranks than the main one.

    Raises:
        ConfigError, DataError, RunError: one line that says what does not fit.
    """
    if split not in (*SPLITS, HOLDOUT, ALL):
        raise ConfigError(f"--split is {split!r}: it must be val or test (or train, holdout or all)")
    if tta not in TTA:
        raise ConfigError(f"--tta is {tta!r}: it must be one of {', '.join(TTA)}")
    if plan.reference is not None and not plan.cells:
        raise ConfigError("--reference compares under occlusion: give --occlusion too")
    with join_world(device) as world:
        scored = load_model(model, checkpoint, world.device, trust_code=trust_code, card=card, given=given)
        if data is None and scored.name is not None:
            raise ConfigError(f"{model}: it does not name its data: give --data FILE.beton")
        beton = open_beton(data or Path(scored.config.data.path), checksum=True)
        folder = folder_of(scored, model)
        if scored.name is not None:
            _describe(scored, beton, folder)
        return evaluate_model(scored, beton, world, folder, split=split, plan=plan, tta=tta)


def folder_of(scored: ScoredModel, model: str) -> RunFolder:
    """The folder that has, or will have, the evaluations of a model that was loaded as ``model``."""
    return RunFolder(Path(model) if scored.name is None else Path("runs") / "weights" / scored.name)


def _describe(scored: ScoredModel, beton: Beton, folder: RunFolder) -> None:
    """Write what identifies the model into the folder of its evaluations, made where it does not exist.

    Raises:
        RunError: if it belongs to another model of the same name.
    """
    config, record = scored.described(beton)
    if folder.results.exists():  # what failed before it was scored claims no folder
        config = {key: value for key, value in read_yaml(folder.config).items() if key != RECORD_KEY}
        check_identity(scored, beton, folder)
        record |= {"beton_sha256": folder.stored_environment().get("beton_sha256")}
        classes, held = (
            labels_of(beton, scored.config.data.labels).classes,
            read_results(folder.results).classes,
        )
        if classes != held:
            raise RunError(
                f"{folder.path}: holds scores by the classes {', '.join(held)}, and these data have "
                f"{', '.join(classes)}: move the folder away, or give this model's file another name"
            )
    with writing(folder.path):
        folder.path.mkdir(parents=True, exist_ok=True)
        folder.write_config(config, record)


def check_identity(scored: ScoredModel, beton: Beton, folder: RunFolder) -> None:
    """Refuse evaluations that are those of another model.

    Raises:
        RunError: if the folder has those of another one of the same name.
    """
    record, stored = scored.described(beton)[1], folder.stored_environment()
    # The data are those that were scored first; what a card says about itself may be corrected.
    own = record.keys() - {"beton_sha256", "about"}
    if any(stored.get(name) != record[name] for name in own):
        raise RunError(
            f"{folder.path}: holds evaluations of weights other than these: "
            "move the folder away, or rename the weights or the card"
        )


def evaluate_model(
    model: ScoredModel,
    beton: Beton,
    world: World,
    folder: RunFolder,
    *,
    split: str,
    plan: Plan = Plan(),
    tta: str = "none",
) -> Results | None:
    """As `evaluate`, with what it opens already open; all ranks must call."""
    scoring = Scoring(model, beton, world, folder, split, tta)
    data = scoring.data
    reference = None if plan.reference is None else scoring.reference(plan.reference)
    faces = {one.names.subset: one for one in scoring.listed_faces(plan)}
    parts = {"all": (data.indices, data.labels)}
    parts |= {name: (one.indices, one.labels) for name, one in faces.items()}
    plain = {name: scoring.predict(labels, indices) for name, (indices, labels) in parts.items()}
    covered = scoring.predict(data.labels, data.indices, plan.cells) if plan.cells else None
    results = None
    if world.is_main:
        evaluations: list[Evaluation] = []
        for name, predictions in plain.items():
            evaluations += scoring.evaluations(
                predictions, name, faces[name].listed if name in faces else None
            )
        comparison = None
        if covered is not None:
            if reference is not None:
                comparison = conditions_of(vars(scoring.key)) | {"reference": str(plan.reference)}
                comparison |= compare_benchmarks([covered], [reference])
            of_cells = scoring.covered_evaluations(covered)
            evaluations += of_cells
        described = environment.describe(world.device, world.size)
        with folder.updating():
            for one in outdated(folder.results, model.checkpoint, model.step):
                folder.remove_predictions(one.predictions)  # before others join its cells
            for name, predictions in plain.items():
                predictions.save(folder.predictions / scoring.file(replace(scoring.key, subset=name)))
            if covered is not None:
                covered.merged_into(folder.predictions / of_cells[0].predictions)
            results = add_evaluations(
                folder.results,
                evaluations,
                classes=data.labels.classes,
                config=model.described(beton)[0],
                environment={**described, model.origin: folder.stored_environment()},
                comparison=comparison,
            )
        if covered is not None:
            same = [one for one in results.evaluations if one.occlusion and one.conditions == scoring.key]
            board = folder.tensorboard / OCCLUSION / Path(scoring.file(scoring.key)).stem
            watched: list[Watched] = []
            if isinstance(model, TrainedModel):
                with suppress(RunError):  # of a network whose features do not tell where it looks
                    _, watched = data.watch(model, rounds=1)
            show_benchmark(board, same, watched, results.classes)
    world.barrier()
    return results


class Scoring:
    """A model, a split and how it is looked at: what all predictions of one evaluation share."""

    def __init__(
        self, model: ScoredModel, beton: Beton, world: World, folder: RunFolder, split: str, tta: str
    ) -> None:
        model.check_fit(beton)
        if split == ALL and model.use_of(beton, split) not in (UNUSED, UNKNOWN):
            raise DataError(f"{beton.path}: the model was trained on these data: score their val or test")
        self.model, self.world, config = model, world, model.config
        self.own_data = folder.stored_environment().get("beton_sha256") == beton.manifest.sha256
        self.holdout = model.holdout(beton)
        self.data = ScoredData.of(beton, config, split, self.holdout, model.fill(beton), world.device)
        configure_kernels(config.train.deterministic, config.train.precision)
        self.key = key_of(beton, split, self.holdout, tta, model.checkpoint)
        self.scorer = model.scorer(beton, world.device, tta)
        self.step, self.precision = model.step, model.precision(world.device)

    def file(self, key: EvaluationKey) -> str:
        """The file in ``predictions/`` of an evaluation with this key."""
        return key.predictions_name(own_data=self.own_data)

    def predict(self, labels: Labels, indices: Integers, cells: Sequence[Cell] = ()) -> Predictions:
        """Predictions for samples as they are, or under cells of the benchmark; all ranks must call."""
        data, benchmark = self.data, self.data.benchmark(cells) if cells else None
        return predict(
            self.scorer,
            data.beton,
            labels,
            data.loader,
            indices,
            self.world,
            benchmark=benchmark,
            cells=cells,
        )

    def listed_faces(self, plan: Plan) -> list[ListedFaces]:
        """The faces of the published lists; says what of a list is not scored.

        Raises:
            DataError: if a list does not belong to the data or the split.
        """
        beton, data = self.data.beton, self.data
        lists = list(plan.lists)
        if plan.lists_of_any:
            lists += lists_of_data(beton, plan.lists_of_any)
        found = listed_faces(beton, self.key.split, data.indices, data.labels, lists)
        for one in found:
            missing = one.missing(data.labels.classes)
            if missing and self.world.is_main:
                tell(f"ferdist: {missing}")
        return found

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
        found, labels = Predictions.load(path), self.data.labels
        index = np.sort(labels.scorable(self.data.indices))
        wanted = Predictions(index, labels.label[index], found.probabilities, key.beton_sha256)
        check_same_samples(wanted, found)
        return found

    def evaluations(
        self, predictions: Predictions, part: str, listed: Listed | None = None
    ) -> list[Evaluation]:
        """The evaluations, in all `data.ways`, of predictions for a list's samples, or the split's (``all``).

        Copies are left out only where the model was trained on these data's training images.
        """
        beton, index, split = self.data.beton, predictions.index, self.key.split
        learned = self.model.learned_from_train(beton) and split != "train"
        copied = has_copy(beton, index, split, self.holdout) if learned else None
        cluster = cluster_of(beton, index)
        agreed = self.data.labels.agreed
        found = []
        for (subset, unit), rows in ways(predictions, beton, copied, agreed, part=part).items():
            if len(rows.index):  # else every sample has a copy
                scores = score(rows, cluster[np.searchsorted(index, rows.index)])
                one = self._evaluation(replace(self.key, subset=subset, unit=unit), scores)
                found.append(replace(one, listed=listed))
        return found

    def covered_evaluations(self, covered: Predictions) -> list[Evaluation]:
        """The evaluations of a benchmark: all samples, per image."""
        _, height, width = self.data.beton.manifest.image_shape
        grids = [covered.cell(number) for number in range(len(covered.cells))]
        scores = score_all(grids, cluster_of(self.data.beton, covered.index))
        found = []
        for cell, checksum, of_cell in zip(covered.cells, covered.checksums, scores, strict=True):
            damage = Damage(
                **vars(cell),
                covered=covered_fraction(cell, height, width),
                seen=self.model.seen(cell, height, width),
                checksum=checksum,
            )
            found.append(self._evaluation(replace(self.key, occlusion=damage), of_cell))
        return found

    def _evaluation(self, key: EvaluationKey, scores: Scores) -> Evaluation:
        return Evaluation(
            **vars(key),
            **vars(scores),
            predictions=self.file(key),
            step=self.step,
            precision=self.precision,
        )


def main_evaluation(results: Results, split: str = "val") -> Evaluation:
    """The newest plain evaluation of a split: all samples, per image, nothing covered, one view."""
    plain = (split, "all", "image", None, "none")
    return next(
        one
        for one in reversed(results.evaluations)
        if (one.split, one.subset, one.unit, one.occlusion, one.tta) == plain
    )
