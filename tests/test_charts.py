from __future__ import annotations

import io
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from ferdist import charts
from ferdist.charts import Line


def texts(figure: Figure) -> list[str]:
    """What is written in the figure's svg."""
    root = ET.fromstring(charts.svg_bytes(figure, "chart"))
    return ["".join(element.itertext()).strip() for element in root.iter() if element.tag.endswith("}text")]


def line(label: str, **options: object) -> Line:
    x = np.array([0.0, 0.25, 0.5])
    return Line(label, x, np.array([0.6, 0.5, 0.3]), **options)  # type: ignore[arg-type]


def test_a_line_chart_shows_labels_axes_intervals_and_baseline() -> None:
    low, high = np.array([0.5, 0.4, 0.2]), np.array([0.7, 0.6, 0.4])
    figure = charts.line_chart(
        [line("square", low=low, high=high), line("a" * 500, colour=1)],
        x_label="covered",
        y_label="accuracy",
        x_percent=True,
        y_percent=True,
        y_from_zero=True,
        baseline=(0.25, "chance"),
    )
    written = texts(figure)
    assert {"square", "covered", "accuracy", "chance", "0 %", "20 %"} <= set(written)
    assert max(map(len, written)) < 40, "long labels are cut"
    axes = figure.axes[0]
    assert axes.get_ylim()[0] == 0
    assert axes.lines[0].get_ydata().tolist() == [0.6, 0.5, 0.3]
    assert len(axes.collections) == 1


def test_a_nan_breaks_the_line_and_epochs_have_whole_ticks() -> None:
    broken = Line("a", np.arange(1.0, 6.0), np.array([1, 2, np.nan, 4, 5]), marks=False)
    root = ET.fromstring(
        charts.svg_bytes(charts.line_chart([broken], x_label="epoch", y_label="y"), "broken")
    )
    paths = [element.get("d", "") for element in root.iter() if element.tag.endswith("}path")]
    assert any(path.count("M") == 2 for path in paths)
    short = Line("a", np.array([1.0, 2.0]), np.array([0.1, 0.25]))
    written = texts(charts.line_chart([short], x_label="epoch", y_label="loss"))
    assert {"1", "2"} <= set(written)
    assert "1.2" not in written


@pytest.mark.parametrize(
    ("counts", "written"),
    [
        ([[1500, 500], [1, 99]], {"75", "1,500", "25", "500", "99", "1"}),
        ([[0, 0], [1, 3]], {"25", "1", "75", "3"}),  # a class without samples has an empty row
        (np.eye(26, dtype=np.int64), set()),  # many classes have no numbers in their cells
    ],
)
def test_a_confusion_chart_shows_percentages_and_counts(counts: list[list[int]], written: set[str]) -> None:
    names = [f"class {number}" for number in range(len(counts))]
    figure = charts.confusion_chart(np.array(counts), names)
    assert set(texts(figure)) == {*names, "predicted", "true", *written}


def test_hostile_labels_are_text_and_the_same_numbers_give_the_same_files() -> None:
    names = ["<script>alert(1)</script>", "$\\frac{1}{0}$", "_hidden", "名前"]

    def chart() -> Figure:
        lines = [line(name, colour=n) for n, name in enumerate(names)]
        return charts.line_chart(lines, x_label="x", y_label="y")

    svg, png = charts.svg_bytes(chart(), "loss"), charts.png_bytes(chart())
    assert set(names) <= {text.removeprefix("\u200a") for text in texts(chart())}
    assert b"<script>" not in svg
    assert b"<metadata" not in svg
    assert (svg, png) == (charts.svg_bytes(chart(), "loss"), charts.png_bytes(chart()))
    with Image.open(io.BytesIO(png)) as image:
        assert image.width == 900


def test_an_inline_svg_has_ids_of_its_own_and_refers_to_nothing_outside() -> None:
    figure = charts.line_chart([line("a"), line("b", colour=1)], x_label="x", y_label="y")
    known: set[str] = set()
    for name in ("loss", "accuracy"):
        inline = charts.inline_svg(charts.svg_bytes(figure, name), 'a "quoted" <description>')
        root = ET.fromstring(inline)
        assert (root.tag, root.get("role")) == ("svg", "img")
        assert root.get("aria-label") == 'a "quoted" <description>'
        assert "http" not in inline
        ids = [element.attrib["id"] for element in root.iter() if "id" in element.attrib]
        assert len(known.union(ids)) == len(known) + len(ids)
        known.update(ids)
        links = {element.attrib["href"] for element in root.iter() if "href" in element.attrib}
        assert links
        assert {link[1:] for link in links} <= set(ids)


def test_light_colours_tell_their_roles() -> None:
    light = [colour for colour, _ in charts.THEME.values()]
    assert len(set(light)) == len(light)
