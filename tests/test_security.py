"""What comes from outside (data, weights, cards, run folders) runs no code and leads to no other place.

SECURITY.md says what is trusted and what is not.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from ferdist import demo
from ferdist.cli import main
from ferdist.config import Config, from_dict, load_config, to_dict
from ferdist.errors import ConfigError
from ferdist.models import registry, weights
from ferdist.runtime import checkpoint
from launch import kfold, train
from tests.conftest import ROOT

HELPER = """
from pathlib import Path
import torch
from ferdist.models import register
Path("executed").touch()

@register("net")
def net(config, task):
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48 * 48, task.classes))
"""


@pytest.fixture
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder to work in, with a module that leaves a file when it is imported; the file."""
    (tmp_path / "helper.py").write_text(HELPER)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path / "executed"
    sys.modules.pop("helper", None)
    registry._NETWORKS.pop("helper:net", None)


def card(**model: object) -> dict[str, object]:
    """What the metadata of exported weights says of the network."""
    values = to_dict(Config())
    values["model"] |= model
    return {
        "config": values,
        "task": {"channels": 1, "height": 48, "width": 48, "classes": 7},
        "classes": list("abcdefg"),
        "mean": [0.5],
        "std": [0.25],
        "beton_sha256": "0" * 64,
        "checkpoint": "last",
        "step": 1,
    }


def write_helper_weights(path: Path) -> Path:
    tensors = {"1.weight": torch.zeros(7, 48 * 48), "1.bias": torch.zeros(7)}
    path.write_bytes(weights.encode(path, tensors, card(name="helper:net")))
    return path


@pytest.mark.parametrize("command", ["predict", "evaluate", "export"])
def test_a_card_runs_no_code(
    helper: Path, beton_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_helper_weights(helper.parent / "weights.safetensors")
    Image.new("L", (48, 48)).save("face.png")
    more = {
        "predict": ["face.png", "--whole-image"],
        "evaluate": ["--data", str(beton_path)],
        "export": ["--out", "again.safetensors"],
    }[command]
    assert main([command, str(model), *more]) == 1
    assert "'helper:net', which a file asks for" in capsys.readouterr().err
    assert not helper.exists()
    if command == "predict":
        assert main([command, str(model), *more, "--trust-code"]) == 0
        assert helper.exists(), "the attack works where it is allowed"


def test_a_run_folder_runs_no_code(
    helper: Path, evaluated_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = helper.parent / "run"
    shutil.copytree(evaluated_run, folder)
    values = yaml.safe_load((folder / "config.yaml").read_text())
    values["model"]["name"] = "helper:net"
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    state = torch.load(folder / "checkpoints" / "best.pt")
    state["card"]["config"]["model"]["name"] = "helper:net"
    checkpoint.save(folder / "checkpoints" / "best.pt", state)
    assert main(["evaluate", str(folder)]) == 1
    assert "which a file asks for" in capsys.readouterr().err
    assert main(["report", str(folder), "--out", "report"]) == 0
    assert not helper.exists()


def test_the_demo_deletes_only_what_it_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that looks like an earlier demo's, and one that is."""
    monkeypatch.setattr(demo, "_start", lambda arguments, **environment: None)
    monkeypatch.setattr(demo, "write_report", lambda runs, out: out / "report.html")
    monkeypatch.chdir(ROOT)
    out = tmp_path / "out"
    for name in ("data/synthetic.beton", "thesis/chapter.tex"):
        (out / name).parent.mkdir(parents=True)
        (out / name).write_text("mine")
    with pytest.raises(ConfigError, match="not empty and not from an earlier demo"):
        demo.run_demo(out, 100)
    assert (out / "data" / "synthetic.beton").read_text() == "mine"

    shutil.rmtree(out / "data")
    (out / "thesis").rename(tmp_path / "thesis")
    demo.run_demo(out, 100)
    (tmp_path / "thesis").rename(out / "thesis")
    (out / "tb").symlink_to(out / "thesis")
    demo.run_demo(out, 100)
    assert (out / "thesis" / "chapter.tex").read_text() == "mine"
    assert not (out / "tb").is_symlink()

    with (out / demo.MARKER).open("a") as marker:
        marker.write("../thesis\n")
    (tmp_path / "thesis").mkdir()
    with pytest.raises(ConfigError, match=r"'\.\./thesis' is not a name in this folder"):
        demo.run_demo(out, 100)
    assert (tmp_path / "thesis").is_dir()


def test_a_manifests_name_leads_nowhere_else(
    tmp_path: Path, evaluated_run: Path, beton_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in beton_path.parent.iterdir():
        if file.is_file():
            shutil.copy(file, tmp_path)
    manifest = tmp_path / beton_path.with_suffix(".json").name
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "name": "../../x"}))
    shutil.copytree(evaluated_run, tmp_path / "run")
    before = sorted(tmp_path.rglob("*"))
    assert main(["evaluate", str(tmp_path / "run"), "--data", str(tmp_path / beton_path.name)]) == 1
    assert "at `$.name`" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("folder", [False, True])
