from __future__ import annotations

import base64
import io
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from ferdist.evaluation.metrics import expected_calibration_error
from ferdist.reporting import figures
from ferdist.reporting.figures import Series


def texts(figure: Figure) -> list[str]:
    """What is written in the figure's svg."""
    root = ET.fromstring(figures.svg_bytes(figure))
    return ["".join(element.itertext()).strip() for element in root.iter() if element.tag.endswith("}text")]


def line(label: str, **options: object) -> Series:
    x = np.array([0.0, 0.25, 0.5])
    return Series(label, x, np.array([0.6, 0.5, 0.3]), **options)  # type: ignore[arg-type]


def test_a_line_chart_shows_labels_axes_and_baseline() -> None:
    figure = figures.line_chart(
        [line("square"), line("circle", colour=1)],
        x_label="covered",
        y_label="accuracy",
        x_percent=True,
        y_percent=True,
        y_from_zero=True,
        baseline=(0.25, "chance"),
    )
    written = texts(figure)
    for text in ("square", "circle", "covered", "accuracy", "chance", "0 %", "20 %"):
        assert text in written
    axes = figure.axes[0]
    assert axes.get_ylim()[0] == 0
    assert axes.lines[0].get_ydata().tolist() == [0.6, 0.5, 0.3]


def test_an_interval_is_shaded_and_a_nan_breaks_the_line() -> None:
    low, high = np.array([0.5, 0.4, 0.2]), np.array([0.7, 0.6, 0.4])
    shaded = figures.line_chart([line("a", low=low, high=high)], x_label="x", y_label="y")
    assert len(shaded.axes[0].collections) == 1
    x = np.arange(5.0)
    broken = Series("a", x, np.array([1, 2, np.nan, 4, 5]), marks=False)
    root = ET.fromstring(figures.svg_bytes(figures.line_chart([broken], x_label="x", y_label="y")))
    paths = [element.get("d", "") for element in root.iter() if element.tag.endswith("}path")]
    assert any(path.count("M") == 2 for path in paths)


def test_hostile_labels_are_text() -> None:
    names = ["<script>alert(1)</script>", "$\\frac{1}{0}$", "_hidden", "名前"]
    figure = figures.line_chart(
        [line(name, colour=n) for n, name in enumerate(names)], x_label="x", y_label="y"
    )
    svg = figures.svg_bytes(figure).decode()
    assert "<script>" not in svg
    written = [text.replace("\u200b", "") for text in texts(figure)]
    assert set(names) <= set(written)
    assert figures.png_bytes(figure).startswith(b"\x89PNG")


def test_epochs_have_whole_ticks() -> None:
    short = Series("a", np.array([1.0, 2.0]), np.array([0.1, 0.25]))
    written = texts(figures.line_chart([short], x_label="epoch", y_label="loss"))
    assert {"1", "2"} <= set(written)
    assert "1.2" not in written


def test_long_labels_are_cut() -> None:
    figure = figures.line_chart([line("a" * 500), line("b")], x_label="x", y_label="y")
    assert max(map(len, texts(figure))) < 40


def test_a_confusion_chart_shows_percentages_and_counts() -> None:
    figure = figures.confusion_chart(np.array([[1500, 500], [1, 99]]), ["happy", "sad"])
    written = texts(figure)
    for text in ("75", "1,500", "25", "500", "99", "1", "happy", "sad", "predicted", "true"):
        assert text in written


def test_a_class_without_samples_has_an_empty_row() -> None:
    figure = figures.confusion_chart(np.array([[0, 0], [1, 3]]), ["happy", "sad"])
    assert sorted(texts(figure))[:4] == ["1", "25", "3", "75"]


def test_many_classes_have_no_numbers_in_their_cells() -> None:
    figure = figures.confusion_chart(np.eye(26, dtype=np.int64), [f"class {n}" for n in range(26)])
    assert "100" not in texts(figure)


def test_a_recall_chart_places_each_run_and_class() -> None:
    figure = figures.recall_chart(["a", "b"], [[0.5, None, 1.0], [0.25, 0.75, 0.5]], ["x", "y", "z"])
    axes = figure.axes[0]
    assert np.isnan(axes.lines[0].get_xdata()[1])
    assert axes.lines[1].get_xdata().tolist() == [0.25, 0.75, 0.5]
    written = texts(figure)
    assert {"a", "b", "x", "y", "z", "recall"} <= set(written)
    assert "a" not in texts(figures.recall_chart(["a"], [[0.5]], ["x"]))


