"""Table 1, summaries and reports of experiments made of predictions whose scores are known."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ferdist.cli import main
from ferdist.config import Config, load_config
from ferdist.data import prepare
from ferdist.data.beton import Beton, open_beton
from ferdist.data.folds import Holdout
from ferdist.errors import RunError
from ferdist.evaluation import published
from ferdist.evaluation.kfold import kfold_summary
from ferdist.evaluation.pool import SavedRun, shared_config
from ferdist.evaluation.predictions import Predictions
from ferdist.evaluation.published import PUBLISHED, published_accuracy
from ferdist.evaluation.records import Damage
from ferdist.models.config import ModelConfig
from ferdist.reporting import write_report
from ferdist.reporting.album import Album
from ferdist.reporting.kfold import kfold_markdown
from ferdist.reporting.load import grids_of, load_run, occluded_entries, robustness_of
from ferdist.reporting.networks import compare_pairs, compare_runs, load_networks
from ferdist.reporting.pooled import pooled_run
from ferdist.reporting.sections.protocol import protocol
from ferdist.reporting.table1 import group_by_data, networks_markdown, p_value
from ferdist.reporting.table1 import protocol as table1_protocol
from ferdist.reporting.words import selection
from ferdist.runtime.experiment import Part, Trial
from ferdist.runtime.folder import RunFolder
from ferdist.training.run import run as train
from launch.experiment import Experiment
from tests.conftest import ROOT
from tests.reporting.conftest import edit_results, record, write_files
from tests.reporting.test_report import Page, table_rows

FOLDS, CLASSES = 10, 7
SHARES = {"resnet18_cbam": (0.9, 0.8), "resnet18": (0.7, 0.6)}
"""Accuracy of each network with seed 0 and 1."""


@pytest.fixture(scope="module")
def beton(beton_path: Path) -> Beton:
    """420 drawn faces with ten folds by subject, and splits."""
    return open_beton(beton_path)


def predictions_for(beton: Beton, index: np.ndarray, share: float, seed: int) -> Predictions:
    """Of a made-up network that recognises exactly this share of all samples, drawn by the seed."""
    order = np.random.default_rng(seed).permutation(beton.manifest.samples)
    right, label = order < round(share * beton.manifest.samples), beton.label[index]
    rows = np.full((len(index), CLASSES), 0.05, np.float32)
    rows[np.arange(len(index)), np.where(right[index], label, (label + 1) % CLASSES)] = 0.7
    return Predictions(index, label, rows, beton.manifest.sha256)


def write_experiment(
    beton: Beton,
    folder: Path,
    shares: Mapping[str, Sequence[float]] = SHARES,
    *,
    folds: Sequence[int | None] = range(FOLDS),
    missing: Collection[str] = (),
    masked: Mapping[str, Sequence[float]] | None = None,
    prefix: str = "synthetic/",
    select: str = "auto",
) -> Path:
    """An experiment with a run for each network, seed and fold, as trainings leave it.

    Args:
        shares: accuracy of each network with each seed.
        folds: that are held out; [None] for the data's own splits, where test is scored too.
        missing: names of runs that were not started.
        masked: accuracies on faces with a mask, as `ferdist evaluate --occlusion` adds them.
        prefix: of the parts' names.
        select: the epoch that is scored, as in ``train.select``.
    """
    folder.mkdir(parents=True)
    parts = {}
    for model in shares:
        own = [f"data.path={beton.path}", "run_dir=x", f"train.select={select}"]
        own += [f"model.name={model}", "model.width=8"]
        config = shared_config(load_config(ROOT / "configs" / "base.yaml", own))
        parts[prefix and prefix + model] = Part(config, beton.manifest.sha256)
    seeds = range(max(map(len, shares.values())))
    experiment = Experiment(
        folder, parts, [Trial(f, s, part) for part in parts for s in seeds for f in folds]
    )
    experiment.write()
    for trial in experiment.trials:
        if trial.name in missing:
            continue
        config = experiment.run_config(trial)
        run, model, entries = SavedRun(RunFolder(Path(config.run_dir)), config), config.model.name, []
        for split in ("val",) if trial.fold is not None else ("val", "test"):
            index, path = beton.indices(split, Holdout(trial.fold)), run.path(beton, split, "none")
            predictions_for(beton, index, shares[model][trial.seed], trial.seed).save(path)
        if masked:
            found = predictions_for(beton, index, masked[model][trial.seed], trial.seed)
            damage = Damage("mask", 1, "drawn", 0.325, "unseen kind", f"{trial.fold}" * 64)
            entries = [record(replace(run.key(beton, "val", "none"), occlusion=damage), found)]
            replace(
                found,
                probabilities=found.probabilities[None],
                cells=(damage.cell,),
                checksums=(damage.checksum,),  # each fold has images of its own
                cluster=beton.subject[index],
            ).save(run.folder.predictions / entries[0].predictions)
        lines = [
            {"step": epoch, "epoch": epoch, "train/loss": 2.0 + trial.seed, "val/accuracy": 0.1 * epoch}
            for epoch in (1, 2)
        ]
        write_files(config, {"beton_sha256": beton.manifest.sha256}, entries, lines, beton.manifest.classes)
        if trial.fold is None:
            edit_results(run.folder.path, lambda results: results.update(test_scorings=1))
    return folder


@pytest.fixture(scope="module")
def kfold(beton: Beton, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two networks, ten folds, two seeds; resnet18 lacks fold 9 of seed 1."""
    folder = tmp_path_factory.mktemp("grid") / "experiment"
    return write_experiment(beton, folder, missing=["synthetic/resnet18/fold-09-seed-1"])


