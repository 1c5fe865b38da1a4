"""The documents name files that exist, and the tutorial's commands run, on drawn faces."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from ferdist.data.rawformats import write_fer2013_csv
from ferdist.data.synthetic import ckplus_sequences, synthesize
from tests.conftest import PATIENCE, ROOT

DOCUMENTS = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
DOCUMENTS.remove(ROOT / "docs" / "extending.md")  # it names files that the reader makes
TUTORIAL = ROOT / "docs" / "tutorial.md"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_files_that_a_document_names_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    named = re.findall(r"(?<![\w/.])((?:docs|scripts|tests|configs|ferdist|launch|slurm)/[\w/.-]*\w)", text)
    links = re.findall(r'(?:\]\(|src=")(?!http|#)([^)#"]+)', text)
    linked = [document.parent / link for link in links]
    places = (ROOT, ROOT / "tests") if document.name == "reliability.md" else (ROOT,)
    missing = [
        name
        for name in named
        if not any((place / name).exists() for place in places) and "DATASET" not in name
    ]
    assert len(named) + len(linked) > 0
    assert missing + [str(path) for path in linked if not path.exists()] == []


def test_every_promise_names_tests_that_exist() -> None:
    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    tables = re.findall(r"^\| promise .*\n\| --- .*\n((?:\| .*\n)+)", text, re.M)
    rows = [row for table in tables for row in table.splitlines()]
    assert len(rows) > 20
    for row in rows:
        named = re.findall(r"`([\w/]+\.py)(?:::(\w+))?`", row.split(" | ")[1])
        assert named, row
        for file, name in named:
            content = (ROOT / "tests" / file).read_text(encoding="utf-8")
            assert f"\ndef {name or 'test_'}" in content, f"{file}::{name}"


def test_the_first_screen_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 110


def commands() -> list[str]:
    """The tutorial's, in order."""
    blocks = re.findall(r"```console\n(.*?)```", TUTORIAL.read_text(encoding="utf-8"), re.DOTALL)
    return [
        line.removeprefix("$ ") for block in blocks for line in block.splitlines() if line.startswith("$ ")
    ]


@pytest.mark.slow
def test_the_tutorial(tmp_path: Path) -> None:
    write_fer2013_csv(synthesize(420, 0), tmp_path / "fer2013.csv")
    sequence = ckplus_sequences(3)[0]
    scene = Image.fromarray(sequence.scene(sequence.frames)[0])
    scene.resize((640, 490)).save(tmp_path / "photo.jpg")
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin" / "ferdist"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -m ferdist "$@"\n')
    script.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{script.parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    assert len(commands()) == 12
    for command in commands():
        if command.startswith("ferdist app"):
            pytest.importorskip("gradio", reason="needs Gradio: pip install '.[app]'")
            served = subprocess.Popen(
                ["ferdist", *command.split()[1:], "--no-browser"],
                cwd=tmp_path,
                env=environment,
                stdout=subprocess.PIPE,
                text=True,
            )
            assert served.stdout is not None
            assert served.stdout.readline().startswith("http://127.0.0.1:7860/")
            served.send_signal(signal.SIGINT)
            assert served.wait(PATIENCE) == 0
            continue
        done = subprocess.run(
            command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
    assert (tmp_path / "report" / "report.html").exists()
    assert (tmp_path / "marked" / "photo.jpg.png").exists()
    shutil.rmtree(tmp_path / "runs")
