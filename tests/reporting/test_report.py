from __future__ import annotations

import json
import re
import string
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from ferdist.errors import RunError
from ferdist.reporting import write_report
from ferdist.reporting.load import load_run
from ferdist.reporting.report import headline
from ferdist.reporting.sections.evaluations import evaluation_table
from tests.reporting.conftest import BETON, MakeRun, edit_results, evaluations_of

SKILLS = (("cbam", 2.6), ("plain", 2.0))


class Page(HTMLParser):
    """A page's elements and text; fails on tags that are not closed in order."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert self.open == []
        self.text = " ".join(" ".join(self.words).replace("\u00a0", " ").split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attrs}))
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    def find(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def links(self) -> set[str]:
        """What the page refers to, after checks that all of it is in the page itself."""
        assert not {"script", "link", "iframe", "object", "img", "base"} & {tag for tag, _ in self.elements}
        for _, attributes in self.elements:
            assert not {"src", "srcset", "action", "data"} & attributes.keys()
            assert not [key for key in attributes if key.startswith("on")]
        assert not re.search(r"https?:|@import|@font-face|url\((?!#)", self.source)
        assert "default-src 'none'" in self.source
        found = {attributes["href"] for _, attributes in self.elements if "href" in attributes}
        found |= {f"#{name}" for name in re.findall(r"url\(#([^)]+)\)", self.source)}
        identifiers = [f"#{attributes['id']}" for _, attributes in self.elements if "id" in attributes]
        assert len(set(identifiers)) == len(identifiers)
        assert {link for link in found if link.startswith("#")} <= set(identifiers)
        return found


def table_rows(page: Page, caption: str) -> list[list[str]]:
    """The cells of a table's rows below its head."""
    table = page.source.split(f"<caption>{caption}")[1].split("</table>")[0]
    rows = table.split("<tbody>")[1].split("</tr>")
    return [cells for row in rows if (cells := re.findall(r"<t[hd][^>]*>([^<]*)</t[hd]>", row))]


def figure_names(out: Path) -> set[str]:
    return {path.name for path in (out / "figures").iterdir()}


