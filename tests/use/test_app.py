"""The page of `ferdist app`: what it does by itself, and in a browser with an upload, covers, two models."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urljoin, urlsplit
from urllib.request import Request, urlopen

import numpy as np
import pytest
import torch
from PIL import Image

from ferdist.data.record import Images
from ferdist.data.synthetic import synthesize
from ferdist.errors import ConfigError, DataError
from ferdist.evaluation.benchmark import Benchmark, Cell
from ferdist.evaluation.model import TrainedModel, load_trained
from ferdist.use import app
from ferdist.use.app import COVERS, EDITOR, Cover
from ferdist.use.detect import Found, choose_detector
from tests.conftest import PATIENCE, ROOT

SIZES = {"phone": {"width": 390, "height": 844}, "desktop": {"width": 1280, "height": 900}}


@pytest.fixture(scope="module")
def trained(trained_run: Path) -> TrainedModel:
    return load_trained(str(trained_run), None, torch.device("cpu"))


@pytest.fixture
def crop() -> Images:
    return synthesize(1, 0).images[0]


def test_nothing_on_a_face_leaves_it(crop: Images) -> None:
    assert np.array_equal(Cover().on(crop, (0.5,)), crop)
    clear = np.zeros((EDITOR, EDITOR, 4), np.uint8)
    assert np.array_equal(Cover(painted=clear).on(crop, (0.5,)), crop)


@pytest.mark.parametrize("label", COVERS)
def test_covers_are_those_of_the_benchmark(label: str, crop: Images) -> None:
    kind = COVERS[label]
    one = np.array([7])
    for fill in kind.fills:
        severity = min(2, kind.severities)
        expected = Benchmark((51,), np.zeros(8, np.int64), one[:0], crop[None][:0]).cover(
            crop[None], one, Cell(kind.name, severity, fill.name)
        )[0]
        covered = Cover(label, 2, fill.label or "black", 7).on(crop, (0.2,))
        assert np.array_equal(covered, expected)
        assert not np.array_equal(covered, crop)


@pytest.mark.parametrize("channels", [1, 3])
def test_paint_hides_what_is_under_it(channels: int, crop: Images) -> None:
    face = np.repeat(crop, channels, axis=0)
    painted = np.zeros((EDITOR, EDITOR, 4), np.uint8)
    painted[: EDITOR // 2] = (200, 200, 200, 255)
    covered = Cover(painted=painted).on(face, (0.5,) * channels)
    assert (covered[:, :24] == 200).all()
    assert np.array_equal(covered[:, 24:], face[:, 24:])
    assert (Cover("mask", painted=painted).on(face, (0.5,) * channels)[:, :24] == 200).all()


def test_a_reading_is_what_the_model_gives(trained: TrainedModel, crop: Images) -> None:
    reading = app.read_face(trained, crop)
    rows = trained.scorer(None, torch.device("cpu"))(torch.from_numpy(crop[None]))
    assert tuple(reading.probabilities) == trained.card.classes
    assert np.allclose(list(reading.probabilities.values()), rows[0].numpy(), atol=0.02)
    assert reading.face.size == reading.evidence.size == (EDITOR, EDITOR)


def test_flat_probabilities_are_called_uncertain(trained: TrainedModel, crop: Images) -> None:
    class Fixed(torch.nn.Module):
        def __init__(self, first: float) -> None:
            super().__init__()
            self.scores = torch.tensor([first, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])
            self.features = torch.nn.Conv2d(1, 2, 1)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.scores + 0.0 * self.features(images).sum((1, 2, 3))[:, None]

    class Coarse(Fixed):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return super().forward(images[..., ::16, ::16])

    flat = app.read_face(replace(trained, network=Fixed(0.1)), crop)
    assert flat.words.startswith("uncertain: angry 16 %, ")
    assert app.read_face(replace(trained, network=Fixed(5.0)), crop).words == "angry 96 %"
    assert app.read_face(replace(trained, network=Coarse(5.0)), crop).words == "angry 96 %", (
        "without evidence"
    )


def test_pictures(tmp_path: Path, photograph: Callable[[int], Image.Image], blank: Image.Image) -> None:
    photograph(0).save(tmp_path / "face.png")
    detect = choose_detector("haar")
    opened = app.open_picture(tmp_path / "face.png", detect)
    assert len(opened.faces) == 1
    assert app.marked_picture(opened).size == opened.picture.image.size
    blank.save(tmp_path / "blank.png")
    assert app.open_picture(tmp_path / "blank.png", detect).faces == ()
    assert app.open_picture(tmp_path / "blank.png", None).faces == (Found((0, 0, 400, 300)),)
    (tmp_path / "text.png").write_text("not a picture")
    with pytest.raises(DataError, match=r"text\.png: not a readable image"):
        app.open_picture(tmp_path / "text.png", detect)


def test_only_uploads_are_opened(tmp_path: Path, blank: Image.Image) -> None:
    pytest.importorskip("gradio", reason="needs Gradio: pip install '.[app]'")
    uploads = tmp_path / "uploads"
    uploads.mkdir()
    for path in (uploads / "own.png", tmp_path / "private.png"):
        blank.save(path)
    (uploads / "link.png").symlink_to(tmp_path / "private.png")
    (uploads / "loop.png").symlink_to("loop.png")
    page = app.Page({}, choose_detector("haar"), uploads)
    assert page.open(str(uploads / "own.png"), True)[-1] == ""
    for elsewhere in ("../private.png", "../missing.png", "link.png", "loop.png", "null\0.png", "/dev/zero"):
        opened, picture, *_, note = page.open(str(uploads / elsewhere), True)
        assert (opened, picture, note) == (None, None, app.REFUSED), elsewhere


def test_drawings_show_every_expression() -> None:
    drawings = [app.drawn_picture(number) for number in range(app.DRAWINGS)]
    assert len({one.picture.image.tobytes() for one in drawings}) == app.DRAWINGS
    assert app.drawn_picture(app.DRAWINGS).picture.image.tobytes() == drawings[0].picture.image.tobytes()


def test_models_that_the_page_cannot_show(trained: TrainedModel) -> None:
    with pytest.raises(ConfigError, match="5 models: the page shows at most 4 side by side"):
        app.serve({str(number): trained for number in range(5)}, 7860)
    wide = replace(trained, card=replace(trained.card, task=replace(trained.card.task, width=64)))
    with pytest.raises(ConfigError, match="wide: takes 1x48x64 images: not square"):
        app.serve({"wide": wide}, 7860)


def free_port() -> int:
    with socket.socket() as one:
        one.bind((app.HOST, 0))
        return int(one.getsockname()[1])


@pytest.fixture(scope="module")
def served(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Its address, and the folder where its temporary one lies."""
    pytest.importorskip("gradio", reason="needs Gradio: pip install '.[app]'")
    place, port = tmp_path_factory.mktemp("app"), free_port()
    arguments = ["app", "fer2013_resnet18_cbam", str(trained_run), "--no-browser", "--port", str(port)]
    process = subprocess.Popen(
        [sys.executable, "-m", "ferdist", *arguments],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(place), "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert re.fullmatch(rf"http://127\.0\.0\.1:{port}/[\w-]{{22}}/ \(end with Ctrl-C\)\n", line)
    yield line.split()[0], place
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE) == 0
    assert list(place.iterdir()) == []


