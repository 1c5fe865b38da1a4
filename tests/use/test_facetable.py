"""The csv file of `predict`: it goes on where it stopped, and never mixes what was made differently."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from ferdist.cli import main
from ferdist.evaluation.model import load_trained
from ferdist.use import detect
from ferdist.use.predict import FaceTable, made_with, predict_pictures

Photograph = Callable[[int], Image.Image]


@pytest.fixture
def pictures(tmp_path: Path, photograph: Photograph, blank: Image.Image) -> Path:
    """Three faces, none, and last two in one picture."""
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(3):
        photograph(number).save(folder / f"{number}.png")
    blank.save(folder / "blank, with a comma.png")
    both = Image.new("L", (1280, 490))
    both.paste(photograph(1), (0, 0))
    both.paste(photograph(5), (640, 0))
    both.save(folder / "two\n.png")
    return folder


def rows_of(table: Path) -> list[dict[str, str]]:
    with table.open(newline="") as file:
        return list(csv.DictReader(file))


def test_it_goes_on_wherever_it_was_cut(trained_run: Path, pictures: Path, tmp_path: Path) -> None:
    """Also between the two faces of the last picture, and within its name, which has a line break."""
    table = tmp_path / "faces.csv"
    trained = load_trained(str(trained_run), None, torch.device("cpu"))
    made = made_with("small", trained, "auto", whole_image=False)
    classes = trained.card.classes
    rows = FaceTable(table, [pictures], made, classes)
    for result in predict_pictures(trained, [pictures]):
        rows.add(result)
    whole = table.read_bytes()
    assert [Path(row["file"]).name for row in rows_of(table)[-2:]] == ["two\n.png"] * 2
    head = whole.index(b"\n") + 1
    last = whole.index(b"two\n.png")
    cuts = [*range(head, len(whole), 7), *range(last - 2, last + 12), *range(len(whole) - 30, len(whole) + 1)]
    for cut in cuts:
        table.write_bytes(whole[:cut])
        kept = FaceTable(table, [pictures], made, classes)
        text = table.read_bytes()
        assert whole.startswith(text), cut
        assert {row["file"] for row in rows_of(table)} == kept.done, cut
        rest = whole[len(text) :]
        for name in kept.done:
            assert name.encode() not in rest, "a row of a picture that counts as done"


def test_rows_of_other_pictures_stay(trained_run: Path, pictures: Path, tmp_path: Path) -> None:
    table, other = tmp_path / "faces.csv", tmp_path / "other.png"
    shutil.copy(pictures / "0.png", other)
    (pictures / "broken.png").write_bytes(b"no picture")
    call = ["predict", str(trained_run), "--csv", str(table), "--device", "cpu"]
    assert main([*call, str(pictures)]) == 1
    before = rows_of(table)
    assert main([*call, str(other)]) == 0
    assert rows_of(table)[: len(before)] == before, "the last picture and the one that failed, too"
    assert rows_of(table)[-1]["file"] == str(other)


@pytest.mark.parametrize("end", [b"\r\n", b"\n\n\n"])
def test_blank_lines_are_no_rows(
    trained_run: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], end: bytes
) -> None:
    table = tmp_path / "faces.csv"
    arguments = ["predict", str(trained_run), str(pictures), "--csv", str(table), "--device", "cpu"]
    assert main(arguments) == 0
    whole = table.read_bytes()
    assert len(rows_of(table)) == 6
    table.write_bytes(whole + end)
    (pictures / "0.png").write_bytes(b"not read again")
    assert main(arguments) == 0
    assert table.read_bytes() == whole
    assert capsys.readouterr().err == ""


def test_what_failed_is_tried_again(
    trained_run: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, mended = tmp_path / "faces.csv", pictures / "1.png"
    good = mended.read_bytes()
    mended.write_bytes(good[:2000])
    missing = tmp_path / "missing.png"
    arguments = ["predict", str(trained_run), str(pictures), str(missing), "--csv", str(table)]
    for _ in range(2):
        assert main(arguments) == 1
        assert "2 of " in capsys.readouterr().err
        failed = [row["file"] for row in rows_of(table) if row["failed"] == "True"]
        assert sorted(failed) == [str(mended), str(missing)]
    mended.write_bytes(good)
    shutil.copy(mended, missing)
    assert main(arguments) == 0
    rows = rows_of(table)
    assert len(rows) == 7
    assert all(row["failed"] == "False" for row in rows)
    assert {row["left"] == "" for row in rows if row["file"] in (str(mended), str(missing))} == {False}
    assert [row["note"][:13] for row in rows if row["left"] == ""] == ["no face found"]


def test_what_was_made_differently_is_refused(
    trained_run: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, table = tmp_path / "run", tmp_path / "faces.csv"
    shutil.copytree(trained_run, run)

    def ended(model: Path | str, *options: str) -> tuple[int, str]:
        code = main(["predict", str(model), str(pictures), "--csv", str(table), "--device", "cpu", *options])
        return code, capsys.readouterr().err

    assert ended(run, "--detector", "haar") == (0, "")
    before = table.read_bytes()
    does = "give another --csv, or remove the file\n"
    says = f"ferdist: {table}: made with "
    assert ended(run, "--whole-image") == (1, f"{says}detector haar, not whole-image: {does}")
    if detect.weights() is not None:
        assert ended(run) == (1, f"{says}detector haar, not centerface: {does}")
    assert ended("fer2013", "--detector", "haar") == (1, f"{says}model {run}, not fer2013: {does}")
    assert before == table.read_bytes()

    weights = rows_of(table)[0]["weights"]
    table.write_bytes(before.replace(weights.encode(), b"0123456789abcdef"))
    said = f"{says}weights 0123456789abcdef, not {weights}: {does}"
    assert ended(run, "--detector", "haar") == (1, said)

    for other in (b"", b"file,age\n", before.replace(b"failed", b"success")):
        table.write_bytes(other)
        said = f"ferdist: {table}: its columns are not those of a table by {run}: {does}"
        assert ended(run, "--detector", "haar") == (1, said)
        assert table.read_bytes() == other


def test_other_weights_have_another_checksum(trained_run: Path) -> None:
    trained = load_trained(str(trained_run), None, torch.device("cpu"))
    one = made_with("small", trained, "haar", whole_image=False)
    assert one == made_with("small", trained, "haar", whole_image=False)
    with torch.no_grad():
        next(trained.network.parameters()).view(-1)[0] += 1
    other = made_with("small", trained, "haar", whole_image=True)
    assert one["weights"] != other["weights"]
    assert (one["detector"], other["detector"]) == ("haar", "whole-image")