@pytest.fixture
def seeds(beton: Beton, tmp_path: Path) -> Path:
    """Two networks by the data's own splits, two seeds each."""
    return write_experiment(beton, tmp_path / "seeds", folds=[None])


def accuracy_on_test(beton: Beton, model: str) -> float:
    """Mean over the seeds."""
    test = beton.indices("test")
    seeds = (predictions_for(beton, test, share, seed) for seed, share in enumerate(SHARES[model]))
    return float(np.mean([predictions.correct().mean() for predictions in seeds]))


def table1_of(*experiments: Path) -> str:
    return networks_markdown(group_by_data(load_networks(experiments)))


def cells_of(text: str, first: str, column: int = 0) -> list[str]:
    """The cells of the first row that begins with a name."""
    rows = [
        [cell.strip() for cell in row.strip("|").split("|")] for row in text.splitlines() if row[:1] == "|"
    ]
    return next(row for row in rows if row[column] == first)


def test_a_grid_gives_pooled_scores_and_says_what_is_missing(kfold: Path) -> None:
    text = table1_of(kfold)
    row = cells_of(text, r"resnet18\_cbam")
    assert row[1:3] == ["–", "85.00"], "the mean of 90 and 80 %"
    assert row[4:6] == ["7.07", "2"], "the deviation of 90 and 80 %"
    assert row[6:8] == ["178,975", "5.06 M"], "parameters and multiply-adds at width 8"
    assert row[8:] == ["no", "10 folds by subject, last of 60 epochs"]
    low, high = map(float, row[3].split("–"))
    assert low < 85 < high
    row = cells_of(text, "resnet18")
    assert (row[2], row[4], row[5]) == ("70.00", "–", "1"), "the second seed is not complete"
    assert row[9] == "10 folds by subject, last of 60 epochs; 19 of 20 runs finished"
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
    monkeypatch.setattr(published, "ModelConfig", partial(ModelConfig, width=8))  # as if that were the whole
    text = table1_of(kfold)
    assert cells_of(text, r"resnet18\_cbam")[1:3] == ["96.12", "85.00"]
    absent = ["mianet", "95.76", *["–"] * 6, "yes", "missing: not in this report"]
    assert cells_of(text, "mianet") == absent
    assert cells_of(text, "resnet18")[1] == "–", "the paper lacks it"


@pytest.mark.slow
def test_networks_of_one_name_are_told_apart_by_their_paths(
    kfold: Path, beton: Beton, tmp_path: Path
) -> None:
    other = write_experiment(beton, tmp_path / "small", {"resnet18": (0.5,)})
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
        (["data.labels=ferplus-majority"], None),
        (["model.width=32"], None),
    ],
)
def test_what_is_published_stands_beside_what_the_paper_trains_only(
    settings: list[str], accuracy: float | None
) -> None:
    config = load_config(ROOT / "configs" / "base.yaml", ["data.path=x", "run_dir=x", *settings])
    assert published_accuracy("ckplus", config) == accuracy


