"""Networks as reports compare them: all runs of one config on one data set, and what they say together."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import torch

from ferdist.config import Config, to_dict
from ferdist.data.beton import Beton, labels_of, open_beton
from ferdist.errors import ConfigError, FerdistError, RunError
from ferdist.evaluation.compare import Difference, McNemar, compare_networks, holm, mcnemar
from ferdist.evaluation.pool import Pool, SavedRun, folds_of, pools, read_runs, shared_config
from ferdist.evaluation.predict import TTA, cluster_of
from ferdist.evaluation.predictions import Predictions
from ferdist.evaluation.records import read_results
from ferdist.models import Task, build_model, is_reconstruction, multiply_adds, parameter_count
from ferdist.reporting.load import precedence, telling_ends
from ferdist.runtime.experiment import FILE, read_experiment
from ferdist.runtime.folder import RunFolder
from ferdist.table import count


@dataclass(frozen=True)
class Network:
    """The runs of one config on one data set.

    Attributes:
        name: what tables call it.
        runs: those that are finished.
        open_runs: for those that are not, their state and its reason in words.
        measured: what the finished runs say of uncovered faces, by `precedence`.
        test_scorings: the most that one of its runs scored the test split.
    """

    name: str
    config: Config
    beton: Beton
    runs: tuple[SavedRun, ...]
    open_runs: tuple[str, ...]
    measured: tuple[Pool, ...]
    test_scorings: int

    @property
    def model(self) -> str:
        """Its name in the registry."""
        return self.config.model.name

    @property
    def data(self) -> str:
        """Name of the data."""
        return self.beton.manifest.name

    @property
    def folds(self) -> int:
        """Number of folds that are held out in turn; 0 where the data's own splits are used."""
        return len(folds_of(self.beton, self.runs[0].config)) if self.runs else 0

    @property
    def main(self) -> Pool | None:
        """What tables quote: the first pool that has a complete seed."""
        return next((pool for pool in self.measured if pool.scores is not None), None)

    def cost(self) -> tuple[int | None, int | None]:
        """Its trainable parameters and multiply-adds for one image; None for what cannot be counted here."""
        image, classes = self.beton.manifest.image, labels_of(self.beton, self.config.data.labels).classes
        task = Task(image["channels"], image["height"], image["width"], len(classes))
        try:
            with torch.device("meta"):
                network = build_model(self.config.model, task, trust_code=False)
        except ConfigError:
            return None, None
        try:
            return parameter_count(network), multiply_adds(network, task)
        except RuntimeError:  # an operation of another package's network that torch's meta device lacks
            return parameter_count(network), None

    def reconstruction(self) -> bool | None:
        """Whether the network follows a description; None where it is not known here."""
        try:
            return is_reconstruction(self.model)
        except ConfigError:
            return None


def load_networks(folders: Sequence[Path]) -> list[Network]:
    """The networks of experiments and of single runs; runs that differ in fold and seed only are one network.

    Raises:
        RunError, DataError: if an experiment, a run or its beton cannot be read, or there is no run.
    """
    found: list[tuple[Path, Network]] = []
    single: list[Path] = []
    for folder in dict.fromkeys(Path(folder).resolve() for folder in folders):
        if is_experiment(folder):
            found += _of_experiment(folder)
        else:
            single.append(folder)
    found += [(group[0], _network("", group, ())) for group in _groups(single)]
    return _told_apart(found)


def _told_apart(found: Sequence[tuple[Path, Network]]) -> list[Network]:
    """Networks of the same data whose names are the same are named by the ends of their paths."""
    networks = []
    for folder, network in found:
        alike = [other for other, its in found if (its.data, its.name) == (network.data, network.name)]
        name = network.name if len(alike) == 1 else telling_ends(alike)[alike.index(folder)]
        networks.append(replace(network, name=name))
    return networks


def is_experiment(folder: Path) -> bool:
    """Whether a folder is an experiment's."""
    return (folder / FILE).is_file()


def _of_experiment(folder: Path) -> Iterator[tuple[Path, Network]]:
    stored = read_experiment(folder)
    for name, part in stored.parts.items():
        trials = [trial for trial in stored.trials if trial.part == name]
        if part.config.data.fold is not None and any(trial.fold is not None for trial in trials):
            raise RunError(f"{folder}: inner folds are only for choosing settings: see its summary.md")
        finished, unfinished = [], []
        for trial in trials:
            run = RunFolder(folder / trial.name)
            state = run.state() or "not started"
            if state == "finished" and run.results.exists():
                finished.append(run.path)
            else:
                reason = run.stored_status().get("reason")
                unfinished.append(f"{trial.name}: {state}{f': {reason}' if reason else ''}")
        # An experiment of one config goes by its folder's name.
        network = _network(name.rpartition("/")[2] or folder.name, finished, unfinished, part.config)
        yield folder / name, network


def _groups(runs: Sequence[Path]) -> list[list[Path]]:
    """Runs that share config and data, each group in the order given."""
    groups: dict[str, list[Path]] = {}
    for path in runs:
        folder = RunFolder(path)
        shared = to_dict(shared_config(folder.stored_config()))
        data = folder.stored_environment().get("beton_sha256")
        groups.setdefault(json.dumps([data, shared], sort_keys=True), []).append(path)
    return list(groups.values())


