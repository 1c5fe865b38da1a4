"""Faces in videos: followed, smoothed, marked; and files that are no videos."""

from __future__ import annotations

import csv
import resource
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from PIL import Image

from ferdist.cli import main
from ferdist.errors import DataError
from ferdist.use import video
from ferdist.use.predict import Face
from ferdist.use.video import Follower

Photograph = Callable[[int], Image.Image]
FRAMES, RATE = 12, 15.0


@pytest.fixture(scope="module")
def clip(photograph: Photograph, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A face that moves to the right, above an empty place."""
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), RATE, (640, 490))
    frame = np.asarray(photograph(3).convert("RGB"))
    for number in range(FRAMES):
        writer.write(np.ascontiguousarray(np.roll(frame, 4 * number, axis=1)[..., ::-1]))
    writer.release()
    return path


def test_a_face_is_followed(
    trained_run: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    marked, table = tmp_path / "marked.mp4", tmp_path / "faces.csv"
    assert main(["predict", str(trained_run), str(clip), "--out", str(marked), "--csv", str(table)]) == 0
    summary = capsys.readouterr().out
    assert f"of {FRAMES} frames" in summary
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["frame"] for row in rows if row["face"] == "1"] == [str(n) for n in range(FRAMES)]
    lefts = [int(row["left"]) for row in rows if row["face"] == "1"]
    assert lefts[-1] - lefts[0] == pytest.approx(4 * (FRAMES - 1), abs=20)
    assert float(rows[-1]["seconds"]) == pytest.approx((FRAMES - 1) / RATE, abs=0.001)
    copy = cv2.VideoCapture(str(marked))
    frames = [copy.read()[1] for _ in range(FRAMES)]
    assert not copy.read()[0]
    yellow = [int((frame[..., 2].astype(int) - frame[..., 0] > 80).sum()) for frame in frames]
    assert min(yellow) > 300, "the frame at the face"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["faces.csv", "marked.mp4"]


@pytest.mark.parametrize("room", [0, 100, 20_000])
def test_a_copy_that_finds_no_space_leaves_the_old_one(
    trained_run: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], room: int
) -> None:
    """A limit on the size of files stands for a full disk."""
    marked = tmp_path / "marked.mp4"
    marked.write_bytes(b"the old one")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        code = main(["predict", str(trained_run), str(clip), "--out", str(marked), "--device", "cpu"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    printed = capsys.readouterr()
    assert code == 1
    [line] = [one for one in printed.err.splitlines() if one.startswith("ferdist:")]
    assert line.startswith(f"ferdist: {marked}: cannot be written (")
    assert line.endswith("): free space there or choose another place")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("marked.mp4", b"the old one")]


@pytest.mark.parametrize("option", ["--out", "--csv"])
def test_a_result_never_replaces_the_video(
    trained_run: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    content = clip.read_bytes()
    (tmp_path / "link.mp4").symlink_to(clip)
    for same in (clip, clip.parent / ".." / clip.parent.name / clip.name, tmp_path / "link.mp4"):
        assert main(["predict", str(trained_run), str(clip), option, str(same)]) == 1
        said = f"ferdist: {option} is {same}: that is the video itself: give another file\n"
        assert capsys.readouterr().err == said
        assert clip.read_bytes() == content


def test_a_video_without_a_face(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, table = tmp_path / "empty.mp4", tmp_path / "faces.csv"
    shape = SimpleNamespace(rate=RATE, width=160, height=120)
    with video._copy_into(path, shape) as copy:  # type: ignore[arg-type]
        for _ in range(3):
            copy(np.full((120, 160, 3), 90, np.uint8))
    assert main(["predict", str(trained_run), str(path), "--csv", str(table)]) == 0
    assert capsys.readouterr().out == f"{path}\tno face found\n"
    assert len(table.read_text().splitlines()) == 1


def test_a_video_that_was_cut_is_told(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, cut = tmp_path / "whole.avi", tmp_path / "cut.avi"
    writer = cv2.VideoWriter(str(whole), cv2.VideoWriter.fourcc(*"MJPG"), RATE, (64, 48))
    noise = np.random.default_rng(0)
    for _ in range(20):
        writer.write(noise.integers(0, 256, (48, 64, 3), dtype=np.uint8))
    writer.release()
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    for path, said in (
        (whole, ""),
        (cut, "of about 20 frames could be decoded: it may be cut off or damaged"),
    ):
        assert main(["predict", str(trained_run), str(path)]) == 0
        errors = capsys.readouterr().err
        assert said in errors
        assert bool(errors) == bool(said)


MANY_CORES = """
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <string.h>
#include <unistd.h>
long sysconf(int name) { return name == _SC_PAGESIZE ? 4096 : name == _SC_CLK_TCK ? 100 : 64; }
int get_nprocs(void) { return 64; }
int get_nprocs_conf(void) { return 64; }
int sched_getaffinity(pid_t pid, size_t size, cpu_set_t *set) {
    memset(set, 0, size);
    for (int cpu = 0; cpu < 64; cpu++) CPU_SET_S(cpu, size, set);
    return 0;
}
int pthread_getaffinity_np(pthread_t thread, size_t size, cpu_set_t *set) {
    return sched_getaffinity(0, size, set);
}
"""
"""Of a library that stands before the system's: any process takes this for a machine of 64 cores."""


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_the_decoder_starts_on_a_machine_with_many_cores(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tmp_path / "cores.so"
    command = ["cc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(library)]
    subprocess.run(command, input=MANY_CORES, text=True, check=True)
    monkeypatch.setenv("LD_PRELOAD", str(library))
    for name in video.decode.ONE_THREAD:
        monkeypatch.delenv(name, raising=False)
    with video.open_video(clip) as opened:
        assert len(list(opened)) == FRAMES


@pytest.mark.parametrize("rate", [1.0, 23.976, 29.97, 59.94, 240.0])
def test_copies_of_any_rate_are_whole(rate: float, tmp_path: Path) -> None:
    path = tmp_path / "copy.mp4"
    shape = SimpleNamespace(rate=rate, width=61, height=49)
    with video._copy_into(path, shape) as copy:  # type: ignore[arg-type]
        for level in range(5):
            copy(np.full((49, 61, 3), 50 * level, np.uint8))
    with video.open_video(path) as opened:
        assert len(list(opened)) == 5


def test_faces_keep_their_numbers_and_probabilities_are_smoothed() -> None:
    def face(left: int, share: float) -> Face:
        return Face((left, 0, left + 100, 100), np.array([share, 1 - share], dtype=np.float32))

    follower = Follower()
    assert [one.number for one in follower.update([face(0, 1), face(300, 0)], 0.0)] == [1, 2]
    (right, left) = follower.update([face(310, 0), face(10, 0)], 0.1)
    assert (right.number, left.number) == (2, 1)
    assert left.probabilities == pytest.approx([np.exp(-1 / 3), 1 - np.exp(-1 / 3)])
    assert left.total / left.frames == pytest.approx([0.5, 0.5])
    assert [one.number for one in follower.update([face(15, 1)], 0.5)] == [1], "not found for a moment"
    assert [one.number for one in follower.update([face(15, 1)], 2.0)] == [3], "gone for long"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty file"),
        (b"#EXTM3U\n/etc/passwd\n", r"none of \.mp4"),
        (b"\0\0\0\x18ftypmp42" + bytes(100), "no frame in it could be decoded"),
    ],
)
def test_what_is_no_video_is_one_line_and_leaves_nothing(
    trained_run: Path, content: bytes, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(content)
    with (
        pytest.raises(DataError, match=rf"clip\.mp4: not a readable video: {reason}"),
        video.open_video(path),
    ):
        pass
    table = tmp_path / "faces.csv"
    assert main(["predict", str(trained_run), str(path), "--csv", str(table)]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert not table.exists()


@pytest.mark.parametrize(
    ("child", "reason"),
    [("kill -SEGV $$", "the decoder failed (signal 11)"), ("exec sleep 60", "no frame for 0 seconds")],
)
def test_a_decoder_that_dies_or_hangs_is_an_error(
    child: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(video, "PATIENCE", 0.2)
    process = subprocess.Popen(["sh", "-c", child], stdout=subprocess.PIPE)
    with process, pytest.raises(DataError) as caught:
        video.Video(Path("clip.mp4"), process)
    assert str(caught.value) == f"clip.mp4: not a readable video: {reason}"