def test_a_network_becomes_one_run_with_mean_curves(kfold: Path) -> None:
    network = load_networks([kfold])[0]
    run = pooled_run(network)
    assert run is not None
    main = run.main
    assert main is not None
    scores = network.measured[0].scores
    assert scores is not None
    assert main.macro_f1 == pytest.approx(scores["macro_f1"]["mean"], abs=1e-12), "as in Table 1"
    assert (main.folds, main.seeds, main.samples) == (10, 2, 420)
    assert main.accuracy == pytest.approx(0.85)
    assert main.confusion.sum() == 840
    assert np.trace(main.confusion) == 0.85 * 840
    epochs, loss = run.curve("train/loss")
    assert epochs.tolist() == [1.0, 2.0]
    assert loss.tolist() == [2.5, 2.5]
    assert run.curve("val/accuracy")[1] == pytest.approx([0.1, 0.2])


def test_a_pooled_network_says_where_its_runs_differ(seeds: Path) -> None:
    trained = {"ferdist": "0.1.0", "git_revision": "d82daffb1e56", "date": "2026-11-29"}
    for number, revision in enumerate(("d82daffb1e56", "69c1f6edfc41")):
        folder = seeds / "synthetic" / "resnet18" / f"seed-{number}"
        training = {**trained, "git_revision": revision, "date": f"2026-11-2{number}"}
        edit_results(
            folder, lambda results, training=training: results["environment"].update(training=training)
        )
    run = pooled_run(load_networks([seeds])[1])
    assert run is not None
    revisions = "d82daffb1e56 (1 run), 69c1f6edfc41 (1)"
    assert run.environment["training"] == {
        "ferdist": "0.1.0",
        "git_revision": revisions,
        "date": "2026-11-20 to 2026-11-21",
    }
    assert f"The runs were trained at different git revisions: {revisions}." in run.remarks
    titles = [title for title, _ in protocol([run], Album()).folded_texts]
    assert titles == ["Configuration of the first run of resnet18, seed-0: config.yaml"]


@pytest.mark.slow
def test_the_benchmark_is_pooled_over_folds_and_seeds(beton: Beton, tmp_path: Path) -> None:
    """Where each fold has images of its own, and so checksums of its own."""
    masked = {"resnet18_cbam": (0.6, 0.5), "resnet18": (0.4, 0.4)}
    experiment = write_experiment(beton, tmp_path / "x", masked=masked)
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

    page = Page(write_report([experiment], tmp_path / "report"))
    row = table_rows(page, "Accuracy under occlusion minus that of resnet18_cbam, in points")[0]
    assert row[:3] == ["resnet18", "mask", "-15.0"]
    low, high = map(float, row[3].split(" to "))
    assert low < -15 < high < 0

    shutil.rmtree(experiment / "synthetic" / "resnet18_cbam" / "fold-00-seed-0" / "predictions" / "occlusion")
    page = Page(write_report([experiment], tmp_path / "report"))
    assert (
        "scores under occlusion are not pooled: 19 of 20 runs have predictions under occlusion." in page.text
    )


@pytest.mark.slow
def test_the_report_of_an_experiment(kfold: Path, tmp_path: Path) -> None:
    page = write_report([kfold], tmp_path / "report").read_text()
    assert "Table 1: synthetic" in page
    assert "<b>synthetic</b>, accuracy: resnet18_cbam <strong>85.0\u00a0%</strong> (10 folds pooled" in page
    assert "(10 folds pooled, mean of 2 seeds), resnet18 <strong>70.0\u00a0%</strong>" in page
    assert "<li>1 of 40 runs is unfinished and left out: resnet18 (1 of 20).</li>" in page
    assert "and the count over all seeds below it" in page
    figures = {path.name for path in (tmp_path / "report" / "figures").glob("*.svg")}
    assert {"recall.svg", "confusion-1.svg", "confusion-2.svg", "calibration.svg", "loss.svg"} <= figures
    assert {"mistakes-1.svg", "mistakes-2.svg"} <= figures, "faces of all folds"
    assert page.count("There is no attention to show here") == 2, "these runs have no checkpoints"
    assert "| First | Second |" in (tmp_path / "report" / "table1.md").read_text()


def test_a_second_scoring_of_test_is_marked(seeds: Path, beton: Beton) -> None:
    edit_results(seeds / "synthetic/resnet18/seed-0", lambda results: results.update(test_scorings=3))
    text = table1_of(seeds)
    row = cells_of(text, r"resnet18\_cbam")
    assert row[2] == f"{100 * accuracy_on_test(beton, 'resnet18_cbam'):.2f}"
    assert row[9] == "test, best of 60 epochs on val; scored once"
    assert cells_of(text, "resnet18")[9].endswith("SCORED 3 TIMES: not independent")
    assert "Test was scored more than once by a run of resnet18 (3 times): no longer independent." in text


