"""Table 1 of experiments made of predictions whose scores are known."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ferdist.config import Config, load_config, to_dict
from ferdist.data import prepare
from ferdist.data.beton import Beton, open_beton
from ferdist.data.folds import Holdout
from ferdist.errors import RunError
from ferdist.evaluation.benchmark import Cell
from ferdist.evaluation.pool import shared_config
from ferdist.evaluation.predictions import Predictions
from ferdist.reporting import write_report
from ferdist.reporting.load import grids_of, occluded_entries, robustness_of
from ferdist.reporting.networks import Network, compare_pairs, load_networks
from ferdist.reporting.pooled import pooled_run
from ferdist.reporting.published import PUBLISHED, published_accuracy
from ferdist.reporting.table1 import group_by_data, networks_markdown, p_value
from ferdist.runtime.experiment import Trial
from ferdist.runtime.folder import RunFolder
from tests.conftest import ROOT
from tests.reporting.conftest import measure

FOLDS, CLASSES = 10, 7


@pytest.fixture(scope="module")
def beton(beton_path: Path) -> Beton:
    """420 drawn faces with ten folds by subject, and splits."""
    return open_beton(beton_path)


def right_of(beton: Beton, share: float, seed: int) -> np.ndarray:
    """Which samples a made-up network recognises: exactly this share, drawn by the seed."""
    order = np.random.default_rng(seed).permutation(beton.manifest.samples)
    return order < round(share * beton.manifest.samples)


def predictions_for(beton: Beton, index: np.ndarray, right: np.ndarray) -> Predictions:
    label = beton.label[index]
    said = np.where(right[index], label, (label + 1) % CLASSES)
    rows = np.full((len(index), CLASSES), 0.05, np.float32)
    rows[np.arange(len(index)), said] = 0.7
    return Predictions(index, label, rows, beton.manifest.sha256)


def write_run(
    beton: Beton,
    folder: Path,
    model: str,
    cell: Trial,
    right: np.ndarray,
    *,
    splits: Sequence[str] = ("val",),
    scorings: int = 0,
) -> Config:
    """A finished run as a training leaves it, with what a report reads of it; its config."""
    run = RunFolder(folder)
    fold = "null" if cell.fold is None else str(cell.fold)
    own = [f"data.path={beton.path}", f"run_dir={folder}", f"data.fold={fold}", f"seed={cell.seed}"]
    own += [f"model.name={model}", "model.width=8"]
    config = load_config(ROOT / "configs" / "base.yaml", own)
    folder.mkdir(parents=True)
    run.write_config(config, {"beton_sha256": beton.manifest.sha256})
    which = "best" if cell.fold is None else "last"
    for split in splits:
        part = "" if cell.fold is None else f"-fold{cell.fold}"
        found = predictions_for(beton, beton.indices(split, Holdout(cell.fold)), right)
        found.save(run.predictions / f"synthetic-{split}{part}-{which}.npz")
    results = {
        "schema": 1,
        "config": to_dict(config),
        "environment": {},
        "classes": list(beton.manifest.classes),
        "test_scorings": scorings,
        "evaluations": [],
    }
    run.results.write_text(json.dumps(results))
    lines = [
        {"step": epoch, "epoch": epoch, "train/loss": 2.0 + cell.seed, "val/accuracy": 0.1 * epoch}
        for epoch in (1, 2)
    ]
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    run.set_status("finished")
    return config


def write_experiment(folder: Path, configs: dict[str, Config], beton: Beton, cells: Sequence[Trial]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    sha256 = beton.manifest.sha256
    stored = {
        "schema": 1,
        "parts": {
            name: {"config": to_dict(shared_config(config)), "beton_sha256": sha256}
            for name, config in configs.items()
        },
        "cells": {c.name: {"fold": c.fold, "seed": c.seed, "part": c.part} for c in cells},
        "jobs": {},
    }
    (folder / "experiment.json").write_text(json.dumps(stored))
    return folder


SHARES = {"resnet18_cbam": (0.9, 0.8), "resnet18": (0.7, 0.6)}
"""Accuracy of each network with seed 0 and 1."""


@pytest.fixture(scope="module")
def kfold(beton: Beton, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two networks, ten folds, two seeds; resnet18 lacks fold 9 of seed 1."""
    folder = tmp_path_factory.mktemp("grid") / "experiment"
    cells, configs = [], {}
    for model, shares in SHARES.items():
        part = f"synthetic/{model}"
        for seed, share in enumerate(shares):
            for fold in range(FOLDS):
                cell = Trial(fold, seed, part)
                cells.append(cell)
                if (model, seed, fold) != ("resnet18", 1, 9):
                    right = right_of(beton, share, 10 * seed)
                    configs[part] = write_run(beton, folder / cell.name, model, cell, right)
    return write_experiment(folder, configs, beton, cells)


