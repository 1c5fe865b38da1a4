"""Drawing a face that shows an expression.

A face is a set of curves in its own coordinates (origin between the eyes and the mouth, unit: half the height
of the face, y downwards). An expression is a set of strengths of facial actions after Ekman and Friesen's
Facial Action Coding System (brow raiser, lip corner puller, jaw drop, ...) that move these curves. The curves
are put on an ellipsoid, turned, projected, drawn at four times the final resolution and reduced; light, blur
and noise are applied last. Every draw comes from a generator keyed by (seed, subject, sequence, frame), so a
frame does not depend on what else is drawn.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

from ferdist.data.facebox import BOX_MARGIN, Points
from ferdist.data.record import Images

FACE_SIZE: Final = 48
SUPERSAMPLING: Final = 4


@dataclass(frozen=True)
class Actions:
    """Strengths of facial actions: 0 is rest, 1 (or -1, the opposite) is the peak."""

    inner_brow: float = 0.0
    outer_brow: float = 0.0
    brow_pinch: float = 0.0
    lid: float = 0.0
    cheek: float = 0.0
    nose_wrinkle: float = 0.0
    left_corner: float = 0.0
    right_corner: float = 0.0
    mouth_width: float = 0.0
    jaw: float = 0.0
    upper_lip: float = 0.0
    lower_lip: float = 0.0
    chin_raise: float = 0.0
    lip_press: float = 0.0
    teeth: float = 0.0


UPPER_FACE: Final = ("inner_brow", "outer_brow", "brow_pinch", "lid")

# The variants of an expression: people show it in more than one way.
EXPRESSIONS: Final[dict[str, tuple[dict[str, float], ...]]] = {
    "neutral": ({},),
    "angry": (
        {"inner_brow": -1.2, "outer_brow": 0.3, "brow_pinch": 1.2, "lid": -0.4, "left_corner": -0.4,
         "right_corner": -0.4, "mouth_width": -0.5, "lip_press": 1.0},
        {"inner_brow": -1.2, "outer_brow": 0.3, "brow_pinch": 1.2, "lid": 0.2, "left_corner": -0.5,
         "right_corner": -0.5, "mouth_width": 0.05, "jaw": 0.35, "lower_lip": 0.8, "upper_lip": 0.3,
         "lip_press": 0.3, "teeth": 1.0},
    ),
    "disgust": (
        {"inner_brow": -0.6, "outer_brow": -0.35, "brow_pinch": 0.5, "lid": -0.6, "cheek": 0.6,
         "nose_wrinkle": 1.0, "left_corner": -0.45, "right_corner": -0.45, "upper_lip": 1.0, "jaw": 0.04},
        {"inner_brow": -0.5, "outer_brow": -0.35, "brow_pinch": 0.4, "lid": -0.6, "cheek": 0.7,
         "nose_wrinkle": 1.0, "left_corner": -0.3, "right_corner": -0.7, "upper_lip": 1.0, "jaw": 0.14,
         "teeth": 0.7},
    ),
    "fear": (
        {"inner_brow": 0.9, "outer_brow": 0.35, "brow_pinch": 0.8, "lid": 1.0, "left_corner": -0.4,
         "right_corner": -0.4, "mouth_width": 0.8, "jaw": 0.3, "lower_lip": 0.7, "teeth": 0.4},
    ),
    "happy": (
        {"lid": -0.35, "cheek": 0.9, "left_corner": 1.0, "right_corner": 1.0, "mouth_width": 0.55,
         "jaw": 0.3, "upper_lip": 0.15, "teeth": 1.0},
        {"lid": -0.3, "cheek": 0.9, "left_corner": 1.0, "right_corner": 1.0, "mouth_width": 0.5},
    ),
    "sad": (
        {"inner_brow": 0.85, "outer_brow": -0.6, "brow_pinch": 0.4, "lid": -0.45, "left_corner": -1.1,
         "right_corner": -1.1, "mouth_width": -0.15, "chin_raise": 0.6},
    ),
    "surprise": (
        {"inner_brow": 1.0, "outer_brow": 1.0, "lid": 1.0, "mouth_width": -0.4, "jaw": 1.0},
    ),
    "contempt": (
        {"lid": -0.2, "left_corner": 1.1, "right_corner": -0.1, "mouth_width": 0.1, "lip_press": 0.5,
         "outer_brow": 0.1},
        {"lid": -0.2, "left_corner": -0.1, "right_corner": 1.1, "mouth_width": 0.1, "lip_press": 0.5,
         "outer_brow": 0.1},
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Conditions:
    """How much the pictures vary: half ranges of uniform draws (turns in radians, shifts in face boxes)."""

    turn: float
    shift: float
    zoom: float
    light: float
    noise: float
    blur: float


IN_THE_WILD: Final = Conditions(turn=0.6, shift=0.035, zoom=0.07, light=0.5, noise=10.0, blur=0.7)
IN_THE_LAB: Final = Conditions(turn=0.35, shift=0.0, zoom=0.0, light=0.4, noise=4.0, blur=0.4)


def drawn(low: float, high: float, share: float = 1.0, otherwise: tuple[float, float] | None = None) -> Any:
    """A field drawn from [low, high) for that share of the people, from ``otherwise`` (or 0) for the rest."""
    return field(metadata={"drawn": (low, high, share, otherwise)})


@dataclass(frozen=True)
class Subject:
    """What stays the same in all pictures of a person. Lengths in half face heights, tones 0-255."""

    skin: float = drawn(95, 225)
    width: float = drawn(0.66, 0.80)
    jaw_power: float = drawn(0.70, 1.15)
    chin: float = drawn(0.92, 1.08)
    eye_x: float = drawn(0.29, 0.36)
    eye_y: float = drawn(-0.17, -0.09)
    eye_width: float = drawn(0.135, 0.175)
    eye_height: float = drawn(0.055, 0.08)
    brow_y: float = drawn(-0.40, -0.33)
    brow_arch: float = drawn(0.02, 0.08)
    brow_tilt: float = drawn(-0.045, 0.045)
    brow_thickness: float = drawn(0.025, 0.05)
    nose_length: float = drawn(0.34, 0.45)
    nose_width: float = drawn(0.11, 0.17)
    mouth_y: float = drawn(0.53, 0.61)
    mouth_width: float = drawn(0.24, 0.31)
    lip: float = drawn(0.04, 0.08)
    corner: float = drawn(-0.25, 0.25)
    hair: float = drawn(15, 90, share=0.7, otherwise=(110, 190))
    iris: float = drawn(20, 90)
    lip_tone: float = drawn(0.62, 0.85)
    hairline: float = drawn(-0.85, -0.55)
    hair_length: float = drawn(-0.3, 1.3)
    parting: float = drawn(-0.6, 0.6)
    glasses: float = drawn(0.9, 1.2, share=0.25)
    beard: float = drawn(0.08, 0.45, share=0.25)
    moustache: float = drawn(1, 1, share=0.15)


def draw_subject(rng: np.random.Generator) -> Subject:
    """A person, drawn at random."""
    values = []
    for part in fields(Subject):
        low, high, share, otherwise = part.metadata["drawn"]
        if share == 1 or rng.random() < share:
            values.append(rng.uniform(low, high))
        else:
            values.append(rng.uniform(*otherwise) if otherwise else 0.0)
    return Subject(*values)


@dataclass(frozen=True)
class Shot:
    """What stays the same through a sequence: the expression at its peak, the camera and the light."""

    actions: dict[str, float]
    turn: Points
    shift: Points
    zoom: float
    light: Points
    ambient: float
    gain: float
    offset: float
    noise: float
    blur: float
    background: float
    clothes: float
    drift: Points


def draw_shot(expression: str, conditions: Conditions, rng: np.random.Generator) -> Shot:
    """An expression as one person shows it once, and how it is filmed."""
    u = rng.uniform
    shift, zoom = conditions.shift, conditions.zoom
    turn = conditions.turn * np.array([0.42, 0.22, 0.22])
    drift = conditions.turn * np.array([0.05, 0.05, 0.03])
    azimuth, elevation = u(-1.4, 1.4), u(-0.3, 1.0)
    light = [np.sin(azimuth) * np.cos(elevation), -np.sin(elevation), np.cos(azimuth) * np.cos(elevation)]
    return Shot(
        actions=draw_actions(expression, rng),
        turn=u(-turn, turn),
        shift=u(-shift, shift, 2),
        zoom=float(np.exp(u(-zoom, zoom))),
        light=np.array(light),
        ambient=1.0 - u(0.3, 1.0) * conditions.light,
        gain=u(0.8, 1.15),
        offset=u(-15, 15),
        noise=u(0.2, 1.0) * conditions.noise,
        blur=u(0.0, conditions.blur),
        background=u(20, 235),
        clothes=u(20, 235),
        drift=u(-drift, drift),
    )


def draw_actions(expression: str, rng: np.random.Generator) -> dict[str, float]:
    """The strengths of the facial actions of an expression at its peak.

    The upper face takes part to a varying degree and the mouth nearly always, as in posed expressions.
    """
    variants = EXPRESSIONS[expression]
    peak = variants[rng.integers(len(variants))]
    upper, lower = rng.uniform(0.4, 1.1), rng.uniform(0.8, 1.15)
    strengths = {
        name: value * (upper if name in UPPER_FACE else lower) * rng.uniform(0.8, 1.2)
        for name, value in peak.items()
    }
    for name in ("inner_brow", "outer_brow", "lid", "left_corner", "right_corner"):
        strengths[name] = strengths.get(name, 0.0) + rng.normal(0.0, 0.08)
    return strengths


class Stroke(NamedTuple):
    """A filled polygon or, with a ``width``, a line, in face coordinates.

    ``lift`` is how far it stands off the head; both in half face heights.
    """

    points: Points
    tone: float
    width: float = 0.0
    lift: float = 0.0


T: Final = np.linspace(-1.0, 1.0, 13)
"""Parameter along eyes, brows and lips, from the viewer's left to right."""
BULGE: Final = np.sqrt(1.0 - T**2)
PARABOLA: Final = 1.0 - T**2
TURN: Final = np.linspace(0.0, 2.0 * np.pi, 25)[:-1]
JAW_ANGLE: Final = np.linspace(-0.5 * np.pi, 0.5 * np.pi, 17)
EAR_Y: Final = -0.12