@pytest.mark.parametrize(
    ("select", "protocol"),
    [
        ("best", "val, which also picked the best of 60 epochs: biased upward"),
        ("last", "val, last of 60 epochs"),
    ],
)
def test_val_never_stands_for_test(beton: Beton, tmp_path: Path, select: str, protocol: str) -> None:
    folder = write_experiment(
        beton, tmp_path / "one", {"resnet18": (0.5,)}, folds=[None], prefix="", select=select
    )
    (folder / "seed-0" / "predictions" / f"synthetic-test-{select}.npz").unlink()
    edit_results(folder / "seed-0", lambda results: results.update(test_scorings=0))
    text = table1_of(folder)
    row = next(row for row in text.splitlines() if "(val)" in row)
    assert row.endswith(f"| {protocol} |")
    assert ("biased upward" in text) == (select == "best")
    assert "- (val): a score of val, since test was not scored" in text
    assert row.startswith("| one |"), "an experiment of one config goes by its folder's name"
    assert "Test was not scored by any run." in text


def test_an_experiment_without_a_finished_run_has_a_table_too(beton: Beton, tmp_path: Path) -> None:
    names = ["fold-00-seed-0", "fold-01-seed-0"]
    none = write_experiment(beton, tmp_path / "x", {"vgg16": (0,)}, folds=[0, 1], missing=names, prefix="")
    page = write_report([none], tmp_path / "report").read_text()
    assert "missing: 0 of 2 runs finished" in page
    assert "<title>x · ferdist report</title>" in page
    assert "<li>2 of 2 runs are unfinished and left out: x.</li>" in page
    assert '<pre tabindex="0">fold-00-seed-0: not started\nfold-01-seed-0: not started</pre>' in page


def test_runs_are_compared_by_config_and_seeds_are_averaged(
    seeds: Path, beton: Beton, tmp_path: Path
) -> None:
    runs = {model: [seeds / "synthetic" / model / f"seed-{seed}" for seed in (0, 1)] for model in SHARES}
    pairs, refused = compare_pairs(load_networks([run for of_one in runs.values() for run in of_one]))
    assert refused == []
    (pair,) = pairs
    assert {pair.first.name, pair.second.name} == {"resnet18_cbam, 2 seeds", "resnet18, 2 seeds"}
    assert pair.split == "test"
    first, second = (accuracy_on_test(beton, network.model) for network in (pair.first, pair.second))
    assert pair.difference.accuracy == pytest.approx(first - second)
    text = table1_of(seeds)
    head, row = cells_of(text, "First"), cells_of(text, "resnet18", column=1)
    low, high = map(float, row[head.index("95 % interval")].split(" to "))
    wider_low, wider_high = map(float, row[head.index("With seeds")].split(" to "))
    assert wider_low < low < high < wider_high
    assert "so that it covers other trainings" in text
    write_report(runs["resnet18"], tmp_path / "same")
    text = (tmp_path / "same" / "table1.md").read_text()
    assert (
        "\n\n## Paired comparisons\n\n- The runs differ only in fold and seed, so they are one network."
        in text
    )
    write_report([runs["resnet18"][0], runs["resnet18_cbam"][0]], tmp_path / "report")
    text = (tmp_path / "report" / "table1.md").read_text()
    assert cells_of(text, "resnet18/seed-0")
    assert "| resnet18/seed-0 | resnet18\\_cbam/seed-0 | test |" in text


def test_different_data_of_one_name_are_refused_in_a_line(kfold: Path, seeds: Path, tmp_path: Path) -> None:
    beton = open_beton(prepare.synthetic(tmp_path, images=140, seed=5))
    other = write_experiment(beton, tmp_path / "other", {"resnet18": (0.5,)}, folds=[None], prefix="")
    with pytest.raises(RunError, match=r"cannot be compared: the betons of synthetic differ") as refused:
        write_report([kfold, other], tmp_path / "report")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "report").exists()
    write_report([seeds / "synthetic/resnet18/seed-0", other / "seed-0"], tmp_path / "report")
    lines = (tmp_path / "report" / "table1.md").read_text().splitlines()
    said = [line for line in lines if "cannot be compared: scored on different data" in line]
    assert len(said) == 1
    assert not any(line.startswith("| First |") for line in lines)