def cells_of(text: str, first: str, column: int = 0) -> list[str]:
    """The cells of the first row that begins with a name."""
    rows = [
        [cell.strip() for cell in row.strip("|").split("|")] for row in text.splitlines() if row[:1] == "|"
    ]
    return next(row for row in rows if row[column] == first)


def test_a_grid_gives_pooled_scores_and_says_what_is_missing(kfold: Path, beton: Beton) -> None:
    networks = load_networks([kfold])
    text = networks_markdown(group_by_data(networks))
    row = cells_of(text, r"resnet18\_cbam")
    assert row[1:3] == ["–", "85.00"], "the mean of 90 and 80 %"
    assert row[4:6] == ["7.07", "2"], "the deviation of 90 and 80 %"
    assert row[7:9] == ["no", "10 folds by subject, last of 60 epochs"]
    low, high = map(float, row[3].split("–"))
    assert low < 85 < high
    row = cells_of(text, "resnet18")
    assert (row[2], row[4], row[5]) == ("70.00", "–", "1"), "the second seed is not complete"
    assert row[8] == "10 folds by subject, last of 60 epochs; 19 of 20 runs finished"
    assert "seed 1, 9 of 10 folds" in text
    assert "This table rests on 3 pooled runs" in text
    assert "- synthetic/resnet18/fold-09-seed-1: not started" in text
    pair = cells_of(text, "resnet18", column=1)
    assert pair[:2] == [r"resnet18\_cbam", "resnet18"]
    assert pair[3] == "+15.00"
    assert "McNemar" not in text, "there are subjects"
    assert "exchanges of the two networks by subject" in text


def test_published_networks_without_a_figure_are_shown_as_missing(
    kfold: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PUBLISHED, "synthetic", PUBLISHED["ckplus"])
    text = networks_markdown(group_by_data(load_networks([kfold])))
    assert cells_of(text, r"resnet18\_cbam")[1:3] == ["96.12", "85.00"]
    assert cells_of(text, "mianet") == [
        "mianet",
        "95.76",
        *["–"] * 5,
        "yes",
        "missing: not in this report",
    ]
    assert cells_of(text, "resnet18")[1] == "–", "the paper lacks it"


@pytest.mark.slow
def test_networks_of_one_name_are_told_apart_by_their_paths(
    kfold: Path, beton: Beton, tmp_path: Path
) -> None:
    part = "synthetic/resnet18"
    cells = [Trial(fold, 0, part) for fold in range(FOLDS)]
    for cell in cells:
        config = write_run(beton, tmp_path / "small" / cell.name, "resnet18", cell, right_of(beton, 0.5, 0))
    other = write_experiment(tmp_path / "small", {part: config}, beton, cells)
    names = [network.name for network in load_networks([kfold, other])]
    assert names == ["resnet18_cbam", "experiment/synthetic/resnet18", "small/synthetic/resnet18"]