def curve(x: Points, y: Points | float) -> Points:
    """Points (n, 2) of a curve from its coordinates."""
    return np.column_stack(np.broadcast_arrays(x, y))


def moved(points: Points, x: float, y: float) -> Points:
    """The points, shifted."""
    shifted: Points = points + np.array([x, y])
    return shifted


def between(upper: Points, lower: Points) -> Points:
    """The polygon between two curves that run in the same direction."""
    return np.concatenate([upper, lower[::-1]])


class Geometry(NamedTuple):
    """The curves of a face that shows an expression; each is (n, 2), from the viewer's left to right."""

    jaw: Points
    brows: tuple[Points, Points]
    upper_lids: tuple[Points, Points]
    lower_lids: tuple[Points, Points]
    nose_tip: Points
    nostrils: Points
    upper_lip: Points
    upper_inner: Points
    lower_inner: Points
    lower_lip: Points

    def landmarks(self) -> Points:
        """(68, 2) in the order of iBUG 300-W, which CK+'s files follow too: jaw, brows, nose, eyes, lips."""
        bridge = np.linspace([0.0, self.upper_lids[0][:, 1].mean()], self.nose_tip, 4)
        eyes = [
            part
            for top, bottom in zip(self.upper_lids, self.lower_lids, strict=True)
            for part in (top[[0, 4, 8, 12]], bottom[[8, 4]])
        ]
        mouth = [
            self.upper_lip[[0, 2, 4, 6, 8, 10, 12]],
            self.lower_lip[[10, 8, 6, 4, 2]],
            self.upper_inner[[1, 4, 6, 8, 11]],
            self.lower_inner[[8, 6, 4]],
        ]
        brows = [brow[[0, 3, 6, 9, 12]] for brow in self.brows]
        return np.concatenate([self.jaw, *brows, bridge, self.nostrils, *eyes, *mouth])


