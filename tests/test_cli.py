"""The command line as users meet it: what it prints, its exit codes, and what bad input leaves behind."""

from __future__ import annotations

import errno
import io
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest
from PIL import Image

from ferdist.cli import main
from ferdist.config import Config
from ferdist.errors import exit_code
from ferdist.training.run import run
from tests.conftest import ROOT, start

HEADER = "emotion,pixels,Usage\n"
PIXELS = " ".join(["7"] * 2304)


def row(label: str = "3", pixels: str = PIXELS, usage: str = "Training") -> str:
    return f"{label},{pixels},{usage}\n"


BAD_CSV = {
    "missing column": ("emotion,Usage\n3,Training\n", "line 1: column pixels missing"),
    "2303 pixels": (
        HEADER + row() + row(pixels=" ".join(["7"] * 2303)),
        "line 3: 2303 pixels instead of 2304",
    ),
    "pixel 256": (HEADER + row(pixels="256" + PIXELS[1:]), "line 2: pixel 1 is '256'"),
    "pixel -1": (HEADER + row(pixels="-1" + PIXELS[1:]), "line 2: pixel 1 is '-1'"),
    "pixel x": (HEADER + row(pixels="x" + PIXELS[1:]), "line 2: pixel 1 is 'x'"),
    "label 9": (HEADER + row() + row(label="9"), "line 3: emotion '9'"),
    "unknown Usage": (HEADER + row(usage="Testing"), "line 2: Usage 'Testing'"),
    "empty file": ("", "empty file"),
    "header alone": (HEADER, "a header without rows"),
    "random bytes": (random.Random(0).randbytes(4000).decode("latin-1"), "fer2013.csv: "),
}


