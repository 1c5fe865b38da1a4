"""`ferdist app`: a page on one's own machine, to show models faces and to cover parts of them.

Gradio serves it on 127.0.0.1 alone, below a random path, since other users of the machine reach that address,
too. The page asks nobody else for anything: its content security policy forbids that to the browser, and
Gradio's own analytics are off. Pictures lie in a temporary folder until the command ends.
"""

from __future__ import annotations

import os
import secrets
import signal
import tempfile
import threading
import webbrowser
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from ferdist.augment.kinds import KINDS
from ferdist.data.facebox import face_box
from ferdist.data.record import Images
from ferdist.data.synthetic import ckplus_sequences
from ferdist.errors import ConfigError, FerdistError, RunError, printable
from ferdist.evaluation.attention import enlarge, heat, look
from ferdist.evaluation.benchmark import Benchmark, Cell
from ferdist.evaluation.model import TrainedModel
from ferdist.use.detect import Detector, Found, choose_detector, find_faces, planes_of
from ferdist.use.pictures import Picture, read_picture
from ferdist.use.predict import answer

HOST: Final = "127.0.0.1"
MOST_MODELS: Final = 4
"""Side by side on the page."""
UPLOAD_LIMIT: Final = "32mb"
EDITOR: Final = 384
"""Side in pixels of the face that one paints on, and of the faces that the models get, enlarged."""
SURE: Final = 0.5
"""Least probability of the class that a model is said to see; below it is uncertain."""
NOTHING: Final = "nothing"
COVERS: Final = {kind.label: kind for kind in KINDS.values() if kind.name != "patch"}  # it needs other faces
DRAWINGS: Final = 21
"""Drawn examples: three of each expression."""
REFUSED: Final = "**That picture was not uploaded here: choose it once more.**"
"""Whatever lies at a path elsewhere, or does not."""

OPEN: Final = ("/gradio_api/startup-events", "/favicon.ico", "/manifest.json")
"""What needs no secret: Gradio asks itself to start, and browsers ask for an icon and the page's name."""

_POLICY: Final = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; media-src 'self' blob:; "
    "worker-src 'self' blob:; connect-src 'self' data: blob:; frame-ancestors 'none'"
)
_ABOUT: Final = (
    "# ferdist\n"
    "Find a face, cover parts of it, and see what the models make of it. They read **expressions, not "
    "emotions**: what a face shows, not what anybody feels. Pictures stay on this machine and are removed "
    "when `ferdist app` ends."
)


@dataclass(frozen=True)
class Opened:
    """A picture with its faces, their boxes in pixels of ``picture.image``."""

    picture: Picture
    faces: tuple[Found, ...]


@dataclass(frozen=True)
class Cover:
    """What lies over a face: a kind of the benchmark, drawn for a sample number, and what was painted.

    Attributes:
        kind: label of one of ``COVERS``, or ``NOTHING``.
        severity, fill: of the kind; what it does not have is taken as the nearest that it has.
        place: sample number: where a kind without a place of its own is drawn.
        painted: uint8 (h, w, 4), RGBA of any size.
    """

    kind: str = NOTHING
    severity: int = 3
    fill: str = "black"
    place: int = 0
    painted: npt.NDArray[np.uint8] | None = None

    def on(self, crop: Images, mean: Sequence[float]) -> Images:
        """The covered face, uint8 (C, H, W); ``mean`` is the fill's, per channel, in [0, 1] units."""
        covered = crop
        if kind := COVERS.get(self.kind):
            fill = next((fill for fill in kind.fills if fill.label == self.fill), kind.fills[0])
            cell = Cell(kind.name, min(self.severity, kind.severities), fill.name)
            one = np.zeros(1, np.int64)
            benchmark = Benchmark(tuple(round(255 * level) for level in mean), one, one[:0], crop[None][:0])
            covered = benchmark.cover(crop[None], np.array([self.place]), cell)[0]
        if self.painted is None:
            return covered
        layer = Image.fromarray(self.painted, "RGBA").resize(crop.shape[:0:-1], Image.Resampling.BOX)
        share = np.asarray(layer.getchannel("A"))[None] / 255
        return np.rint((1 - share) * covered + share * planes_of(layer.convert("RGB"), len(crop))).astype(
            np.uint8
        )