def pose_face(s: Subject, a: Actions) -> Geometry:
    """Where the features of a person are when facial actions move them."""
    cos, sin = np.cos(JAW_ANGLE), np.sin(JAW_ANGLE)
    chin = s.chin + 0.2 * a.jaw - 0.03 * a.lip_press
    nose_y = s.eye_y + s.nose_length - 0.05 * a.nose_wrinkle
    wing = s.nose_width * (1 + 0.2 * a.nose_wrinkle + 0.1 * a.cheek)
    jaw_x = s.width * np.sign(sin) * np.abs(sin) ** s.jaw_power
    brows, upper_lids, lower_lids = zip(_brow_and_lids(s, a, -1), _brow_and_lids(s, a, 1), strict=True)
    return Geometry(
        curve(jaw_x, EAR_Y + (chin - EAR_Y) * np.clip(cos, 0, 1) ** 0.8),
        brows,
        upper_lids,
        lower_lids,
        np.array([0.0, nose_y - 0.03]),
        curve(wing * np.array([-1, -0.5, 0, 0.5, 1]), nose_y + np.array([0, 0.03, 0.045, 0.03, 0])),
        *_lips(s, a),
    )


def _brow_and_lids(s: Subject, a: Actions, side: int) -> tuple[Points, Points, Points]:
    inwards = 0.5 * (1 - side * T)
    brow_x = side * (s.eye_x - 0.045 * a.brow_pinch * inwards) + 1.3 * s.eye_width * T
    lift = (0.12 * a.inner_brow - s.brow_tilt) * inwards**1.3 + 0.12 * a.outer_brow * (1 - inwards)
    arch = s.brow_arch + 0.05 * max(0.0, a.outer_brow)
    opening = s.eye_height * max(0.25, 1 + 0.75 * a.lid)
    droop = 0.025 * max(0.0, -a.outer_brow) * (1 + side * T) / 2
    low = 0.75 * s.eye_height * (1 + 0.3 * max(0.0, a.lid)) - 0.07 * a.cheek
    eye_x = side * s.eye_x + s.eye_width * T
    return (
        curve(brow_x, s.brow_y - lift + 0.03 * a.nose_wrinkle - arch * PARABOLA),
        curve(eye_x, s.eye_y - opening * BULGE**1.2 + droop),
        curve(eye_x, s.eye_y + low * BULGE**1.2),
    )