@pytest.mark.parametrize(
    ("settings", "accuracy"),
    [
        (["model.name=resnet18_cbam"], 0.9612),
        (["model.name=resnet18_cbam", "model.pretrained=fer2013"], None),
        (["model.name=resnet18_cbam", "augment.occlusion.probability=0"], None),
        (["model.name=resnet18_cbam", "augment.enabled=false"], None),
        (["model.name=mianet", "augment.occlusion.probability=0"], 0.9576),
        (["model.name=resnet18"], None),
    ],
)
def test_what_is_published_stands_beside_what_the_paper_trains_only(
    settings: list[str], accuracy: float | None
) -> None:
    config = load_config(ROOT / "configs" / "base.yaml", ["data.path=x", "run_dir=x", *settings])
    assert published_accuracy("ckplus", config) == accuracy


def test_a_network_becomes_one_run_with_mean_curves(kfold: Path, beton: Beton) -> None:
    network: Network = load_networks([kfold])[0]
    run = pooled_run(network)
    assert run is not None
    main = run.main
    assert main is not None
    assert (main.folds, main.seeds, main.samples) == (10, 2, 420)
    assert main.accuracy == pytest.approx(0.85)
    assert main.confusion.sum() == 840
    assert np.trace(main.confusion) == 0.85 * 840
    epochs, loss = run.curve("train/loss")
    assert epochs.tolist() == [1.0, 2.0]
    assert loss.tolist() == [2.5, 2.5]
    assert run.curve("val/accuracy")[1] == pytest.approx([0.1, 0.2])


def cover(beton: Beton, run: RunFolder, cell: Trial, right: np.ndarray) -> None:
    """Add the benchmark's masks to a finished run, as `ferdist evaluate --occlusion` does for its fold."""
    found = predictions_for(beton, beton.indices("val", Holdout(cell.fold)), right)
    checksum = f"{cell.fold}" * 64  # the images of another fold are others
    grid = replace(
        found,
        probabilities=found.probabilities[None],
        cells=(Cell("mask", 1, "drawn"),),
        checksums=(checksum,),
        cluster=beton.subject[found.index],
    )
    grid.merged_into(run.predictions / "occlusion" / f"synthetic-val-fold{cell.fold}-last.npz")
    results = json.loads(run.results.read_text())
    damage = {"kind": "mask", "severity": 1, "fill": "drawn", "covered": 0.325, "seen": "unseen kind"}
    conditions = {"data": "synthetic", "split": "val", "fold": cell.fold, "subset": "all", "unit": "image"}
    scores = measure(found.label, found.probabilities)
    entry = {**conditions, "tta": "none", "checkpoint": "last", **scores}
    results["evaluations"].append(entry | {"occlusion": damage | {"checksum": checksum}})
    run.results.write_text(json.dumps(results))


@pytest.mark.slow
def test_the_benchmark_is_pooled_over_folds_and_seeds(beton: Beton, tmp_path: Path) -> None:
    """Where each fold has images of its own, and so checksums of its own."""
    masked = {"resnet18_cbam": (0.6, 0.5), "resnet18": (0.4, 0.4)}
    cells, configs = [], {}
    for model, shares in masked.items():
        part = f"synthetic/{model}"
        for seed, share in enumerate(shares):
            for fold in range(FOLDS):
                cell = Trial(fold, seed, part)
                cells.append(cell)
                folder = tmp_path / "x" / cell.name
                right = right_of(beton, SHARES[model][seed], seed)
                configs[part] = write_run(beton, folder, model, cell, right)
                cover(beton, RunFolder(folder), cell, right_of(beton, share, seed))
    experiment = write_experiment(tmp_path / "x", configs, beton, cells)

    run = pooled_run(load_networks([experiment])[0])
    assert run is not None
    (covered,) = occluded_entries(run)
    assert (covered.folds, covered.seeds, covered.samples) == (10, 2, 420)
    assert covered.accuracy == pytest.approx(0.55)
    assert covered.interval is not None
    assert covered.interval[0] < 0.55 < covered.interval[1]
    summary = robustness_of(run, covered)
    assert summary is not None
    assert summary["clean_accuracy"] == pytest.approx(0.85)
    assert summary["kinds"]["mask"]["relative_robustness"] == pytest.approx(0.55 / 0.85)
    assert len(grids_of(run, [covered])) == 2

    page = write_report([experiment], tmp_path / "report").read_text()
    table = page.split("<caption>Accuracy under occlusion minus that of resnet18_cbam, in points")[1]
    row = re.findall(r"<t[hd][^>]*>([^<]*)</t[hd]>", table.split("</table>")[0])[5:9]
    assert row[:3] == ["resnet18", "mask", "-15.0"]
    low, high = map(float, row[3].split(" to "))
    assert low < -15 < high < 0

    shutil.rmtree(tmp_path / "x" / cells[0].name / "predictions" / "occlusion")
    page = write_report([experiment], tmp_path / "report").read_text()
    assert "scores under occlusion are not pooled: 19 of 20 runs have predictions under occlusion." in page