@dataclass(frozen=True)
class Reading:
    """What a model makes of a face.

    Attributes:
        probabilities: by class.
        words: the class, or that it is uncertain.
        face, evidence: pictures of what it got, and of where what it saw lies.
    """

    probabilities: dict[str, float]
    words: str
    face: Image.Image
    evidence: Image.Image


def open_picture(path: Path, detect: Detector | None) -> Opened:
    """Read a picture and find its faces; without a detector all of it is one.

    Raises:
        DataError: if it cannot be read, or the detector fails.
    """
    picture = read_picture(path)
    if detect is None:
        return Opened(picture, (Found((0, 0, *picture.image.size)),))
    return Opened(picture, tuple(find_faces(detect, picture.image, path)))


def drawn_picture(number: int) -> Opened:
    """A drawn person; the face is where it was drawn."""
    sequence = ckplus_sequences(3 * DRAWINGS)[number % DRAWINGS]
    scene, landmarks = sequence.scene(sequence.frames)
    image = Image.fromarray(scene).resize((640, 490), Image.Resampling.BICUBIC).convert("RGB")
    return Opened(Picture(image, image.size), (Found(face_box(5.0 * landmarks)),))


def marked_picture(opened: Opened) -> Image.Image:
    """The picture with a frame around each face, and its number."""
    image = opened.picture.image.copy()
    draw, thick = ImageDraw.Draw(image), max(2, max(image.size) // 200)
    for number, face in enumerate(opened.faces, start=1):
        box = face.clipped(*image.size)
        draw.rectangle(box, outline=(255, 200, 0), width=thick)
        draw.text(box[:2], f" {number}", fill=(255, 200, 0), font=ImageFont.load_default(12 * thick))
    return image


def read_face(trained: TrainedModel, crop: Images) -> Reading:
    """What a model makes of a face, uint8 (C, H, W)."""
    card = trained.card
    try:
        looks = look(trained.network, crop[None], card.mean, card.std)
        row, evidence = looks.probabilities[0], enlarge(looks.evidence, *crop.shape[1:])
    except RunError:  # its features do not tell where it looks
        row, evidence = answer(trained, crop[None])[0], np.zeros((1, *crop.shape[1:]), np.float32)
    best, second = row.argsort()[::-1][:2]
    first, other = (f"{printable(card.classes[one])} {100 * row[one]:.0f} %" for one in (best, second))
    return Reading(
        dict(zip(card.classes, row.tolist(), strict=True)),
        first if row[best] >= SURE else f"uncertain: {first}, {other}",
        _enlarged(_pixels(crop)),
        _enlarged(heat(crop[None], evidence)[0]),
    )


def _pixels(crop: Images) -> npt.NDArray[np.uint8]:
    """(C, H, W) to (H, W), or (H, W, 3)."""
    return crop[0] if len(crop) == 1 else crop.transpose(1, 2, 0)


def _enlarged(pixels: npt.NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(pixels).convert("RGB").resize((EDITOR, EDITOR), Image.Resampling.NEAREST)


def _painted(value: dict[str, Any] | None) -> npt.NDArray[np.uint8] | None:
    """The layers of Gradio's editor, one over the other."""
    layers = [Image.fromarray(layer) for layer in (value or {}).get("layers") or ()]
    if not layers:
        return None
    merged = Image.new("RGBA", layers[0].size)
    for layer in layers:
        merged.alpha_composite(layer.convert("RGBA"))
    return np.asarray(merged)


class Page:
    """What the page does; Gradio calls it with the values of its components, and shows what it returns.

    Args:
        models: by the names that the page shows.
        detect: finds the faces in an upload.
        uploads: folder outside of which no picture is opened.
    """

    def __init__(self, models: Mapping[str, TrainedModel], detect: Detector, uploads: Path) -> None:
        import gradio

        self.models, self._detect, self._uploads = models, detect, uploads.resolve()
        self._update: Callable[..., Any] = gradio.update

    def open(self, path: str | None, crop: bool) -> tuple[Any, ...]:
        """What was uploaded: see `_shown`."""
        if path is None:
            return self._shown(None)
        if not self._was_uploaded(path):
            return self._shown(None, REFUSED)
        try:
            opened = open_picture(Path(path), None if crop else self._detect)
        except FerdistError as error:  # the folder is one of Gradio's own
            return self._shown(None, f"**{str(error).replace(f'{Path(path).parent}{os.sep}', '')}**")
        nobody = "" if opened.faces else "No face found. If the picture is a face and nothing else, say so."
        return self._shown(opened, nobody)

    def _was_uploaded(self, path: str) -> bool:
        """Gradio asks that only of values that say they are files, and takes any path from others."""
        try:
            return Path(path).resolve().is_relative_to(self._uploads)
        except (OSError, RuntimeError, ValueError):  # a loop of links, a null byte
            return False

    def draw(self, number: int) -> tuple[Any, ...]:
        """The number of the next drawing, no upload, and this drawing."""
        return number + 1, None, *self._shown(drawn_picture(number), "A drawing.")

    def choose(self, opened: Opened | None, face: int | None) -> Any:
        """The face that one can paint on."""
        return (
            None
            if opened is None or face is None
            else _pixels(opened.faces[face].crop(opened.picture.image, 3, EDITOR))
        )

    def options(self, label: str) -> tuple[Any, Any, Any]:
        """What a kind of cover has to choose from: severities, fills, places."""
        kind = COVERS.get(label)
        fills = [fill.label for fill in kind.fills if fill.label] if kind else []
        severities = kind.severities if kind else 1
        return (
            self._update(visible=severities > 1),
            self._update(choices=fills, value=fills[0] if fills else None, visible=len(fills) > 1),
            self._update(visible=severities > 1),
        )

    def answer(
        self,
        opened: Opened | None,
        face: int | None,
        editor: dict[str, Any] | None,
        kind: str,
        severity: int,
        fill: str,
        place: int,
    ) -> list[Any]:
        """For each model: probabilities, words, the face that it gets, and the evidence."""
        if opened is None or face is None:
            return [nothing for _ in self.models for nothing in (None, "", None, None)]
        over = Cover(kind, severity, fill, place, _painted(editor))
        answers: list[Any] = []
        for trained in self.models.values():
            task = trained.card.task
            crop = opened.faces[face].crop(opened.picture.image, task.channels, task.width)
            reading = read_face(trained, over.on(crop, trained.card.mean))
            answers += [reading.probabilities, f"### {reading.words}", reading.face, reading.evidence]
        return answers

    def _shown(self, opened: Opened | None, note: str = "") -> tuple[Any, ...]:
        """What was opened, its picture, the choice of a face, the first face, and a note."""
        faces = list(range(len(opened.faces))) if opened else []
        choices = [(f"face {number + 1}", number) for number in faces]
        radio = self._update(choices=choices, value=0 if faces else None, visible=len(faces) > 1)
        picture = marked_picture(opened) if opened else None
        return opened, picture, radio, self.choose(opened, 0 if faces else None), note

    def blocks(self) -> Any:
        """The ``gradio.Blocks``."""
        import gradio as gr

        with gr.Blocks(title="ferdist", analytics_enabled=False, delete_cache=(600, 3600)) as blocks:
            opened, drawing = gr.State(time_to_live=3600), gr.State(0)
            gr.Markdown(_ABOUT)
            with gr.Row():
                with gr.Column():
                    source: Any = gr.Image(
                        label="Picture: drop it here, or use the camera",
                        sources=["upload", "webcam", "clipboard"],
                        height=280,
                        elem_id="source",
                    )
                    # `read_picture` decodes the file, in bounds, and says what is wrong with it.
                    source.preprocess = lambda file: None if file is None else file.path
                    crop = gr.Checkbox(label="The picture is a face and nothing else", elem_id="crop")
                    example = gr.Button("Draw another face", elem_id="example")
                    note = gr.Markdown(elem_id="note")
                    only: dict[str, Any] = {"interactive": False, "buttons": []}
                    marked = gr.Image(label="Faces found", height=280, elem_id="marked", **only)
                    face = gr.Radio(label="Which face", choices=[], visible=False, elem_id="face")
                with gr.Column():
                    editor = gr.ImageEditor(
                        label="Paint over what is to be hidden",
                        sources=(),
                        transforms=(),
                        layers=False,
                        brush=gr.Brush(default_size=40, colors=["#000000", "#808080", "#ffffff"]),
                        canvas_size=(EDITOR, EDITOR),
                        fixed_canvas=True,
                        elem_id="editor",
                    )
                    kind = gr.Dropdown([NOTHING, *COVERS], value=NOTHING, label="Cover", elem_id="kind")
                    severity = gr.Slider(1, 5, 3, step=1, label="Severity", visible=False)
                    fill = gr.Dropdown([], label="Filled with", visible=False)
                    place = gr.Slider(0, 99, 0, step=1, label="Another place", visible=False)
            answers = self._answers(gr)
            shown = [opened, marked, face, editor, note]
            given = [opened, face, editor, kind, severity, fill, place]
            plain: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
            for changed in (
                gr.on([source.input, source.clear, crop.input], self.open, [source, crop], shown, **plain),
                gr.on([example.click, blocks.load], self.draw, drawing, [drawing, source, *shown], **plain),
                face.input(self.choose, [opened, face], editor, **plain),
                kind.input(self.options, kind, [severity, fill, place], **plain),
            ):
                changed.then(self.answer, given, answers, **plain)
            painted = [editor.input, severity.input, fill.input, place.input]
            gr.on(painted, self.answer, given, answers, trigger_mode="always_last", **plain)
        return blocks

    def _answers(self, gr: Any) -> list[Any]:
        """The components of all models' answers."""
        answers: list[Any] = []
        with gr.Row():
            for number, (name, trained) in enumerate(self.models.items()):
                with gr.Column(min_width=280, elem_id=f"model-{number}"):
                    gr.Markdown(f"## {printable(name)}")
                    words = gr.Markdown()
                    bars = gr.Label(
                        label="Probabilities",
                        show_heading=False,
                        num_top_classes=len(trained.card.classes),
                        buttons=[],
                    )
                    with gr.Row():
                        only = {"interactive": False, "buttons": [], "min_width": 120, "height": 220}
                        got = gr.Image(label="What it gets", **only)
                        evidence = gr.Image(label="Evidence (Grad-CAM)", **only)
                answers += [bars, words, got, evidence]
        if len({trained.card.classes for trained in self.models.values()}) > 1:
            gr.Markdown("These models have different classes.")
        return answers


def serve(
    models: Mapping[str, TrainedModel], port: int, *, detector: str = "auto", browser: bool = True
) -> None:
    """Serve the page until Ctrl-C, SIGTERM or SIGHUP.

    Args:
        models: by the names that the page shows.
        port: of 127.0.0.1.
        detector: see `choose_detector`.
        browser: whether to open it.

    Raises:
        ConfigError: without Gradio, for more than ``MOST_MODELS`` models, or one that the page cannot show.
        RunError: if the port is in use.
    """
    if len(models) > MOST_MODELS:
        raise ConfigError(f"{len(models)} models: the page shows at most {MOST_MODELS} side by side")
    for name, trained in models.items():
        task = trained.card.task
        if task.height != task.width or task.channels not in (1, 3):
            raise ConfigError(f"{name}: takes {task.channels}x{task.height}x{task.width} images: not square")
    detect = choose_detector(detector)
    with _signals_as_ctrl_c(), tempfile.TemporaryDirectory(prefix="ferdist-app-") as place:
        os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": place, "HF_HUB_OFFLINE": "1"}
        direct = [os.environ.get("no_proxy") or os.environ.get("NO_PROXY"), HOST]
        os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(filter(None, direct))
        try:
            import gradio as gr
        except ImportError as error:
            raise ConfigError(f"ferdist app needs Gradio ({error}): pip install 'ferdist[app]'") from None
        try:
            blocks, secret = Page(models, detect, Path(place)).blocks(), f"/{secrets.token_urlsafe(16)}"
            blocks.launch(
                server_name=HOST,
                server_port=port,
                root_path=secret,
                inbrowser=False,  # it does not know the whole address
                share=False,
                quiet=True,
                prevent_thread_lock=True,
                max_file_size=UPLOAD_LIMIT,
                footer_links=[],
                ssr_mode=False,
                enable_monitoring=False,
                run_history=False,
                state_session_capacity=20,
                theme=gr.themes.Default(
                    font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
                ),
                app_kwargs={"middleware": _middleware(secret)},
            )
        except OSError:
            raise RunError(f"port {port} of {HOST} is in use: give another with --port") from None
        address = f"http://{HOST}:{port}{secret}/"
        with suppress(KeyboardInterrupt):  # from the line that names Ctrl-C on
            print(f"{address} (end with Ctrl-C)", flush=True)
            if browser:  # by way of a file: others can see what a program is called with
                way = Path(place) / "open.html"
                way.write_text(f'<meta http-equiv="refresh" content="0; url={address}">', "utf-8")
                webbrowser.open(way.as_uri())
            threading.Event().wait()


@contextmanager
def _signals_as_ctrl_c() -> Iterator[None]:
    """SIGTERM and SIGHUP end the block as Ctrl-C does, so that no upload is left."""
    stops = [signal.SIGTERM, signal.SIGHUP]
    old = {stop: signal.getsignal(stop) for stop in stops}

    def end(*_: object) -> None:
        for stop in stops:  # a terminal that closes may send SIGHUP twice
            signal.signal(stop, signal.SIG_IGN)
        raise KeyboardInterrupt

    for stop in stops:
        if old[stop] is not signal.SIG_IGN:  # as of nohup
            signal.signal(stop, end)
    try:
        yield
    finally:
        for stop in stops:
            signal.signal(stop, old[stop])


def _middleware(secret: str) -> list[Any]:
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    # A page from elsewhere that has itself resolved to 127.0.0.1 still has its own name in Host.
    return [
        Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"]),
        Middleware(_Secret, secret),
        Middleware(_Policy),
    ]


class _Secret:
    """ASGI middleware: only who knows the path below which the page lies gets an answer."""

    def __init__(self, app: Any, secret: str) -> None:
        self.app, self._secret = app, f"{secret}/".encode()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        from starlette.responses import PlainTextResponse

        path = scope.get("path", "")
        if scope["type"] == "lifespan" or path in OPEN:
            await self.app(scope, receive, send)
        elif secrets.compare_digest(path.encode()[: len(self._secret)], self._secret):
            await self.app({**scope, "root_path": self._secret[:-1].decode()}, receive, send)
        else:
            answer = PlainTextResponse("Open the whole address that `ferdist app` printed.", 401)
            await answer(scope, receive, send)


class _Policy:
    """ASGI middleware: the content security policy of each answer."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def send_with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message.get("headers", []),
                    (b"content-security-policy", _POLICY.encode()),
                    (b"referrer-policy", b"no-referrer"),
                ]
            await send(message)

        await self.app(scope, receive, send_with_policy)