def _lips(s: Subject, a: Actions) -> list[Points]:
    half_width = s.mouth_width * (1 + 0.35 * a.mouth_width)
    weight = (1 + T) / 2
    rise = (s.corner + a.left_corner) * (1 - weight) + (s.corner + a.right_corner) * weight
    smile = 0.5 * max(0.0, min(a.left_corner, a.right_corner))
    base = s.mouth_y - 0.04 * a.nose_wrinkle + 0.12 * smile - 0.14 * rise * np.abs(T) ** 1.7
    x = half_width * T + 0.05 * (a.right_corner * (weight**3) - a.left_corner * (1 - weight) ** 3)
    up = 0.07 * a.upper_lip + 0.08 * a.jaw
    down = 0.3 * a.jaw + 0.06 * a.lower_lip
    open_shape = PARABOLA ** (0.45 if a.teeth > 0.5 else 0.6)
    gape = 1.0 if a.jaw > 0 else 0.0
    top = base - up * PARABOLA**0.8
    bottom = top + (gape * (up + down)) * open_shape
    thin = 1 - 0.75 * a.lip_press
    cupid = PARABOLA**0.7 * (1 - 0.3 * np.exp(-((T / 0.16) ** 2)))
    shift = -(0.05 * a.chin_raise) * PARABOLA
    outer_top = top - s.lip * thin * cupid
    outer_bottom = bottom + 1.25 * s.lip * thin * PARABOLA**0.6
    return [curve(x, y + shift) for y in (outer_top, top, bottom, outer_bottom)]


def sketch_face(s: Subject, a: Actions, shot: Shot, face: Geometry) -> Iterator[Stroke]:
    """All shapes of a face, from back to front."""
    yield from _behind(s, shot, face)
    yield from _folds(s, a, face)
    for side in (0, 1):
        yield from _eye(s, face, side)
    yield from _nose(s, face)
    yield from _mouth(s, a, face)
    yield from _hair_and_glasses(s)


def _ellipse(centre: tuple[float, float], radii: tuple[float, float]) -> Points:
    return curve(centre[0] + radii[0] * np.cos(TURN), centre[1] + radii[1] * np.sin(TURN))


