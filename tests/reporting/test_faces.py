"""The parts of a report that show faces, on runs that were trained on drawn ones."""

from __future__ import annotations

import base64
import io
import re
import shutil
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ferdist.cli import main
from ferdist.config import Config, load_config
from ferdist.data import prepare
from ferdist.data.beton import write_beton
from ferdist.data.synthetic import synthesize
from ferdist.evaluation.benchmark import Cell, checksums, grid, total_checksum
from ferdist.evaluation.evaluate import Plan, evaluate
from ferdist.evaluation.predictions import Predictions, side_by_side
from ferdist.reporting import write_report
from ferdist.reporting.album import HIDDEN, Album
from ferdist.reporting.load import load_run
from ferdist.reporting.sections.mistakes import confident_mistakes
from ferdist.training.run import run
from tests.conftest import KINDS, ROOT, TINY
from tests.reporting.test_report import Page, figure_names, table_rows

FACES = {"mistakes", "gallery-1", "gallery-2", "attention-1", "attention-2"}


def pictures(path: Path) -> list[np.ndarray]:
    """The raster images in an svg file, as gray levels or colours, in their order."""
    links = [
        value
        for element in ET.parse(path).iter()
        if element.tag.endswith("}image")
        for key, value in element.attrib.items()
        if key.endswith("href")
    ]
    raw = [base64.b64decode(link.partition("base64,")[2]) for link in links]
    return [np.asarray(Image.open(io.BytesIO(content)).convert("RGB")) for content in raw]


def shown(out: Path) -> set[str]:
    """The charts of faces among a report's figures."""
    return {name.removesuffix(".svg") for name in figure_names(out)} & FACES