INTERRUPTED = """
import builtins, signal, sys
from ferdist.cli import main

def shown(*words, _print=print, **options):
    _print(*words, **options)
    signal.raise_signal(signal.SIGINT)

builtins.print = shown
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_ctrl_c_in_the_instant_in_which_the_address_appears(trained_run: Path) -> None:
    pytest.importorskip("gradio", reason="needs Gradio: pip install '.[app]'")
    arguments = ["app", str(trained_run), "--no-browser", "--port", str(free_port())]
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.stdout.endswith("(end with Ctrl-C)\n")
    assert done.returncode == 0, done.stderr


def uploaded(address: str, path: Path) -> None:
    body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="face.png"\r\n\r\n'
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    request = Request(f"{address}gradio_api/upload", body + path.read_bytes() + b"\r\n--x--\r\n", headers)
    assert len(json.load(urlopen(request, timeout=PATIENCE))) == 1


@pytest.mark.slow
@pytest.mark.parametrize("signals", [[signal.SIGTERM], [signal.SIGHUP, signal.SIGHUP]])
def test_other_signals_end_it_as_ctrl_c_does_behind_a_proxy(
    signals: list[signal.Signals], trained_run: Path, tmp_path: Path, blank: Image.Image
) -> None:
    """No upload is left, and the browser that was opened got the address without showing it to others."""
    pytest.importorskip("gradio", reason="needs Gradio: pip install '.[app]'")
    place, opener = tmp_path / "place", tmp_path / "browser"
    place.mkdir()
    opener.write_text(
        f'#!/bin/sh\necho "$*" > {tmp_path}/arguments\n'
        f'cat "${{1#file://}}" > {tmp_path}/page.new; mv {tmp_path}/page.new {tmp_path}/page\n'
    )
    opener.chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if name.lower() != "no_proxy"}
    environment |= {"HTTP_PROXY": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9"}
    environment |= {"TMPDIR": str(place), "BROWSER": f"{opener} %s", "OMP_NUM_THREADS": "1"}
    blank.save(tmp_path / "blank.png")
    with subprocess.Popen(
        [sys.executable, "-m", "ferdist", "app", str(trained_run), "--port", str(free_port())],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environment,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        line = process.stdout.readline()
        assert line, process.stderr.read()
        address = line.split()[0]
        uploaded(address, tmp_path / "blank.png")
        [folder] = place.iterdir()
        assert folder.stat().st_mode & 0o077 == 0
        assert list(folder.rglob("face.png"))
        limit = time.monotonic() + PATIENCE  # the browser is opened after the address is printed
        while not (tmp_path / "page").exists() and time.monotonic() < limit:
            time.sleep(0.05)
        for one in signals:
            process.send_signal(one)
        assert process.wait(PATIENCE) == 0, process.stderr.read()
    assert (tmp_path / "arguments").read_text() == f"file://{folder}/open.html\n"
    assert f"url={address}" in (tmp_path / "page").read_text()
    assert list(place.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_in_a_browser(
    browser: Any,
    served: tuple[str, Path],
    size: str,
    scheme: str,
    tmp_path: Path,
    photograph: Callable[[int], Image.Image],
    blank: Image.Image,
) -> None:
    from playwright.sync_api import TimeoutError

    address, place = served
    photograph(3).save(tmp_path / "face.png")
    blank.save(tmp_path / "blank.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    with browser.new_context(viewport=SIZES[size], color_scheme=scheme) as context:
        page = context.new_page()
        requests: list[str] = []
        errors: list[str] = []
        page.on("request", lambda request: requests.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda one: errors.append(one.text) if one.type == "error" else None)
        page.goto(address)

        def answers() -> list[str]:
            return [page.locator(f"#model-{number}").inner_text() for number in (0, 1)]

        def wait_for_change(
            before: list[str], change: Callable[[], Any], again: float = PATIENCE
        ) -> list[str]:
            """Make a change, and once more after so many seconds, until both answers are others."""
            for _ in range(round(PATIENCE / again)):
                change()
                with suppress(TimeoutError):
                    for number, text in enumerate(before):
                        page.wait_for_function(
                            "([id, text]) => { const now = document.getElementById(id)?.innerText ?? '';"
                            " return now.includes('%') && now !== text }",
                            arg=[f"model-{number}", text],
                            timeout=1000 * again,
                        )
                    return answers()
            raise AssertionError(f"the answers stay {answers()}")

        def upload(name: str) -> Callable[[], Any]:
            return lambda: page.locator("#source input[type=file]").set_input_files(tmp_path / name)

        def cover(label: str) -> None:
            page.locator("#kind input").click()
            page.get_by_role("option", name=label, exact=True).click()

        def paint() -> None:
            canvas = page.locator("#editor canvas").first
            canvas.scroll_into_view_if_needed()
            box = canvas.bounding_box()
            for share in (0.35, 0.4, 0.45, 0.5, 0.55, 0.6):
                page.mouse.move(box["x"] + 0.3 * box["width"], box["y"] + share * box["height"])
                page.mouse.down()
                page.mouse.move(box["x"] + 0.7 * box["width"], box["y"] + share * box["height"], steps=12)
                page.mouse.up()

        drawn = wait_for_change(["", ""], lambda: None)
        assert drawn[0].startswith("fer2013_resnet18_cbam")
        assert "A drawing." in page.locator("#note").inner_text()
        uploaded = wait_for_change(drawn, upload("face.png"))
        covered = wait_for_change(uploaded, lambda: cover("mask"))
        wait_for_change(covered, paint, again=20.0)
        wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert page.evaluate(wide) <= 0

        for name, note in (
            ("blank.png", "No face found"),
            ("broken.png", "broken.png: not a readable image"),
        ):
            page.get_by_role("button", name="Clear").or_(page.get_by_label("Clear")).first.click()
            upload(name)()
            page.wait_for_function(
                "text => document.getElementById('note')?.innerText.includes(text)",
                arg=note,
                timeout=1000 * PATIENCE,
            )
        assert {url.partition("//")[2].partition("/")[0] for url in requests if url.startswith("http")} == {
            urlsplit(address).netloc
        }
        assert errors == []
    assert len(list(place.iterdir())) == 1


@pytest.mark.slow
def test_another_host_name_or_port_is_refused(served: tuple[str, Path]) -> None:
    address, _ = served
    with pytest.raises(HTTPError, match="400"):
        urlopen(Request(address, headers={"Host": "elsewhere.example"}))
    port = str(urlsplit(address).port)
    done = subprocess.run(
        [sys.executable, "-m", "ferdist", "app", "--no-browser", "--port", port],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"ferdist: port {port} of 127.0.0.1 is in use: give another with --port\n"


@pytest.mark.slow
@pytest.mark.parametrize("path", ["", "config", "gradio_api/info", "gradio_api/queue/join", "theme.css"])
@pytest.mark.parametrize("secret", ["", "x" * 22 + "/"])
def test_others_who_do_not_know_the_address_get_nothing(
    served: tuple[str, Path], secret: str, path: str
) -> None:
    with pytest.raises(HTTPError, match="401") as caught:
        urlopen(urljoin(served[0], f"/{secret}{path}"))
    assert caught.value.read() == b"Open the whole address that `ferdist app` printed."


@pytest.mark.slow
@pytest.mark.parametrize("name", ["private.png", "missing.png"])
def test_a_request_for_a_file_that_was_not_uploaded_is_refused(
    served: tuple[str, Path], name: str, tmp_path: Path, blank: Image.Image
) -> None:
    """Without the key ``meta``, at which Gradio would check it."""
    address, _ = served
    blank.save(tmp_path / "private.png")

    def asked(path: str, body: object = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        return urlopen(Request(address + path, data, {"Content-Type": "application/json"}), timeout=PATIENCE)

    config = json.load(asked("config"))
    source = next(one["id"] for one in config["components"] if one["props"].get("elem_id") == "source")
    opens = next(one["id"] for one in config["dependencies"] if [source, "input"] in one["targets"])
    data = [{"path": str(tmp_path / name)}, False]
    asked("gradio_api/queue/join", {"data": data, "fn_index": opens, "session_hash": name})
    for line in asked(f"gradio_api/queue/data?session_hash={name}"):
        message = json.loads(line.removeprefix(b"data: ")) if line.startswith(b"data: ") else {}
        if message.get("msg") == "process_completed":
            break
    _, picture, _, face, note = message["output"]["data"]
    assert (picture, face, note) == (None, None, app.REFUSED)