def _behind(s: Subject, shot: Shot, face: Geometry) -> Iterator[Stroke]:
    w = s.width
    back = np.array([[-1.14, s.hair_length], [-1.16, -0.4], [1.16, -0.4], [1.14, s.hair_length]]) * [w, 1.0]
    yield Stroke(_ellipse((0.0, -0.35), (1.15 * w, 0.85)), s.hair)
    if s.hair_length > 0:
        yield Stroke(back, s.hair)
    shoulders = np.array([[-2.6, 3.0], [-2.2, 1.75], [-0.5, 1.4], [0.5, 1.4], [2.2, 1.75], [2.6, 3.0]])
    yield Stroke(shoulders, shot.clothes)
    neck = np.array([[-0.62, 0.4], [0.62, 0.4], [0.68, 1.5], [0.0, 1.75], [-0.68, 1.5]]) * [w, 1.0]
    yield Stroke(neck, 0.72 * s.skin)
    for side in (-1, 1):
        yield Stroke(_ellipse((side * 1.03 * w, 0.02), (0.1, 0.2)), 0.86 * s.skin)
    skull = curve(w * np.sin(JAW_ANGLE[::-1]), EAR_Y - 0.92 * np.cos(JAW_ANGLE))
    yield Stroke(np.concatenate([face.jaw, skull]), s.skin)
    if s.beard:
        low = face.jaw[3:14]
        inner = np.concatenate([low[:, :1] * 0.85, low[:, 1:] * (1 - s.beard) + 0.42 * s.beard], axis=1)
        yield Stroke(between(low, inner), 0.45 * s.skin + 0.4 * s.hair)


def _folds(s: Subject, a: Actions, face: Geometry) -> Iterator[Stroke]:
    def fold(points: Points, strength: float, width: float = 0.035) -> Iterator[Stroke]:
        if strength > 0.1:
            yield Stroke(points, s.skin * (1 - 0.4 * min(1.0, strength)), width)

    for height in (0.13, 0.22):
        forehead = curve(0.3 * T, s.brow_y - 0.08 - height - 0.02 * PARABOLA)
        yield from fold(forehead, 0.7 * a.inner_brow + 0.2 * a.outer_brow, 0.025)
    frown = min(1.0, a.brow_pinch) * (1.0 if a.inner_brow < 0 else 0.4)
    wing, corner = face.nostrils[[0, -1]], face.upper_inner[[0, -1]]
    for side in (0, 1):
        sign = 2 * side - 1
        yield from fold(curve(sign * np.array([0.05, 0.06]), s.brow_y + np.array([-0.1, 0.1])), frown)
        crease = np.array([[0.04, 0.06], [0.12, 0.16]]) * [sign, 1.0] + [0.0, s.brow_y]
        yield from fold(crease, a.nose_wrinkle, 0.04)
        yield from fold(moved(crease, sign * 0.02, 0.09), a.nose_wrinkle, 0.04)
        corner_rise = a.right_corner if side else a.left_corner
        ends = [wing[side] + [sign * 0.03, -0.02], corner[side] + [sign * 0.1, 0.0]]
        middle = (ends[0] + ends[1]) / 2 + [sign * 0.07, 0.0]
        strength = 0.2 + 0.5 * max(0.0, corner_rise) + 0.6 * a.nose_wrinkle
        yield from fold(np.stack([ends[0], middle, ends[1]]), strength)
        dimple = corner[side] + np.array([[0.06, -0.09], [0.09, 0.0], [0.06, 0.07]]) * [sign, 1.0]
        yield from fold(dimple, 1.2 * corner_rise * min(1.0, a.lip_press * 2), 0.05)
        yield from fold(moved(face.lower_lids[side][2:-2], 0.0, 0.05), a.cheek, 0.025)


def _eye(s: Subject, face: Geometry, side: int) -> Iterator[Stroke]:
    upper, lower = face.upper_lids[side], face.lower_lids[side]
    yield Stroke(between(upper, lower), min(250.0, 120 + 0.6 * s.skin))
    iris = _ellipse((float(upper[6, 0]), s.eye_y), (0.078, 0.078))
    top = np.interp(iris[:, 0], upper[:, 0], upper[:, 1])
    bottom = np.interp(iris[:, 0], upper[:, 0], lower[:, 1])
    iris[:, 1] = np.clip(iris[:, 1], top, np.maximum(top, bottom))
    yield Stroke(iris, s.iris)
    yield Stroke(upper, 0.3 * s.skin, 0.035)
    yield Stroke(lower[1:-1], 0.75 * s.skin, 0.02)
    yield Stroke(moved(upper[1:-1], 0.0, -0.045), 0.8 * s.skin, 0.02)
    inwards = 0.5 * (1 - (2 * side - 1) * T)
    half = np.outer(s.brow_thickness * (0.35 + 0.65 * inwards**0.5), [0, 1])
    yield Stroke(between(face.brows[side] - half, face.brows[side] + half), min(s.hair, s.skin - 45))