def test_a_fold_alone_is_no_network(kfold: Path, tmp_path: Path) -> None:
    folds = [kfold / "synthetic" / model / "fold-00-seed-0" for model in SHARES]
    write_report(folds, tmp_path / "report")
    text = (tmp_path / "report" / "table1.md").read_text()
    assert text.count("not compared: none of its seeds has all 10 folds.") == 2


def summary_of(experiment: Path, beton: Beton, model: str) -> dict[str, Any]:
    """Of a network's runs; fold 9 of seed 1 counts as failed."""
    runs = sorted(path for path in (experiment / "synthetic" / model).iterdir())
    cells = [{"name": run.name, "state": "finished", "reason": None} for run in runs]
    failed = {"name": "fold-09-seed-1", "state": "failed", "reason": "TIMEOUT, see run_a/`log`"}
    return kfold_summary(runs, beton) | {"cells": [*cells, failed]}


def test_a_summary_shows_pooled_scores_folds_and_what_failed(kfold: Path, beton: Beton) -> None:
    text = kfold_markdown(summary_of(kfold, beton, "resnet18"))
    sha256, held_out = beton.manifest.sha256, beton.manifest.folds["9"]
    start = "# synthetic, 10 folds\n\n19 of 20 runs finished; seeds 0, 1; beton "
    assert text.startswith(start + sha256[:12])
    row = cells_of(text, "1", column=3)
    assert row[:6] == ["one view", "image", "all", "1", "420", "70.0"]
    low, high = map(float, row[6].split("–"))
    assert low < 70 < high
    assert cells_of(text, "seed 1, 9 folds only", column=3)[4] == str(420 - held_out["samples"])
    row = cells_of(text, "9")
    assert row[:3] == ["9", str(held_out["samples"]), str(len(held_out["subjects"]))]
    assert row[4] == "–" != row[3]
    assert "- fold-09-seed-1: failed: `TIMEOUT, see run_a/'log'`" in text
    assert "- No subject is in two folds." in text
    assert "| 85.0 ± 7.1 |" in kfold_markdown(summary_of(kfold, beton, "resnet18_cbam"))


def test_a_summary_says_what_makes_the_scores_lean(kfold: Path, beton: Beton) -> None:
    changed = {"checkpoint": "best", "inner_of": 7, "subjects_in_several_folds": 2}
    summary = summary_of(kfold, beton, "resnet18") | changed | {"interval_over": "copy_group"}
    text = kfold_markdown(summary)
    assert "chosen on the inner fold itself: the scores are biased upward" in text
    without = "# synthetic, 10 folds without fold 7\n\nFor choosing settings: no run read fold 7"
    assert text.startswith(without)
    assert "The folds are not subject-independent: 2 subjects in several of them." in text
    assert "a bootstrap over groups of exact copies" in text


def test_a_summary_without_scores_says_how_the_runs_stand(beton: Beton) -> None:
    cells = [{"name": "fold-00-seed-0", "state": "pending", "reason": None}]
    text = kfold_markdown(kfold_summary([], beton) | {"cells": cells})
    assert "0 of 1 run finished; seeds –" in text
    assert "- fold-00-seed-0: pending\n" in text
    assert "Pooled" not in text


def test_p_values_show_two_digits() -> None:
    shown = [p_value(p) for p in (1.0, 0.32, 0.0473, 0.0012, 3.4e-7)]
    assert shown == ["1.00", "0.32", "0.047", "0.0012", "3.4e-07"]


def test_runs_with_a_part_of_train_held_out_are_compared_on_it(tiny: Callable[..., Config]) -> None:
    """Their epoch was chosen there: that is said of its scores, and of no other split's."""
    folders = []
    for rate in (0.02, 0.01):
        held_out = ("data.val_share=0.3", "train.select=best", "train.epochs=1", f"train.lr={rate}")
        folders.append(train(tiny(*held_out, run=f"lr{rate}")).parent)
    pairs, remarks = compare_runs(folders)
    assert [pair.split for pair in pairs] == ["holdout"]
    assert remarks == []
    (network,) = load_networks(folders[:1])
    assert table1_protocol(network) == "holdout, which also picked the best of 1 epoch: biased upward"
    assert main(["evaluate", str(folders[0]), "--device", "cpu"]) == 0
    (network,) = load_networks(folders[:1])
    assert table1_protocol(network) == "val, best of 1 epoch on holdout"
    found = load_run(folders[0])
    said = {one.split: selection(found, one) for one in found.evaluations}
    assert said["val"] == "the checkpoint was chosen on holdout"
    assert said["holdout"].startswith("the checkpoint was chosen on this same split")