@pytest.mark.slow
def test_the_report_of_an_experiment(kfold: Path, tmp_path: Path) -> None:
    page = write_report([kfold], tmp_path / "report").read_text()
    assert "Table 1: synthetic" in page
    assert "resnet18_cbam <strong>85.0\u00a0%</strong> (10 folds pooled, mean of 2 seeds)" in page
    assert "1 of 20 runs are unfinished and left out." in page
    assert "and the count over all seeds below it" in page
    figures = {path.name for path in (tmp_path / "report" / "figures").glob("*.svg")}
    assert {"recall.svg", "confusion-1.svg", "confusion-2.svg", "calibration.svg", "loss.svg"} <= figures
    assert {"mistakes-1.svg", "mistakes-2.svg"} <= figures, "faces of all folds"
    assert page.count("There is no attention to show here") == 2, "these runs have no checkpoints"
    assert "| First | Second |" in (tmp_path / "report" / "table1.md").read_text()


@pytest.fixture
def seeds(beton: Beton, tmp_path: Path) -> dict[str, list[Path]]:
    """Two networks by the data's own splits, two seeds each; test was scored, once too often by one run."""
    runs: dict[str, list[Path]] = {}
    for model, shares in SHARES.items():
        for seed, share in enumerate(shares):
            folder = tmp_path / f"{model}-{seed}"
            times = 3 if (model, seed) == ("resnet18", 0) else 1
            right = right_of(beton, share, seed)
            splits = ("val", "test")
            write_run(beton, folder, model, Trial(None, seed), right, splits=splits, scorings=times)
            runs.setdefault(model, []).append(folder)
    return runs


def test_a_second_scoring_of_test_is_marked(
    seeds: dict[str, list[Path]], beton: Beton, tmp_path: Path
) -> None:
    cells, configs = [], {}
    for model, folders in seeds.items():
        for seed, folder in enumerate(folders):
            cell = Trial(None, seed, f"synthetic/{model}")
            (tmp_path / "x" / cell.name).parent.mkdir(parents=True, exist_ok=True)
            folder.rename(tmp_path / "x" / cell.name)
            cells.append(cell)
            configs[cell.part] = RunFolder(tmp_path / "x" / cell.name).stored_config()
    text = networks_markdown(
        group_by_data(load_networks([write_experiment(tmp_path / "x", configs, beton, cells)]))
    )
    test = beton.indices("test")
    expected = np.mean([right_of(beton, share, seed)[test].mean() for seed, share in enumerate((0.9, 0.8))])
    row = cells_of(text, r"resnet18\_cbam")
    assert row[2] == f"{100 * expected:.2f}"
    assert row[8] == "test, best of 60 epochs on val; scored once"
    assert cells_of(text, "resnet18")[8].endswith("SCORED 3 TIMES: not independent")
    assert "Test was scored more than once by a run of resnet18 (3 times): no longer independent." in text