def test_calibration_agrees_with_the_calibration_error() -> None:
    generator = np.random.default_rng(0)
    probabilities = generator.dirichlet(np.full(7, 0.3), size=2000).astype(np.float32)
    probabilities[0] = np.eye(7, dtype=np.float32)[0]
    label = generator.integers(0, 7, size=2000)
    groups = figures.calibrate(label, probabilities)
    assert groups.count.sum() == 2000
    assert len(groups.edges) == 16
    filled = groups.count > 0
    assert (groups.confidence[filled] >= groups.edges[:-1][filled] - 1e-6).all()
    assert (groups.confidence[filled] <= groups.edges[1:][filled] + 1e-6).all()
    gap = np.abs(groups.confidence - groups.accuracy)[filled] * groups.count[filled] / 2000
    assert gap.sum() == pytest.approx(expected_calibration_error(probabilities, label), abs=1e-6)


def test_a_reliability_chart_has_a_diagonal_and_the_filled_bins() -> None:
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4]], np.float32)
    groups = figures.calibrate(np.array([0, 0, 1]), probabilities)
    upper = figures.reliability_chart(["run"], [groups]).axes[0]
    assert list(upper.lines[0].get_xdata()) == list(upper.lines[0].get_ydata()) == [0, 1]
    assert upper.lines[1].get_ydata().tolist() == [0.0, 1.0, 1.0]


def test_files_are_the_same_for_the_same_numbers() -> None:
    def chart() -> Figure:
        return figures.line_chart([line("a"), line("b", colour=1)], x_label="x", y_label="y")

    assert figures.svg_bytes(chart()) == figures.svg_bytes(chart())
    assert figures.png_bytes(chart()) == figures.png_bytes(chart())
    assert b"<metadata" not in figures.svg_bytes(chart())
    with Image.open(io.BytesIO(figures.png_bytes(chart()))) as image:
        assert image.width == 900


def test_an_inline_svg_takes_colours_and_ids_of_its_page() -> None:
    svg = figures.svg_bytes(figures.line_chart([line("a"), line("b", colour=1)], x_label="x", y_label="y"))
    inline = figures.inline_svg(svg, "loss", 'a "quoted" <description>')
    root = ET.fromstring(inline)
    assert root.tag == "svg"
    assert root.get("role") == "img"
    assert root.get("aria-label") == 'a "quoted" <description>'
    assert "http" not in inline
    assert "<style" not in inline
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    assert all(name.startswith("loss-") for name in ids if name)
    assert len(set(ids)) == len(ids)
    links = [element.get("href") for element in root.iter() if element.get("href")]
    assert links
    assert {link[1:] for link in links if link} <= set(ids)
    for variable in ("--ink", "--grid", "--series-1", "--series-2"):
        assert f"var({variable})" in inline
    assert figures.SERIES[0] not in inline


def test_pictures_keep_their_pixels_and_stay_inside() -> None:
    gray = np.arange(12, dtype=np.uint8).reshape(3, 4)
    colour = np.stack([gray] * 2 + [255 - gray], axis=-1)
    rows = [
        [figures.Picture(gray, "one\ntwo"), figures.Picture(gray)],
        [figures.Picture(colour, "$x$ <b>")],
    ]
    figure = figures.picture_chart(rows, ("left", "right"))
    assert texts(figure) == ["left", "right", "two", "one", "$x$ <b>"]
    root = ET.fromstring(figures.inline_svg(figures.svg_bytes(figure), "faces", "two rows of faces"))
    images = [element for element in root.iter() if element.tag == "image"]
    assert len(images) == 3
    assert not any("id" in image.attrib for image in images), "equal pictures would share one"
    links = [image.attrib["href"].partition("base64,")[2] for image in images]
    shown = [np.asarray(Image.open(io.BytesIO(base64.b64decode(link))).convert("RGB")) for link in links]
    assert (shown[0] == gray[..., None]).all()
    assert (shown[1] == gray[..., None]).all()
    assert (shown[2] == colour).all()
    edges = figure.axes[0].get_images()[1].get_extent()
    assert edges[1] <= figures.WIDTH
    assert edges[2] <= figure.get_figheight()