@pytest.fixture(scope="module")
def report(evaluated_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("faces") / "report"
    write_report([evaluated_run], out)
    return out


def test_the_page_shows_faces_and_loads_nothing(report: Path) -> None:
    page = Page(report / "report.html")
    assert shown(report) == FACES
    sections = [attributes["id"] for attributes in page.find("section")]
    assert sections[:6] == ["evaluations", "classes", "mistakes", "occlusion", "gallery", "attention"]
    inside = {link for link in page.links() if not link.startswith("#")}
    assert all(link.startswith("data:image/png;base64,") for link in inside)
    assert {attributes["href"] for attributes in page.find("image")} == inside != set()
    assert "img-src data:" in page.source
    assert len(page.source) < 3_000_000
    assert all(len(picture["aria-label"]) > 40 for picture in page.find("svg"))
    assert HIDDEN not in page.text
    assert "left out" not in page.text


def test_the_gallery_shows_the_images_that_were_scored(evaluated_run: Path, report: Path) -> None:
    loaded = load_run(evaluated_run)
    covered = [entry for entry in loaded.evaluations if entry.occlusion is not None]
    faces = Album().faces(loaded, covered[0])
    cells = grid(KINDS, ["zero"])
    benchmark, images = faces.benchmark(cells), faces.images(faces.indices)
    made = {cell: benchmark.cover(images, faces.indices, cell) for cell in cells}
    for entry in covered:
        damage = entry.occlusion
        assert damage is not None
        scored = made[Cell(damage.kind, damage.severity, damage.fill)]
        assert total_checksum(checksums(scored)) == damage.checksum

    text = (report / "report.html").read_text()
    found = [int(number) for number in re.findall(r"<figcaption>Sample (\d+),", text)]
    for name, sample, graded in (("gallery-1", found[0], True), ("gallery-2", found[1], False)):
        (row,) = np.flatnonzero(faces.indices == sample)
        wanted = [images[row, 0]]
        wanted += [made[cell][row, 0] for cell in cells if (cell.kind not in ("eye_band", "mask")) == graded]
        drawn = pictures(report / "figures" / f"{name}.svg")
        assert len(drawn) == len(wanted) == (16 if graded else 3)
        assert all((image == gray[..., None]).all() for image, gray in zip(drawn, wanted, strict=True))


def test_attention_has_pictures_and_numbers(evaluated_run: Path, report: Path) -> None:
    page = Page(report / "report.html")
    for name in ("attention-1", "attention-2"):
        assert len(pictures(report / "figures" / f"{name}.svg")) == 7 * 6
    rows = table_rows(page, "Share of evidence")
    assert [row[0] for row in rows] == ["eye band", "mouth band", "glasses", "mask"]
    assert [row[1] for row in rows] == ["25.0", "25.0", "12.3", "32.5"]
    assert all(0 <= float(share) <= 100 for row in rows for share in row[2:4])
    assert all(0.2 < float(ratio) < 5 for row in rows for ratio in row[4:6])
    assert "Spatial gates of CBAM" in page.text
    said = Predictions.load(evaluated_run / "predictions" / "synthetic-val-best.npz")
    sample, true, answer, probability = table_rows(page, "drawn, eye band: the faces shown")[0][:4]
    (row,) = np.flatnonzero(said.index == int(sample))
    classes = load_run(evaluated_run).classes
    assert (true, answer) == (classes[said.label[row]], classes[said.probabilities[row].argmax()])
    assert float(probability) == pytest.approx(100 * said.probabilities[row].max(), abs=0.06)


def test_without_faces_the_numbers_stay_and_old_pictures_go(evaluated_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "report"
    assert main(["report", str(evaluated_run), "--out", str(out)]) == 0
    assert shown(out) == FACES
    assert main(["report", str(evaluated_run), "--out", str(out), "--no-faces"]) == 0
    assert shown(out) == set()
    assert not {name for name in figure_names(out) if name.partition(".")[0] in FACES}
    page = Page(out / "report.html")
    assert page.text.count(HIDDEN) == 3
    assert "base64" not in page.source
    assert not page.find("image")
    captions = [
        "Most frequent confusions",
        "drawn: mistakes with the highest probability",
        "Share of evidence",
    ]
    assert all(table_rows(page, caption) for caption in (*captions, "drawn, eye band: the faces shown"))
    assert {"occlusion-1.svg", "confusion.svg"} <= figure_names(out)


@pytest.fixture
def damaged(evaluated_run: Path, tmp_path: Path) -> Path:
    """A copy of the run's folder, to be damaged."""
    return shutil.copytree(evaluated_run, tmp_path / "copy")


@pytest.mark.slow
def test_other_data_than_the_runs_are_not_shown(damaged: Path, tmp_path: Path) -> None:
    config = (damaged / "config.yaml").read_text()
    other = prepare.synthetic(tmp_path / "other", images=70, seed=5).rename(tmp_path / "other" / "new.beton")
    for path in other.parent.glob("synthetic.*"):  # its manifest and table of samples
        path.rename(path.with_name(path.name.replace("synthetic", "new")))
    differ = "not the data that the run was trained on: the checksums differ."
    for pattern, value, sentence in (
        ("  path: .*", f"  path: {other}", differ),
        (r"beton_sha256: \w+", f"beton_sha256: {'0' * 64}", "the scored data are not the run's own"),
        ("  path: .*", f"  path: {tmp_path}/gone.beton", "there is no such file"),
    ):
        (damaged / "config.yaml").write_text(re.sub(pattern, value, config))
        text = Page(write_report([damaged], tmp_path / "report")).text
        assert shown(tmp_path / "report") == set()
        assert text.count(sentence) == 3, sentence
        assert text.count("The faces are left out: ") == 2


def test_a_missing_checkpoint_leaves_attention_out(damaged: Path, tmp_path: Path) -> None:
    shutil.rmtree(damaged / "checkpoints")
    text = Page(write_report([damaged], tmp_path / "report")).text
    assert shown(tmp_path / "report") == FACES - {"attention-1", "attention-2"}
    assert "There is no attention to show here: " in text


@pytest.mark.slow
def test_runs_of_one_data_set_share_a_gallery(evaluated_run: Path, damaged: Path, tmp_path: Path) -> None:
    write_report([evaluated_run, damaged], tmp_path / "report")
    names = {name.removesuffix(".svg") for name in figure_names(tmp_path / "report") if "svg" in name}
    assert {"gallery-1", "gallery-2", "mistakes-1", "mistakes-2", "attention-4"} <= names
    assert not {"gallery-3", "attention-5"} & names


@pytest.fixture(scope="module")
def in_colour(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A run of a network without CBAM on drawn faces of 3 channels and 64 px."""
    place = tmp_path_factory.mktemp("colour")
    drawn = synthesize(84, 0)
    rows = np.arange(64) * 48 // 64
    images = np.repeat(drawn.images[:, :, rows][..., rows], 3, axis=1)
    images[:, 2] //= 2
    dataset = replace(drawn, name="colour", images=images, split=np.arange(len(images)) // 7 % 2)
    beton = write_beton(dataset, place)
    own = (f"data.path={beton}", f"run_dir={place / 'run'}", "model.name=resnet18", "model.width=8")
    config = load_config(ROOT / "configs" / "base.yaml", [*TINY, *own, "train.epochs=1"])
    run(config)
    evaluate(config.run_dir, plan=Plan(grid(["circle"], ["mean"])), device="cpu")
    return config


def test_colours_other_sizes_and_networks_without_gates(in_colour: Config, tmp_path: Path) -> None:
    page = Page(write_report([Path(in_colour.run_dir)], tmp_path / "report"))
    assert shown(tmp_path / "report") >= {"attention-1", "attention-2"}
    drawn = pictures(tmp_path / "report" / "figures" / "gallery.svg")
    assert drawn[0].shape == (64, 64, 3)
    assert (drawn[0][..., 2] == drawn[0][..., 0] // 2).all()
    assert len(pictures(tmp_path / "report" / "figures" / "attention-1.svg")) % 4 == 0
    assert "Spatial gates of CBAM" not in page.text
    assert "the finest spatial gate" not in page.text
    assert "<caption>Share of evidence" in page.source


def test_the_most_confident_mistakes_come_first() -> None:
    rows = np.array([[0.6, 0.4], [0.1, 0.9], [0.2, 0.8], [0.45, 0.55]], np.float32)
    single = Predictions(np.array([3, 5, 8, 9]), np.array([0, 0, 0, 1]), rows, "")
    assert confident_mistakes(single).index.tolist() == [5, 8]
    first = confident_mistakes(single, most=1)
    assert (first.index.tolist(), first.label.tolist()) == ([5], [0])
    assert first.probabilities[0] == pytest.approx([0.1, 0.9])
    # A second seed is right about sample 5, and of two minds with the first about sample 8.
    again = np.array([[0.6, 0.4], [0.95, 0.05], [0.3, 0.7], [0.45, 0.55]], np.float32)
    both = confident_mistakes(side_by_side([single, replace(single, probabilities=again)]))
    assert both.index.tolist() == [8]
    assert both.probabilities[0] == pytest.approx([0.25, 0.75])


@pytest.mark.slow
def test_the_picture_is_that_of_the_same_machine_every_time(evaluated_run: Path, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    for name in ("one", "two"):
        write_report([evaluated_run], tmp_path / name)
    assert torch.get_num_threads() == threads
    for path in (tmp_path / "one").rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes()
