"""`make wheelhouse`: the wheels that it builds need nothing of the system, and a failure leaves no half."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

from tests.conftest import ROOT

SYSTEM = {
    "linux-vdso.so.1",
    "ld-linux-x86-64.so.2",
    "libc.so.6",
    "libdl.so.2",
    "libgcc_s.so.1",
    "libm.so.6",
    "libpthread.so.0",
    "librt.so.1",
    "libstdc++.so.6",
    "libz.so.1",
}
"""What every host that runs PyTorch has."""

USE = """
import sys
from pathlib import Path
import cv2, ffcv.libffcv
wheels = Path(sys.argv[1])
assert wheels in Path(cv2.__file__).parents and wheels in Path(ffcv.__file__).parents
faces = cv2.CascadeClassifier(cv2.data.haarcascades + "haarcascade_frontalface_default.xml")
assert not faces.empty()
"""


pytestmark = pytest.mark.slow


def test_ffcv_and_opencv_carry_their_libraries(tmp_path: Path) -> None:
    wheels, site = tmp_path / "wheels", tmp_path / "site"
    wheels.mkdir()
    environment = {**os.environ, "PYTHON": sys.executable}
    build = [str(ROOT / "scripts" / "portable-wheels"), str(wheels)]
    done = subprocess.run(build, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    names = sorted(path.name.split("-")[0:2] for path in wheels.iterdir())
    assert [name for name, _ in names] == ["ffcv", "opencv_python"]
    assert names[1][1].endswith("+headless")
    for wheel in wheels.iterdir():
        with ZipFile(wheel) as archive:
            archive.extractall(site)

    libraries = [*site.glob("*/*.so"), *site.glob("*.libs/*.so*")]
    assert any("opencv_core" in path.name for path in libraries)
    for library in libraries:
        listed = subprocess.run(["ldd", str(library)], capture_output=True, text=True, check=True).stdout
        for line in listed.splitlines():
            name = Path(line.split()[0]).name
            assert name in SYSTEM or str(site) in line.partition("=>")[2], f"{library.name} needs{line}"
    use = [sys.executable, "-c", USE, str(site)]
    subprocess.run(use, env={**environment, "PYTHONPATH": str(site)}, check=True)


def test_a_wheel_that_was_changed_is_not_installed(tmp_path: Path) -> None:
    source, wheels, requirements = tmp_path / "source", tmp_path / "wheels", tmp_path / "requirements.txt"
    source.mkdir()
    (source / "a_module.py").write_text("")
    (source / "setup.cfg").write_text(
        "[metadata]\nname = some-name\nversion = 1.0+local\n[options]\npy_modules = a_module\n"
    )
    (source / "pyproject.toml").write_text('[build-system]\nrequires = ["setuptools"]\n')
    pip = [sys.executable, "-m", "pip", "--quiet"]
    build = [
        "wheel",
        "--no-deps",
        "--no-index",
        "--no-build-isolation",
        "--wheel-dir",
        str(wheels),
        str(source),
    ]
    subprocess.run([*pip, *build], check=True)
    (wheel,) = wheels.iterdir()
    script = [str(ROOT / "scripts" / "hashed-requirements"), str(wheel)]
    requirements.write_text(subprocess.run(script, capture_output=True, text=True, check=True).stdout)

    install = [*pip, "install", "--require-hashes", "--no-index", "--find-links", str(wheels)]
    install += ["--requirement", str(requirements)]
    subprocess.run([*install, "--target", str(tmp_path / "whole")], check=True)
    assert (tmp_path / "whole" / "a_module.py").exists()
    with ZipFile(wheel, "a") as archive:
        archive.writestr("another_module.py", "")
    refused = subprocess.run(
        [*install, "--target", str(tmp_path / "changed")], capture_output=True, text=True, check=False
    )
    assert refused.returncode == 1
    assert "DO NOT MATCH THE HASHES" in refused.stderr
    assert not (tmp_path / "changed").exists()


def test_the_configs_are_built_in(tmp_path: Path) -> None:
    """ferdist/configs is a link in a checkout."""
    script = (ROOT / "scripts" / "wheelhouse").read_text().splitlines()
    (copy,) = [line for line in script if line.startswith("cp ")]
    (tmp_path / "source").mkdir()
    subprocess.run(["sh", "-c", copy], cwd=ROOT, env={**os.environ, "work": str(tmp_path)}, check=True)
    configs = tmp_path / "source" / "ferdist" / "configs"
    assert not configs.is_symlink()
    assert (configs / "fer2013" / "resnet18_cbam.yaml").is_file()


def test_a_build_that_fails_leaves_the_old_wheelhouse(tmp_path: Path) -> None:
    for name in ("scripts", "launch", "ferdist"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for name in ("setup.cfg", "pyproject.toml", "constraints.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "wheelhouse").mkdir()
    (tmp_path / "wheelhouse" / "old.whl").write_text("")
    before = sorted(tmp_path.iterdir())
    no_index = {"PYTHON": sys.executable, "PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull}
    done = subprocess.run(
        [str(tmp_path / "scripts" / "wheelhouse")],
        capture_output=True,
        text=True,
        env={**os.environ, **no_index},
        check=False,
    )
    assert done.returncode != 0
    assert "auditwheel" in done.stderr
    assert sorted(tmp_path.iterdir()) == before
    assert [path.name for path in (tmp_path / "wheelhouse").iterdir()] == ["old.whl"]