def _network(
    name: str, runs: Sequence[Path], unfinished: Sequence[str], config: Config | None = None
) -> Network:
    if runs:  # an experiment's own config may name the data from another folder
        config = RunFolder(runs[0]).stored_config()
    assert config is not None
    beton = open_beton(Path(config.data.path))
    read = read_runs(runs, beton)
    for run in read:
        if run.config.data.inner_fold is not None:
            raise RunError(f"{run.folder.path}: a run on an inner fold is only for choosing settings")
    if not name:
        seeds = len({run.config.seed for run in read})
        name = telling_ends(runs)[0] if len(runs) == 1 else f"{config.model.name}, {count(seeds, 'seed')}"
    return Network(
        name=name,
        config=config,
        beton=beton,
        runs=tuple(read),
        open_runs=tuple(unfinished),
        measured=tuple(_pools(read, beton)),
        test_scorings=max((read_results(run.folder.results).test_scorings for run in read), default=0),
    )


SPLITS: Final = ("test", "val", "holdout")
"""What networks are compared on: the first of these that both were scored on."""


def _pools(runs: Sequence[SavedRun], beton: Beton) -> list[Pool]:
    """All that the runs' predictions of uncovered faces give."""
    splits = ("val",) if runs and runs[0].config.data.fold is not None else SPLITS
    found: list[Pool] = []
    for split, tta in itertools.product(splits, TTA):
        scored = [run for run in runs if run.path(beton, split, tta).exists()]
        found += pools(scored, beton, split, tta)
    return sorted(found, key=precedence)


@dataclass(frozen=True)
class Pair:
    """A paired comparison of two networks.

    Attributes:
        split: that both were scored on.
        difference: first minus second.
        p_holm: p, adjusted for all pairs of the table.
        single: for data without subjects, the exact McNemar test of the two models of ``seed``.
        seed: the first that both have; None where they have none in common.
    """

    first: Network
    second: Network
    split: str
    difference: Difference
    p_holm: float
    single: McNemar | None
    seed: int | None


def compare_pairs(networks: Sequence[Network]) -> tuple[list[Pair], list[str]]:
    """Compare all networks that were scored on the same samples of the same data, two at a time.

    Returns:
        The pairs, and a line for each two that cannot be compared though their data have one name.
    """
    measured = [network for network in networks if network.main is not None]
    pairs: list[Pair] = []
    refused: list[str] = []
    for first, second in itertools.combinations(measured, 2):
        if first.data != second.data:
            continue
        try:
            pairs.append(_pair(first, second))
        except FerdistError as error:
            refused.append(f"{first.name} and {second.name}: {error}.")
    adjusted = holm([pair.difference.p for pair in pairs])
    return [replace(pair, p_holm=p) for pair, p in zip(pairs, adjusted, strict=True)], refused


def compare_runs(folders: Sequence[Path]) -> tuple[list[Pair], list[str]]:
    """Compare runs; those that differ in fold and seed only are taken together.

    Returns:
        The pairs, and a line for whatever cannot be compared.
    """
    found: list[tuple[Path, Network]] = []
    remarks: list[str] = []
    try:
        groups = _groups([Path(folder).resolve() for folder in dict.fromkeys(folders)])
    except FerdistError as error:
        return [], [f"Not compared: {error}."]
    for group in groups:
        try:
            found.append((group[0], _network("", group, ())))
        except FerdistError as error:
            remarks.append(f"{group[0].name}: not compared: {error}.")
    networks = _told_apart(found)
    remarks += [
        f"{network.name}: not compared: none of its seeds has all {network.folds} folds."
        if network.folds
        else f"{network.name}: not compared: it has no predictions on {', '.join(SPLITS)}: evaluate it."
        for network in networks
        if network.main is None
    ]
    pairs, refused = compare_pairs(networks)
    names = dict.fromkeys(network.data for network in networks)
    if len(names) > 1:
        remarks.append(f"Runs on different data are not compared: {', '.join(names)}.")
    if len(groups) == 1:
        remarks.append("The runs differ only in fold and seed, so they are one network.")
    return pairs, remarks + refused


def _pair(first: Network, second: Network) -> Pair:
    splits = [{pool.split for pool in network.measured if pool.scores} for network in (first, second)]
    common = [split for split in SPLITS if split in splits[0] & splits[1]]
    if not common:
        raise RunError("cannot be compared: scored on different splits: evaluate both on the same split")
    seeds = [_plain(network, common[0]) for network in (first, second)]
    models = [list(of_one.values()) for of_one in seeds]
    index = models[0][0].index
    difference = compare_networks(models[0], models[1], cluster_of(first.beton, index))
    single, seed = None, None
    if (first.beton.subject[index] < 0).any():
        seed = min(seeds[0].keys() & seeds[1].keys(), default=None)
        single = None if seed is None else mcnemar(seeds[0][seed], seeds[1][seed])
    return Pair(first, second, common[0], difference, difference.p, single, seed)


def _plain(network: Network, split: str) -> dict[int, Predictions]:
    """Complete seeds on all images of a split, seen once."""
    for pool in network.measured:
        if (pool.split, pool.tta, pool.subset, pool.unit) == (split, "none", "all", "image"):
            return pool.complete()
    raise RunError(
        "cannot be compared: one of them has no predictions without test-time augmentation: evaluate it again"
    )