def test_a_full_report(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("fer", test=True, occlusion=True, manifest=True, samples=1200)
    out = tmp_path / "new" / "report"
    assert write_report([run], out) == out / "report.html"
    page = Page(out / "report.html")
    val, test = evaluations_of(run)[:2]
    low, high = (f"{100 * bound:.1f}" for bound in test["accuracy_ci95"])
    assert (
        f"resnet18_cbam has an accuracy of {100 * test['accuracy']:.1f} % (95 % interval {low} to {high} %) "
        "on the 1,200 images in the test split of fer2013; the checkpoint was chosen on val, "
        "and test has been scored once."
    ) in page.text
    sections = " ".join(attributes["id"] for attributes in page.find("section"))
    assert sections == (
        "evaluations classes mistakes occlusion gallery attention calibration training protocol data"
    )
    names = ("accuracy", "calibration", "confusion", "learning-rate", "loss", "occlusion", "recall")
    assert figure_names(out) == {f"{name}.{suffix}" for name in names for suffix in ("svg", "png")}
    pictures = page.find("svg")
    assert len(pictures) == len(names)
    assert all(picture["role"] == "img" and len(picture["aria-label"]) > 40 for picture in pictures)
    for words in (
        "git_revision 05d845e",
        "batch_size: 128",
        "leaks: across folds",
        "56.2",
        "chosen on val",
    ):
        assert words in page.text
    assert "has never been scored" not in page.text
    assert not [attributes for attributes in page.find("ul") if attributes.get("class") == "remarks"]
    for text, n in (("Recall and precision", 7), ("Counts: true class", 7), ("Accuracy by covered part", 12)):
        assert text in page.text
        assert len(table_rows(page, text)) == n
    assert "Relative: the accuracy divided by that on the same images uncovered." in page.text
    assert "Corruption error" not in page.text, "which several runs have"
    # The curves take the conditions that were scored under occlusion.
    assert "measured on val of fer2013 (1,200 images, one view)" in page.text
    first = table_rows(page, "Accuracy by covered part")[0]
    assert first[:3] == ["square", "0.0", f"{100 * val['accuracy']:.1f}"]


def test_hostile_names_stay_text_and_the_page_loads_nothing(make_run: MakeRun, tmp_path: Path) -> None:
    attack = '"><script>alert(1)</script>'
    classes = [attack, "</svg><b>", "$x$", "{{ 7 * 7 }}", "&amp;", "' onload='x", "名前"]
    first = make_run(
        "<img src=x onerror=alert(1)>", classes=classes, model=attack, occlusion=True, manifest=True
    )
    second = make_run("_plain", classes=classes)
    (first / "config.yaml").write_text("</pre><script>alert(2)</script>")
    page = Page(write_report([first, second], tmp_path / "report"))
    assert all(link.startswith("#") for link in page.links())
    assert attack in page.text
    assert "</pre><script>alert(2)</script>" in page.text
    assert "{{ 7 * 7 }}" in page.text
    assert "49" not in "".join(re.findall(r"<th[^>]*>49</th>", page.source))
    for path in (tmp_path / "report" / "figures").glob("*.svg"):
        assert "<script" not in path.read_text()
    for variable in set(re.findall(r"var\((--[a-z0-9-]+)\)", page.source)):
        assert f"{variable}: " in page.source


def test_missing_pieces_are_said_to_be_missing(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run()
    (run / "metrics.jsonl").write_text("")
    (run / "predictions" / "fer2013-val-best.npz").unlink()
    (run / "status.json").write_text('{"state": "failed", "reason": "the loss is not finite"}')
    text = Page(write_report([run], tmp_path / "report")).text
    for sentence in (
        "results.json has no evaluation on test.",
        "Training is not finished: its state is failed (the loss is not finite).",
        "metrics.jsonl is empty, so there are no learning curves.",
        "results.json has no evaluation under occlusion: run `ferdist evaluate RUN --occlusion`.",
        "The predictions of the main evaluation are missing.",
        "No learning curves: metrics.jsonl is missing or empty.",
        "No manifest of the data can be read here.",
        "the checkpoint was chosen on this same split, so its scores are biased upward",
        "test has never been scored",
    ):
        assert sentence in text, sentence
    assert figure_names(tmp_path / "report") == {"recall.svg", "recall.png", "confusion.svg", "confusion.png"}


def test_a_run_without_evaluations(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run()
    edit_results(run, lambda results: results.update(evaluations=[]))
    text = Page(write_report([run], tmp_path / "report")).text
    assert "resnet18_cbam on fer2013 has no evaluation of uncovered faces in results.json yet." in text
    assert "There are no scores per class without an evaluation." in text
    assert "0.0 %" not in text
    table = (tmp_path / "report" / "table1.md").read_text()
    assert "not evaluated" in table
    assert "run: no evaluation; test has never been scored." in table
    assert " 0.0 " not in table


def test_several_runs_are_compared(make_run: MakeRun, tmp_path: Path) -> None:
    runs = [
        make_run("cbam", test=True, occlusion=True),
        make_run("plain", seed=5, skill=2.0, model="resnet18", occlusion=True),
        make_run("fold", fold=0, samples=98, classes=["a", "b", "c", "d", "e", "f", "g"]),
    ]
    page = Page(write_report(runs, tmp_path / "report"))
    assert "3 runs compared" in page.text
    assert "plain: results.json has no evaluation on test." in page.text
    assert "cbam: results.json has no evaluation on test" not in page.text
    assert "Configuration keys in which the runs differ" in page.text
    for name in ("confusion-1", "confusion-2", "confusion-3", "recall-1", "recall-2", "loss"):
        assert f"{name}.svg" in figure_names(tmp_path / "report")
    assert "Recall of each class on test; val: cbam, plain." in page.text
    assert "Recall of each class on val, fold 0: fold." in page.text
    for number, kind in ((1, "square"), (2, "circle")):
        legend = (tmp_path / "report" / "figures" / f"occlusion-{number}.svg").read_text()
        assert all(f">{name}</text>" in legend for name in ("cbam", "plain"))
        assert ">fold<" not in legend
        assert f"Accuracy against the covered part of the image: {kind}." in page.text
    assert "plain against cbam: cannot be compared: scored by different labels" in page.text
    curves = (tmp_path / "report" / "figures" / "loss.svg").read_text()
    assert all(f">{name}</text>" in curves for name in ("cbam", "plain", "fold"))
    assert (tmp_path / "report" / "table1.md").read_text().count("\n| ") == 5


@pytest.mark.slow
def test_occlusion_is_compared_in_pairs_and_means_have_intervals(make_run: MakeRun, tmp_path: Path) -> None:
    runs = [make_run(name, occlusion=True, fills=("zero", "mean"), skill=skill) for name, skill in SKILLS]
    out = tmp_path / "report"
    page = Page(write_report(runs, out))
    assert "Accuracy by kind of occlusion (means over the fills), in percent" in page.text
    assert "different cells" not in page.text
    for term in ("Relative", "Area under curve", "Corruption error"):
        assert f"<li>{term}: " in page.source
    first = table_rows(page, "Accuracy under occlusion minus that of cbam, in points")[0]
    own, other = (np.mean([entry["accuracy"] for entry in evaluations_of(run)[1:11]]) for run in runs)
    assert first[:3] == ["plain", "square", f"{100 * (other - own):+.1f}"]
    low, high = (float(bound) for bound in first[3].split(" to "))
    assert low < float(first[2]) < high < 0

    rows = table_rows(page, "Accuracy by covered part: square")
    assert [row[1] for row in rows] == 2 * ["0.0", "2.8", "11.1", "25.0", "44.4", "56.2"]
    with np.load(runs[0] / "predictions" / "occlusion" / "fer2013-val-best.npz") as stored:
        chosen = (stored["kind"] == "square") & (stored["severity"] == 3)
        share = (stored["probabilities"][chosen].argmax(axis=2) == stored["label"]).mean(axis=0)
    assert chosen.sum() == 2
    half = 196 * share.std() / np.sqrt(len(share))
    low, high = (float(bound) for bound in rows[3][3].split("–"))
    assert float(rows[3][2]) == pytest.approx(100 * share.mean(), abs=0.05)
    assert (low, high) == pytest.approx((100 * share.mean() - half, 100 * share.mean() + half), abs=0.4)

    (runs[1] / "predictions" / "occlusion" / "fer2013-val-best.npz").unlink()
    page = Page(write_report([*runs, make_run("less", occlusion=True)], out))
    assert "plain: without both runs' predictions/occlusion/ there is no paired difference." in page.text
    assert "different cells of the benchmark (cbam 20, plain 20, less 10, 10 in common)" in page.text
    rows = table_rows(page, "Accuracy by covered part: square")
    assert {row[3] for row in rows[7:12]} == {"–"}, "a mean without predictions has no interval"
    assert "–" not in {row[3] for row in rows[1:6]}


@pytest.mark.parametrize(
    ("own", "named"), [({"data": "ckplus"}, "ckplus"), ({"beton_sha256": "ab" * 32}, "fer2013 abababababab")]
)
def test_data_that_the_run_was_not_trained_on_are_named(
    make_run: MakeRun, tmp_path: Path, own: dict[str, str], named: str
) -> None:
    folder = make_run()
    edit_results(folder, lambda results: results["evaluations"][0].update(own))
    edit_results(folder, lambda results: results["environment"].update(training={"beton_sha256": BETON}))
    run = load_run(folder)
    sentence = headline(run)
    assert "resnet18_cbam, trained on fer2013, has an accuracy of" in sentence
    assert f"in the val split of {named}; the checkpoint was chosen on val of fer2013" in sentence
    assert "biased upward" not in sentence
    table = evaluation_table([run], occluded=False)
    assert (table.head[0], table.rows[0][0]) == ("Data", named)


def test_a_nan_in_the_loss_is_said_and_breaks_the_curve(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(epochs=1)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    lines[2] = json.dumps(json.loads(lines[2]) | {"train/loss": float("nan")})
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    text = Page(write_report([run], tmp_path / "report")).text
    assert "train/loss is not a finite number in 1 line of metrics.jsonl, first at epoch 0.5" in text
    (run / "metrics.jsonl").write_text('{"step": 1, "epoch": 1.0, "time": 0, "train/loss": NaN}\n')
    assert "train is never a number" in write_report([run], tmp_path / "report").read_text()


def test_occlusions_of_unknown_size_are_listed_but_not_drawn(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(occlusion=True)

    def grow_beards(results: dict[str, Any]) -> None:
        for entry in results["evaluations"][1:]:
            entry["occlusion"] |= {"kind": "beard", "covered": None}

    edit_results(run, grow_beards)
    page = Page(write_report([run], tmp_path / "report"))
    assert "No curve: the covered fraction is missing" in page.text
    assert page.source.count(">beard<") == 10 + 1, "ten cells, and the mean of the kind"
    assert "occlusion.svg" not in figure_names(tmp_path / "report")


def test_a_new_report_replaces_the_old_one_and_nothing_else(make_run: MakeRun, tmp_path: Path) -> None:
    out = tmp_path / "report"
    write_report([make_run("a", occlusion=True), make_run("b")], out)
    (out / "figures" / "mine.svg").touch()
    (out / "notes.txt").touch()
    write_report([tmp_path / "b"], out)
    assert {"mine.svg", "confusion.svg", "loss.png"} <= figure_names(out)
    assert not {"confusion-1.svg", "occlusion.svg", "occlusion.png"} & figure_names(out)
    assert {path.name for path in out.iterdir()} == {"report.html", "table1.md", "figures", "notes.txt"}
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_kill_between_two_files_loses_no_figure(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, moved = tmp_path / "report", Path.replace
    write_report([make_run("a", occlusion=True), make_run("b")], out)
    write_report([tmp_path / "b"], tmp_path / "wanted")
    old, left = figure_names(out), [0]

    def replace_or_die(source: Path, target: Path) -> Path:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return moved(source, target)

    for number in range(len(figure_names(tmp_path / "wanted")) + 2):
        monkeypatch.setattr(Path, "replace", replace_or_die)
        left[0] = number
        with pytest.raises(KeyboardInterrupt):
            write_report([tmp_path / "b"], out)
        monkeypatch.undo()
        kept = old & figure_names(tmp_path / "wanted")
        assert kept <= figure_names(out)
        assert (out / "table1.md").exists()
    write_report([tmp_path / "b"], out)
    assert figure_names(out) == figure_names(tmp_path / "wanted"), "and none of the earlier report is left"


def test_names_that_no_file_can_hold_are_escaped(make_run: MakeRun, tmp_path: Path) -> None:
    """Characters that XML or UTF-8 have not, that steer a terminal, or that turn the text."""
    odd = ["c\uffff", "\ud800", "\x00\x07\x1b[2J", "\u202egnp", "\u2028", "\x85", "_\ufffe"]
    folder = make_run("run", classes=odd, occlusion=True)
    (folder / "status.json").write_text(json.dumps({"state": "failed", "reason": "no\ud800\uffff"}))
    edit_results(folder, lambda results: results["evaluations"][-1].update(checkpoint="\udfff\x01"))
    page = Page(write_report([folder, make_run("plain", classes=odd)], tmp_path / "report"))
    assert r"c\uffff" in page.text
    assert r"\x1b[2J" in page.text
    assert r"no\ud800\uffff" in page.text
    written = [path for path in (tmp_path / "report").rglob("*.*") if path.suffix in (".html", ".md", ".svg")]
    assert len(written) > 4
    for path in written:
        text = path.read_text(encoding="utf-8")
        assert not set(text) & set("".join(odd)) - set(string.printable), path
        if path.suffix == ".svg":
            ElementTree.parse(path)


def test_nothing_is_written_where_it_cannot_be(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run()
    (tmp_path / "file").touch()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(RunError, match=r"file: cannot be written \(Not a directory\)"):
        write_report([run], tmp_path / "file")
    with pytest.raises(RunError, match="cannot be written"):
        write_report([run], tmp_path / "file" / "report")
    with pytest.raises(RunError, match="no such run folder"):
        write_report([tmp_path / "absent"], tmp_path / "report")
    assert sorted(tmp_path.rglob("*")) == before
