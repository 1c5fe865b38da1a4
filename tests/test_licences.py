"""docs/licences.md and constraints.txt name every package that ferdist loads."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution

import pytest
from packaging.utils import canonicalize_name

from tests.conftest import ROOT

Row = tuple[str, str, str]


@pytest.fixture(scope="module")
def installed() -> list[Row]:
    script = [sys.executable, str(ROOT / "scripts" / "licences.py")]
    return table(subprocess.run(script, capture_output=True, text=True, check=True).stdout)


def test_the_table_of_licences_says_what_is_installed(installed: list[Row]) -> None:
    written = table((ROOT / "docs" / "licences.md").read_text(encoding="utf-8"))
    assert len(installed) > 50
    assert "not stated" not in {licence for _, _, licence in installed}
    again = "run .venv/bin/python scripts/licences.py >docs/licences.md"
    assert set(installed) <= set(written), again
    for name, _, _ in set(written) - set(installed):  # of another Python, or CUDA's
        with pytest.raises(PackageNotFoundError):
            distribution(name)


def test_every_package_that_ferdist_loads_has_its_version_in_the_constraints(installed: list[Row]) -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {canonicalize_name(line.partition("==")[0]) for line in lines}
    follow_torch = (
        "nvidia-",
        "cuda-",
        "triton",
        "setuptools",
    )  # torch requires exact versions of the first three
    assert [
        name for name, _, _ in installed if name not in pinned and not name.startswith(follow_torch)
    ] == []


def table(text: str) -> list[Row]:
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")][2:]
    return [(name, purpose, licence) for name, purpose, licence in rows]