def failed(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """Run the command line, which must fail as the contract says; the line on stderr."""
    assert main([str(a) for a in arguments]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("ferdist: ")
    assert "unexpected" not in lines[0]
    return lines[0]


@pytest.mark.parametrize("name", BAD_CSV)
def test_a_bad_csv_is_one_line_and_leaves_nothing(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, message = BAD_CSV[name]
    source, out = tmp_path / "fer2013.csv", tmp_path / "out"
    source.write_text(content, encoding="latin-1")
    line = failed(capsys, "prepare", "fer2013", "--source", source, "--out", out)
    assert str(source) in line
    assert message in line
    assert not out.exists() or not list(out.iterdir())


def png(size: tuple[int, int] = (48, 48)) -> bytes:
    data = io.BytesIO()
    Image.new("L", size, 100).save(data, "PNG")
    return data.getvalue()


def bad_zip(path: Path, kind: str) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("CK+48/anger/S010_004_00000017.png", png())
        if kind == "escape":
            archive.writestr("../evil.png", png())
        if kind == "size":
            archive.writestr("CK+48/happy/S011_004_00000017.png", png((40, 48)))
    if kind == "broken":
        path.write_bytes(path.read_bytes()[:-30])


@pytest.mark.parametrize(
    ("kind", "message"), [("broken", "zip"), ("escape", "../evil.png"), ("size", "S011_004_00000017.png")]
)
def test_a_bad_zip_is_one_line_and_leaves_nothing(
    kind: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "ck.zip", tmp_path / "out"
    bad_zip(source, kind)
    line = failed(capsys, "prepare", "ckplus", "--source", source, "--out", out)
    assert message in line
    assert not out.exists() or not list(out.iterdir())
    assert not (tmp_path / "evil.png").exists()


@pytest.mark.parametrize("damage", ["truncated", "flipped", "other manifest", "no manifest", "gone"])
def test_a_damaged_beton_is_one_line(
    damage: str,
    beton_path: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    tiny: Callable[..., Config],
) -> None:
    for file in beton_path.parent.iterdir():
        shutil.copy(file, tmp_path)
    beton = tmp_path / beton_path.name
    content = bytearray(beton.read_bytes())
    if damage == "truncated":
        beton.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        content[len(content) // 2] ^= 1
        beton.write_bytes(content)
    elif damage == "other manifest":
        assert main(["prepare", "synthetic", "--out", str(tmp_path / "b"), "--images", "70"]) == 0
        capsys.readouterr()
        shutil.copy(tmp_path / "b" / "synthetic.json", tmp_path)
    elif damage == "no manifest":
        beton.with_suffix(".json").unlink()
    else:
        beton.unlink()
    assert str(beton) in failed(capsys, "inspect", beton)
    config = tmp_path / "run.yaml"
    config.write_text(f"data: {{path: {beton}}}\nrun_dir: {tmp_path / 'run'}\n")
    assert str(beton) in failed(capsys, "train", config)
    assert not (tmp_path / "run").exists(), "nothing is begun on data that are not whole"


def test_inspect_prints_what_programs_read(beton_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(beton_path), "--json"]) == 0
    contents = json.loads(capsys.readouterr().out)
    assert {"name", "samples", "classes", "splits", "folds", "sha256", "audit"} <= contents.keys()
    assert contents["samples"] == 420
    assert sum(part["samples"] for part in contents["splits"].values()) == 420
    for part in (*contents["splits"].values(), *contents["folds"].values()):
        assert sum(part["per_class"]) == part["samples"]
    subjects = [set(part["subjects"]) for part in contents["folds"].values()]
    assert len(subjects) == 10
    assert sum(map(len, subjects)) == len(set.union(*subjects)), "no subject is in two folds"


def test_inspect_shows_no_escapes_and_names_what_a_manifest_lacks(
    beton_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in beton_path.parent.iterdir():
        if file.is_file():
            shutil.copy(file, tmp_path)
    manifest = tmp_path / beton_path.with_suffix(".json").name
    content = json.loads(manifest.read_text())
    content["classes"][0] = "\x1b[2Jangry\nforged"
    manifest.write_text(json.dumps(content))
    assert main(["inspect", str(tmp_path / beton_path.name)]) == 0
    shown = capsys.readouterr().out
    assert r"\x1b[2Jangry\nforged" in shown
    assert "\x1b" not in shown
    for key in ("copies", "conflicting_labels", "leaks", "unique_images", "near_constant"):
        audit = {name: value for name, value in content["audit"].items() if name != key}
        manifest.write_text(json.dumps({**content, "audit": audit}))
        line = failed(capsys, "inspect", tmp_path / beton_path.name)
        assert f"missing required field `{key}` - at `$.audit`" in line


def test_inspect_draws_samples_and_their_augmentation(
    beton_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("augment: {occlusion: {probability: 1.0}}\n")
    plain, augmented = tmp_path / "plain.png", tmp_path / "augmented.png"
    assert main(["inspect", str(beton_path), "--grid", str(plain)]) == 0
    assert main(["inspect", str(beton_path), "--grid", str(augmented), "--augment", str(config)]) == 0
    assert "420 images 1x48x48" in capsys.readouterr().out
    sizes = [Image.open(path).size for path in (plain, augmented)]
    assert all(width > 400 and height > 400 for width, height in sizes)
    assert plain.read_bytes() != augmented.read_bytes()


def test_wrong_usage_is_2_and_an_unknown_key_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", "fer2013"]) == 2
    assert main(["trian"]) == 2
    assert main(["prepare", "synthetic", "--out", str(tmp_path), "--images", "many"]) == 2
    assert main(["--help"]) == 0
    capsys.readouterr()
    line = failed(capsys, "train", "configs/demo.yaml", "train.lrr=1")
    assert "did you mean train.lr?" in line
    assert "no such config file" in failed(capsys, "train", tmp_path / "none.yaml")
    assert "not a run folder" in failed(capsys, "evaluate", tmp_path)
    assert "no such run folder" in failed(capsys, "evaluate", tmp_path / "none")


def test_debug_shows_the_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--debug", "train", str(tmp_path / "none.yaml")]) == 1
    assert "Traceback" in capsys.readouterr().err
    assert main(["train", str(tmp_path / "none.yaml"), "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_evaluate_and_report_a_run(
    tiny: Callable[..., Config], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    config = tiny("train.epochs=1")
    run(config)
    folder = Path(config.run_dir)
    few = ["--kinds", "square,circle", "--fills", "zero"]
    assert main(["evaluate", str(folder), "--occlusion", *few, "--json", "--device", "cpu"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((folder / "results.json").read_text())
    cells = [e["occlusion"] for e in printed["evaluations"] if e["occlusion"]]
    assert [(c["kind"], c["severity"]) for c in cells] == [
        (kind, severity) for kind in ("square", "circle") for severity in range(1, 6)
    ]
    for tta in ("flip", "ten-crop"):
        assert main(["evaluate", str(folder), "--split", "test", "--tta", tta, "--checkpoint", "last"]) == 0
    results = json.loads((folder / "results.json").read_text())
    assert results["test_scorings"] == 2
    assert {e["tta"] for e in results["evaluations"]} == {"none", "flip", "ten-crop"}
    capsys.readouterr()
    assert "unknown name 'beard'" in failed(capsys, "evaluate", folder, "--occlusion", "--kinds", "beard")
    assert "--fills choose parts of the occlusion benchmark" in failed(capsys, "evaluate", folder, *few)
    assert "give --occlusion too" in failed(capsys, "evaluate", folder, "--reference", folder)
    assert "cannot read it" in failed(capsys, "evaluate", folder, "--pose-list", tmp_path / "list.txt")
    assert "--tta is 'all'" in failed(capsys, "evaluate", folder, "--tta", "all")
    assert "--split is 'dev'" in failed(capsys, "evaluate", folder, "--split", "dev")
    assert "no such checkpoint" in failed(capsys, "evaluate", folder, "--checkpoint", tmp_path / "x.pt")
    assert main(["report", str(folder), "--out", str(tmp_path / "report")]) == 0
    page = (tmp_path / "report" / "report.html").read_text()
    assert "resnet18_cbam" in page
    assert (tmp_path / "report" / "table1.md").is_file()


def test_a_missing_split_is_said_to_be_missing(
    tiny: Callable[..., Config], capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny("train.epochs=1", "data.fold=0")
    run(config)
    capsys.readouterr()
    assert "has no test split" in failed(capsys, "evaluate", config.run_dir, "--split", "test")
    results = json.loads((Path(config.run_dir) / "results.json").read_text())
    assert all(entry["split"] == "val" for entry in results["evaluations"])


def test_data_that_the_model_does_not_fit_are_refused(
    tiny: Callable[..., Config], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    config = tiny("train.epochs=1")
    run(config)
    capsys.readouterr()
    raw = tmp_path / "raw"
    assert main(["prepare", "synthetic", "--out", str(raw), "--images", "120", "--format", "ckplus48"]) == 0
    source = capsys.readouterr().out.strip()
    assert main(["prepare", "ckplus", "--source", source, "--out", str(tmp_path / "ck"), "--folds", "3"]) == 0
    capsys.readouterr()
    line = failed(capsys, "evaluate", config.run_dir, "--data", tmp_path / "ck" / "ckplus.beton")
    assert "classes are" in line


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("train nope.yaml", "nope.yaml: no such config file; these ship: base, "),
        ("train base tran.epochs=3", "tran.epochs=3: unknown config key tran.epochs: did you mean train."),
        ("train base data.path=nope.beton", "nope.beton: there is no such file; make it with `ferdist prep"),
        ("inspect nope.beton", "nope.beton: there is no such file; make it with `ferdist prepare`"),
        ("prepare fer2013 --source nope --out out", "nope: no such file or folder"),
        (
            "evaluate nope",
            "nope: no such run folder, .safetensors file or shipped weights (available: fer2013",
        ),
        ("evaluate fer2013 --data nope.beton", "nope.beton: there is no such file; make it with"),
        ("predict nope.safetensors face.png", "nope.safetensors: there is no such file"),
        ("predict fer2013 nope.png", "nope.png: there is no such file"),
        ("export nope --out model.onnx", "nope: no such run folder, "),
        ("report nope --out out", "nope: no such run folder"),
        ("leaderboard nope --out out", "nope: no such run folder, "),
    ],
)
def test_what_is_missing_is_said_at_once(arguments: str, line: str, tmp_path: Path) -> None:
    code = (
        "import sys; from ferdist.cli import main; code = main(sys.argv[1:]); "
        "slow = {'torch', 'pandas', 'cv2', 'matplotlib'} & sys.modules.keys(); "
        "sys.exit(f'imports {slow}' if slow else code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments.split()],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith(f"ferdist: {line}")
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("module", ["ferdist", "ferdist.cli", "ferdist.train"])
def test_the_modules_and_the_script_are_the_same_command(module: str) -> None:
    arguments = ["no-such.yaml"] if module == "ferdist.train" else ["train", "no-such.yaml"]
    done = start(module, *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("ferdist: no-such.yaml: no such config file; these ship: base, ")
    assert done.stderr.count("\n") == 1


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"ferdist {version('ferdist')}\n"


@pytest.mark.parametrize(
    ("shell", "asked"),
    [
        ("bash", {"COMP_WORDS": "ferdist eval", "COMP_CWORD": "1"}),
        ("zsh", {"_TYPER_COMPLETE_ARGS": "ferdist eval"}),
        ("fish", {"_TYPER_COMPLETE_ARGS": "ferdist eval", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}),
    ],
)
def test_completion(shell: str, asked: dict[str, str]) -> None:
    """As the script of `--show-completion` asks for it."""
    environment = {**os.environ, **asked, "_FERDIST_COMPLETE": f"complete_{shell}"}
    command = [sys.executable, "-m", "ferdist"]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "evaluate" in done.stdout, done.stderr
    assert "report" not in done.stdout.replace("\n", " ").split()


def test_what_ends_a_thread_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)  # put back afterwards

    def fail() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def command() -> None:
        thread = threading.Thread(target=fail)
        thread.start()
        thread.join()

    assert exit_code(command) == 0
    assert capsys.readouterr().err == "ferdist: a thread ended: OSError: No space left on device\n"