def test_val_never_stands_for_test(beton: Beton, tmp_path: Path) -> None:
    folder = tmp_path / "one"
    config = write_run(beton, folder / "seed-0", "resnet18", Trial(None, 0), right_of(beton, 0.5, 0))
    text = networks_markdown(
        group_by_data(load_networks([write_experiment(folder, {"": config}, beton, [Trial(None, 0)])]))
    )
    row = next(row for row in text.splitlines() if "(val)" in row)
    assert "val, which also picked the best of 60 epochs: biased upward" in row
    assert row.startswith("| one |"), "an experiment of one config goes by its folder's name"
    assert "Test was not scored by any run." in text


def test_an_experiment_without_a_finished_run_has_a_table_too(beton: Beton, tmp_path: Path) -> None:
    own = [f"data.path={beton.path}", "run_dir=x"]
    config = load_config(ROOT / "configs" / "base.yaml", own)
    folder = write_experiment(tmp_path / "none", {"": config}, beton, [Trial(0, 0), Trial(1, 0)])
    page = write_report([folder], tmp_path / "report").read_text()
    assert "missing: 0 of 2 runs finished" in page
    assert "fold-01-seed-0: not started" in page


def test_runs_are_compared_by_config_and_seeds_are_averaged(
    seeds: dict[str, list[Path]], beton: Beton, tmp_path: Path
) -> None:
    pairs, refused = compare_pairs(load_networks([run for runs in seeds.values() for run in runs]))
    assert refused == []
    (pair,) = pairs
    assert {pair.first.name, pair.second.name} == {"resnet18_cbam, 2 seeds", "resnet18, 2 seeds"}
    assert pair.split == "test"
    assert pair.difference.samples == len(beton.indices("test"))
    write_report(seeds["resnet18"], tmp_path / "same")
    text = (tmp_path / "same" / "table1.md").read_text()
    assert (
        "\n\n## Paired comparisons\n\n- The runs differ only in fold and seed, so they are one network."
        in text
    )
    write_report([seeds["resnet18"][0], seeds["resnet18_cbam"][0]], tmp_path / "report")
    text = (tmp_path / "report" / "table1.md").read_text()
    assert cells_of(text, "resnet18-0", column=0)
    assert "| resnet18-0 | resnet18\\_cbam-0 | test |" in text


def test_different_data_of_one_name_are_refused_in_a_line(
    kfold: Path, seeds: dict[str, list[Path]], tmp_path: Path
) -> None:
    other = open_beton(prepare.synthetic(tmp_path, images=140, seed=5))
    right = right_of(other, 0.5, 0)
    config = write_run(other, tmp_path / "other" / "seed-0", "resnet18", Trial(None, 0), right)
    write_experiment(tmp_path / "other", {"": config}, other, [Trial(None, 0)])
    with pytest.raises(RunError, match=r"cannot be compared: the betons of synthetic differ") as refused:
        write_report([kfold, tmp_path / "other"], tmp_path / "report")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "report").exists()
    write_report([seeds["resnet18"][0], tmp_path / "other" / "seed-0"], tmp_path / "report")
    lines = (tmp_path / "report" / "table1.md").read_text().splitlines()
    said = [line for line in lines if "cannot be compared: scored on different data" in line]
    assert len(said) == 1
    assert not any(line.startswith("| First |") for line in lines)


def test_a_fold_alone_is_no_network(kfold: Path, tmp_path: Path) -> None:
    folds = [kfold / "synthetic" / model / "fold-00-seed-0" for model in SHARES]
    write_report(folds, tmp_path / "report")
    text = (tmp_path / "report" / "table1.md").read_text()
    assert text.count("not compared: none of its seeds has all 10 folds.") == 2


def test_p_values_show_two_digits() -> None:
    assert [p_value(p) for p in (1.0, 0.32, 0.0473, 0.0012, 3.4e-7)] == [
        "1.00",
        "0.32",
        "0.047",
        "0.0012",
        "3.4e-07",
    ]
