from __future__ import annotations

from ferdist.table import (
    MISSING,
    Number,
    Table,
    count,
    percent,
    percent_interval,
    points,
    points_interval,
    short_count,
)


def test_numbers_are_written_in_one_way() -> None:
    assert percent(0.6254) == "62.5"
    assert percent(None) == percent(float("nan")) == MISSING
    assert percent_interval((0.6, 0.651)) == "60.0–65.1"
    assert percent_interval(None) == MISSING
    assert (points(-0.01), points_interval((-0.02, 0.005), 2)) == ("-1.0", "-2.00 to +0.50")
    assert [short_count(n) for n in (999, 16_094, 999_700, 312_086_452)] == ["999", "16.1 k", "1 M", "312 M"]
    assert (count(3589, "image"), count(1, "image"), count(1000)) == ("3,589 images", "1 image", "1,000")


def test_a_table_as_markdown_and_as_text() -> None:
    table = Table.of(
        "of records",
        [
            {"Run": "a|b\n<script>`*x*`", "Fold": None, "Accuracy": percent(0.5)},
            {"Run": "_b", "Fold": None, "Samples": Number("12")},
        ],
    )
    assert table.head == ("Run", "Accuracy", "Samples"), "a column without a cell is left out"
    assert table.rows[1] == ("_b", MISSING, "12")
    assert table.align == "lrr"
    assert table.markdown() == (
        "| Run | Accuracy | Samples |\n| :--- | ---: | ---: |\n"
        r"| a\|b &lt;script>\`\*x\*\` | 50.0 | – |" + "\n"
        r"| \_b | – | 12 |" + "\n"
    )
    plain = Table("", ("kind", "1"), (("eye band", percent(0.125)), ("mask", percent(None))))
    assert plain.text() == "|kind    |   1|\n|:-------|---:|\n|eye band|12.5|\n|mask    |   –|"
    assert Table.of("nothing", []).rows == ()