def _nose(s: Subject, face: Geometry) -> Iterator[Stroke]:
    tip = face.nose_tip
    bridge = np.array([[0.05, s.eye_y - 0.02], [0.055, s.eye_y + 0.15], [0.09, tip[1] - 0.05]])
    yield Stroke(bridge, 0.85 * s.skin, 0.03, lift=0.05)
    yield Stroke(bridge[1:] * [-0.6, 1.0], min(255.0, 1.1 * s.skin), 0.04, lift=0.08)
    wings = face.nostrils
    for sign, wing in ((-1, wings[0]), (1, wings[-1])):
        side = wing + np.array([[0, -0.09], [sign * 0.02, -0.03], [-sign * 0.03, 0.03]])
        yield Stroke(side, 0.72 * s.skin, 0.03)
        nostril = (float(0.5 * wing[0]), float(wings[2, 1] - 0.025))
        yield Stroke(_ellipse(nostril, (0.035, 0.02)), 0.4 * s.skin, lift=0.06)


def _mouth(s: Subject, a: Actions, face: Geometry) -> Iterator[Stroke]:
    upper, lower = face.upper_inner, face.lower_inner
    if s.moustache:
        band = curve(upper[:, 0] * 1.05, face.upper_lip[:, 1] - 0.02)
        yield Stroke(between(moved(band, 0.0, -0.085), moved(band, 0.0, 0.02)), 0.3 * s.skin + 0.5 * s.hair)
    shadow = curve(0.5 * face.lower_lip[:, 0], face.lower_lip[:, 1] + 0.06 - 0.03 * PARABOLA)
    yield Stroke(shadow[2:-2], 0.82 * s.skin, 0.04)
    yield Stroke(between(face.upper_lip, upper), s.lip_tone * 0.88 * s.skin)
    yield Stroke(between(lower, face.lower_lip), s.lip_tone * s.skin)
    if (lower[6, 1] - upper[6, 1]) > 0.02:
        yield Stroke(between(upper, lower), 25.0)
        teeth = moved(upper, 0.0, 0.11 * a.teeth)
        teeth[:, 1] = np.minimum(teeth[:, 1], lower[:, 1])
        if a.teeth > 0.1:
            yield Stroke(between(upper, teeth)[1:-1], 235.0)
    yield Stroke(upper, 0.35 * s.skin, 0.03)


def _hair_and_glasses(s: Subject) -> Iterator[Stroke]:
    dome = curve(1.1 * s.width * T, -0.35 - 0.85 * np.sqrt(1 - (T * 0.99) ** 2))
    dip = 0.3 * (np.abs(T - s.parting) / (1 + abs(s.parting))) ** 1.5
    fringe = curve(1.05 * s.width * T, np.minimum(s.hairline + dip + 0.35 * np.abs(T) ** 6, -0.2))
    yield Stroke(between(dome, fringe), s.hair, lift=0.04)
    if not s.glasses:
        return
    tone, half = 30.0, 0.22 * s.glasses
    for side in (-1, 1):
        rim = _ellipse((side * s.eye_x, s.eye_y + 0.03), (half, 0.17 * s.glasses))
        yield Stroke(np.concatenate([rim, rim[:1]]), tone, 0.035, lift=0.12)
        bridge = np.array([[0.0, s.eye_y - 0.02], [side * (s.eye_x - half), s.eye_y]])
        yield Stroke(bridge, tone, 0.035, lift=0.12)
        temple = np.array([[side * (s.eye_x + half), s.eye_y], [side * s.width, s.eye_y - 0.05]])
        yield Stroke(temple, tone, 0.03, lift=0.05)


@dataclass(frozen=True)
class Camera:
    """Turns a head of this width and maps it to the picture: ``scale * turned + origin``, in cells."""

    width: float
    rotation: npt.NDArray[np.float64]
    scale: float = 1.0
    origin: Points | float = 0.0

    def project(self, points: Points, lift: npt.NDArray[np.float64] | float = 0.0) -> Points:
        """(n, 2) face coordinates to (n, 2) cells.

        The head is an ellipsoid; what lies outside is at depth 0.
        """
        x, y = points.T
        inside = 1 - (x / (1.08 * self.width)) ** 2 - ((y - 0.05) / 1.25) ** 2
        depth = 0.75 * np.sqrt(np.clip(inside, 0, None)) + lift
        # The nose stands out from the ellipsoid, most at its tip.
        depth += 0.2 * np.exp(-((x / 0.12) ** 2) - ((y - 0.27) / 0.14) ** 2)
        turned = np.column_stack([points, depth]) @ self.rotation.T
        return self.scale * turned[:, :2] + self.origin


