"""A disk that takes no more: one line, exit code 1, and nothing half-written."""

from __future__ import annotations

import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from ferdist.cli import main


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize(
    ("command", "size"),
    [
        (["evaluate", "run", "--device", "cpu"], 100),  # the predictions
        (["evaluate", "run", "--device", "cpu"], 6000),  # results.json
        (["report", "run", "--out", "new"], 60_000),
        (["predict", "run", "face.png", "--out", "new", "--device", "cpu"], 100),
        (["export", "run", "--out", "new/model.safetensors"], 60_000),
    ],
    ids=str,
)
def test_no_space_is_one_line(
    trained_run: Path,
    photograph: Callable[[int], Image.Image],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: list[str],
    size: int,
) -> None:
    """A limit on the size of files stands for a full disk."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained_run, "run")
    photograph(2).save("face.png")
    before = contents(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        code = main(command)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    printed = capsys.readouterr()
    assert code == 1
    assert printed.err.count("\n") == 1, printed.err
    assert "cannot be written (File too large): free space there or choose another place" in printed.err
    after = contents(tmp_path)
    assert after.keys() == before.keys()
    assert after["run/results.json"] == before["run/results.json"]