def test_no_other_program_decodes_a_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: bool
) -> None:
    """Pillow hands EPS to the first `gs` on the path, whatever the file is called."""
    ghostscript = tmp_path / "bin" / "gs"
    ghostscript.parent.mkdir()
    ghostscript.write_text(f"#!/bin/sh\ntouch {tmp_path}/executed\n")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", f"{ghostscript.parent}:{os.environ['PATH']}")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)
    image = tmp_path / "faces" / "happy" / "face.png"
    image.parent.mkdir(parents=True)
    image.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 48 48\n%%EndComments\n%%EOF\n")
    if folder:
        Image.new("L", (48, 48)).save(image.with_name("good.png"))
        (tmp_path / "faces" / "sad").mkdir()
        Image.new("L", (48, 48)).save(tmp_path / "faces" / "sad" / "good.png")
        arguments = ["prepare", "folders", "--source", str(tmp_path / "faces"), "--name", "x"]
        assert main([*arguments, "--out", str(tmp_path / "out")]) == 1
    else:
        assert main(["predict", "fer2013", str(image), "--whole-image"]) == 1
    assert "not a readable image (not one of JPEG, PNG" in capsys.readouterr().err
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("launcher", [kfold.main, train.main])
@pytest.mark.parametrize("dry", [True, False])
@pytest.mark.parametrize(
    "option",
    ["--partition=x\ntouch injected", "--out={}/x\ntouch injected", "--sbatch=comment=x\ntouch injected"],
)
def test_a_line_break_starts_no_command(
    launcher: Callable[[list[str]], int],
    beton_path: Path,
    tmp_path: Path,
    option: str,
    dry: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = str(ROOT / "configs" / "base.yaml")
    options = ["--cluster=slurm", f"--out={tmp_path}/x", option.format(tmp_path), *["--dry-run"][:dry]]
    assert launcher([config, *options, f"data.path={beton_path}"]) == 1
    printed = capsys.readouterr()
    assert "remove the line break or control character" in printed.err
    assert printed.err.count("\n") == 1
    assert "injected" not in printed.out
    assert not list(tmp_path.iterdir())


def test_no_config_reads_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FERDIST_SECRET", "hunter2")
    secret = "${oc.env:FERDIST_SECRET}"
    file = tmp_path / "config.yaml"
    values = to_dict(Config()) | {"run_dir": secret}
    file.write_text(yaml.safe_dump({"run_dir": secret}))
    base = ROOT / "configs" / "base.yaml"
    for config in (
        load_config(file),
        load_config(base, [f"run_dir={secret}"]),
        from_dict(values, Path("card")),
    ):
        assert config.run_dir == secret
    with pytest.raises(ConfigError, match=r"train\.resolution\[0\]\[1\] must be a number"):
        load_config(base, [f"train.resolution=[[0, '{secret}']]"])


def write_virtual_to_itself(path: Path) -> None:
    layout = h5py.VirtualLayout(shape=(10, 48, 48), dtype="u1")
    layout[:] = h5py.VirtualSource(str(path), "data_pixel", shape=(10, 48, 48))
    with h5py.File(path, "w", libver="latest") as file:
        file.create_virtual_dataset("data_pixel", layout)
        file["data_label"] = np.zeros(10, dtype=np.int64)


def write_huge(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("data_pixel", (5_000_000, 48, 48), "u1", chunks=(1, 48, 48))
        file.create_dataset("data_label", (5_000_000,), "i8", chunks=(1000,))


def write_external(path: Path) -> None:
    secret = path.with_suffix(".secret")
    secret.write_bytes(bytes(10 * 48 * 48))
    with h5py.File(path, "w") as file:
        file.create_dataset("data_pixel", (10, 48, 48), "u1", external=[(str(secret), 0, 10 * 48 * 48)])
        file["data_label"] = np.zeros(10, dtype=np.int64)


def write_links(path: Path) -> None:
    other = path.with_suffix(".other")
    with h5py.File(other, "w") as file:
        file["data_pixel"] = np.zeros((10, 48, 48), dtype=np.uint8)
    with h5py.File(path, "w") as file:
        file["data_pixel"] = h5py.ExternalLink(str(other), "data_pixel")
        file["data_label"] = np.zeros(10, dtype=np.int64)


def write_group(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_group("data_pixel")
        file["data_label"] = h5py.Empty("i8")


def write_huge_chunk(path: Path) -> None:
    with h5py.File(path, "w") as file:
        array = file.create_dataset(
            "data_pixel", (1, 48, 48), "u1", maxshape=(None, 48, 48), chunks=(900_000, 48, 48), compression=9
        )
        array.id.write_direct_chunk((0, 0, 0), zlib.compress(bytes(900_000 * 48 * 48), 1))
        file["data_label"] = np.zeros(1, dtype=np.int64)


PLAIN = "data_pixel is not a plain array in the file itself"
H5_ATTACKS = {
    "virtual": (write_virtual_to_itself, PLAIN),
    "external": (write_external, PLAIN),
    "links": (write_links, PLAIN),
    "group": (write_group, PLAIN),
    "huge chunk": (write_huge_chunk, "data_pixel (1, 48, 48) would take 1,978 MiB"),
    "huge": (write_huge, "data_pixel (5000000, 48, 48) would take 10,986 MiB"),
}

LIMITED = """
import os, sys
from resource import RLIMIT_DATA, RUSAGE_SELF, getrusage, setrlimit
from ferdist.cli import main
import ferdist.data.beton, ferdist.data.ckplus
most = getrusage(RUSAGE_SELF).ru_maxrss * 1024 + (4 << 30)
for source in sys.argv[1:]:
    child = os.fork()
    if not child:
        setrlimit(RLIMIT_DATA, (most, most))
        sys.exit(main(["prepare", "ckplus", "--source", source, "--out", source + ".out"]))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
"""`ferdist prepare ckplus` of each source, in a process with 4 GiB for what it does after its imports."""


def test_an_h5_file_crashes_nothing(tmp_path: Path) -> None:
    """In processes of their own, which the attacks would end."""
    sources = []
    for name, (write, _) in H5_ATTACKS.items():
        sources.append(tmp_path / f"{name}.h5")
        write(sources[-1])
    program = [sys.executable, "-c", LIMITED, *map(str, sources)]
    done = subprocess.run(program, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.stdout.split() == ["1"] * len(sources), done
    lines = done.stderr.splitlines()
    assert len(lines) == len(sources), lines
    for line, source, (_, reason) in zip(lines, sources, H5_ATTACKS.values(), strict=True):
        assert line.startswith(f"ferdist: {source}: ")
        assert reason in line
        assert not Path(f"{source}.out").exists()