def aim(landmarks: Points, subject: Subject, shot: Shot, intensity: float, corner: tuple[int, int]) -> Camera:
    """The camera under which the face box of the landmarks fills 48 x 48 cells from ``corner`` (row, column).

    The shot's shift and zoom then spoil the framing, as a face detector does.
    """
    # Yaw, pitch and roll in radians.
    (cy, cp, cr), (sy, sp, sr) = (f(shot.turn + intensity * shot.drift) for f in (np.cos, np.sin))
    yaw = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    pitch = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
    roll = np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])
    camera = Camera(subject.width, roll @ pitch @ yaw)
    marks = camera.project(landmarks)
    low, high = marks.min(axis=0), marks.max(axis=0)
    scale = shot.zoom * FACE_SIZE / (BOX_MARGIN * float((high - low).max()))
    centre = np.array(corner)[::-1] + FACE_SIZE * (0.5 + shot.shift)
    return replace(camera, scale=scale, origin=centre - scale * (low + high) / 2)


def render(
    subject: Subject,
    shot: Shot,
    intensity: float,
    rng: np.random.Generator,
    size: tuple[int, int],
    corner: tuple[int, int],
) -> tuple[Images, Points]:
    """Draw one frame.

    Args:
        subject: whom.
        shot: the expression and how it is filmed.
        intensity: 0 (neutral) to 1 (peak).
        rng: for the sensor's noise.
        size: height and width of the picture in pixels.
        corner: row and column where the 48 x 48 pixels of the face begin.

    Returns:
        The picture, uint8 ``size``, and the landmarks, (68, 2) x and y in its pixels.
    """
    actions = Actions(**{name: intensity * peak for name, peak in shot.actions.items()})
    face = pose_face(subject, actions)
    landmarks = face.landmarks()
    camera = aim(landmarks, subject, shot, intensity, corner)
    picture = _paint([*sketch_face(subject, actions, shot, face)], camera, shot, size)
    lit = picture * _light(camera, shot, size) * shot.gain + shot.offset
    lit += rng.normal(0.0, shot.noise, size)
    return np.clip(np.rint(lit), 0, 255).astype(np.uint8), camera.project(landmarks)


def _paint(
    shapes: Sequence[Stroke], camera: Camera, shot: Shot, size: tuple[int, int]
) -> npt.NDArray[np.float32]:
    lengths = [len(shape.points) for shape in shapes]
    lift = np.repeat([shape.lift for shape in shapes], lengths)
    cells = camera.project(np.concatenate([shape.points for shape in shapes]), lift)
    # Pillow puts pixel centres on whole numbers, the cells' coordinates have them at a half.
    corners = np.split(SUPERSAMPLING * cells - 0.5, np.cumsum(lengths)[:-1])
    large = Image.new("L", (SUPERSAMPLING * size[1], SUPERSAMPLING * size[0]), round(shot.background))
    draw = ImageDraw.Draw(large)
    for shape, points in zip(shapes, corners, strict=True):
        outline = [tuple(point) for point in points.tolist()]
        if shape.width:
            width = max(1, round(SUPERSAMPLING * camera.scale * shape.width))
            draw.line(outline, fill=round(shape.tone), width=width)
        else:
            draw.polygon(outline, fill=round(shape.tone))
    picture = large.reduce(SUPERSAMPLING)
    if shot.blur > 0.2:
        picture = picture.filter(ImageFilter.GaussianBlur(shot.blur))
    return np.asarray(picture, dtype=np.float32)


def _light(camera: Camera, shot: Shot, size: tuple[int, int]) -> npt.NDArray[np.float64]:
    """Lambert's cosine law on an ellipsoid around the head, plus ambient light."""
    centre = camera.project(np.array([[0.0, 0.05]]), -0.75)[0]
    x = (np.arange(size[1]) + 0.5 - centre[0]) / (1.2 * camera.width * camera.scale)
    y = (np.arange(size[0]) + 0.5 - centre[1])[:, None] / (1.4 * camera.scale)
    square = x**2 + y**2
    norm = np.sqrt(np.maximum(square, 1.0))
    z = np.sqrt(np.clip(1 - square, 0, None))
    cosine = (shot.light[0] * x + shot.light[1] * y) / norm + shot.light[2] * z
    return np.asarray(shot.ambient + 1.25 * (1 - shot.ambient) * np.clip(cosine, 0, None))
