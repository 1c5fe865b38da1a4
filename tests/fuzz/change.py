"""What a case changes in valid files: each format by its own structure, everything drawn from one seed.

Hypothesis draws the nested values, from bytes that the case's own generator gives: so a case depends on its
name alone. Bytes, numbers and words are changed by hand, which takes a hundredth of the time.
"""

from __future__ import annotations

import copy
import io
import json
import math
import random
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np
import yaml
from hypothesis import given
from hypothesis import strategies as st


class Special(StrEnum):
    """What can lie where a regular file should."""

    FIFO = "fifo"
    FOLDER = "folder"
    DEVICE = "device"
    LOOP = "loop"


Files = dict[str, bytes | Special]
"""The files of a case by their names in its folder."""

DEEP: Final = "deeply nested"
"""Stands for 5,000 nested lists, which no writer can write."""
INTEGERS: Final = (
    *(0, 1, 2, 7, 8, 10, 127, 128, 255, 256, 32767, 65535, 65536, 60000, 10**6, 2**31 - 1, 2**31),
    *(2**32 - 1, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64, 10**30, -1, -2, -128, -(2**31), -(2**63)),
)
REALS: Final = (-0.0, 1e-320, 0.5, 1.0000001, 1e308, math.inf, -math.inf, math.nan)
NUMBERS: Final = (*INTEGERS, *REALS)
WORDS: Final = (
    *("", " ", "\0", "\x1b[2J", "a\nferdist: done", "\u202egnp", "\ud800", "c\uffff", "\U0001f600", "nan"),
    *("x" * 300, "x" * 20000, "1e999", "-", "0x10", "1_000", "9" * 5000, "null", "true", "[]", "{}", "'"),
    *("../../x", "/etc/passwd", "/dev/zero", "a/b", ".", "~", "${oc.env:HOME}", "${foo:bar}", "$HOME"),
    *("2020-13-45", "&a [*a]", "*a", "!!python/name:os.system", "!!binary x", "? [", "<<: *a", "%", "<b>"),
    *("timm:resnet18", "os:system", "mianet", "vgg16", "angry", "train", "test", "line 2", "S001", '"', DEEP),
)
SIGNS: Final = ("\n", ",", " ", '"', "\r", "\t", ":", "[", "{", "\ufeff", "\0")

_DRAWN: list[Any] = []


@given(
    st.recursive(
        st.sampled_from([*NUMBERS, *WORDS, None, True]) | st.integers() | st.floats() | st.text(max_size=12),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
        max_leaves=6,
    )
)
def _draw(value: Any) -> None:
    _DRAWN[:] = [value]


class Change(random.Random):
    """A source of changes: the same name gives the same ones."""

    def often(self, share: float) -> bool:
        """True in that share of the calls."""
        return self.random() < share

    def few(self) -> range:
        """One to four times, mostly once or twice."""
        return range(self.choice((1, 1, 1, 2, 2, 3, 4)))

    def value(self) -> Any:
        """What JSON and YAML can write, and some that they cannot."""
        if self.often(0.6):
            return self.choice((*NUMBERS, *WORDS, None, True, False, [], {}))
        _DRAWN.clear()
        while not _DRAWN:
            _draw.hypothesis.fuzz_one_input(self.randbytes(512))
        return _DRAWN[0]

    def tree(self, root: Any) -> Any:
        """Nested lists and dictionaries with a few of their places changed."""
        holder = {"": copy.deepcopy(root)}
        for _ in self.few():
            inside, key = self._place(holder)
            found = inside[key]
            match self.randrange(7):
                case 0 if inside is not holder:
                    del inside[key]
                case 1 if isinstance(inside, dict) and inside is not holder:
                    inside[self.choice(WORDS)] = inside.pop(key)
                case 2:
                    other, place = self._place(holder)
                    inside[key] = copy.deepcopy(other[place])
                case 3 if isinstance(found, list):
                    found *= self.choice((0, 2, 3))
                case 3 | 4 if isinstance(found, int | float):
                    inside[key] = self.choice((-found, found + 1, found / 3, str(found), *NUMBERS))
                case 4 if isinstance(found, str):
                    inside[key] = self.text(found)
                case 5:
                    inside[key] = self.choice(([found], {"": found}, [found] * 3, str(found)))
                case _:
                    inside[key] = self.value()
        return holder[""]

    def _place(self, holder: dict[str, Any]) -> tuple[Any, Any]:
        """A container and the key of something in it, the deeper the rarer."""
        inside: Any = holder
        key: Any = ""
        while True:
            found = inside[key]
            keys = list(
                found if isinstance(found, dict) else range(len(found) if isinstance(found, list) else 0)
            )
            if not keys or self.often(0.15):
                return inside, key
            inside, key = found, self.choice(keys)

    def text(self, content: str) -> str:
        """Text with a few of its numbers, words, signs or lines changed."""
        tokens = re.findall(r"\w+|\s|[^\w\s]", content) or [""]
        for _ in self.few():
            low, high = sorted((self.randrange(len(tokens)), self.randrange(len(tokens))))
            match self.randrange(8):
                case 0:
                    tokens[low] = ""
                case 1:
                    tokens[low] = str(self.choice(NUMBERS))
                case 2:
                    tokens[low], tokens[high] = tokens[high], tokens[low]
                case 3:
                    tokens[low] += tokens[high]
                case 4:
                    tokens[low] += self.choice(SIGNS)
                case 5:
                    tokens[low:high] *= 2
                case 6:
                    tokens = [*tokens[:low], *tokens[high:]]
                case _:
                    tokens[low] = self.choice(WORDS)
        return "".join(tokens)

    def data(self, content: bytes) -> bytes:
        """Bytes with a few bits, fields or stretches changed, most near their ends, where structure lies."""
        made = bytearray(content)
        for _ in self.few():
            reach = self.randrange(min(len(made), self.choice((64, 512, 4096, len(made)))) + 1)
            at = reach if self.often(0.6) else len(made) - reach
            end = at + self.choice((1, 2, 4, 8, 16, 100, 5000))
            match self.randrange(8):
                case 0 | 1 if at < len(made):
                    made[at] ^= 1 << self.randrange(8)
                case 2 | 3:
                    width = self.choice((1, 2, 4, 8))
                    number = self.choice(INTEGERS) % 256**width
                    made[at : at + width] = number.to_bytes(width, self.choice(("little", "big")))
                case 4:
                    del made[at:]
                case 5:
                    del made[at:end]
                case 6:
                    made[at:at] = made[at:end] if self.often(0.5) else self.randbytes(self.randrange(1, 40))
                case _:
                    source = self.randrange(len(made) + 1)
                    made[at:end] = made[source : source + end - at]
        return bytes(made)

    def file(self, name: str, content: bytes) -> bytes:
        """A file's content, mostly changed by the structure that its name tells."""
        change = FORMATS.get(Path(name).suffix)
        return change(self, content) if change and self.often(0.8) else self.data(content)

    def files(self, valid: Mapping[str, bytes]) -> Files:
        """Files of which one or two are changed, missing, swapped for another or no regular files."""
        made: Files = dict(valid)
        for name in self.sample(sorted(valid), min(len(valid), self.choice((1, 1, 1, 2)))):
            match self.randrange(60):
                case 0 if len(valid) > 1:
                    del made[name]
                case 1:
                    made[name] = valid[self.choice(sorted(valid))]
                case 2:
                    made[name] = self.choice(list(Special))
                case _:
                    made[name] = self.file(name, valid[name])
        return made


def read_files(folder: Path) -> dict[str, bytes]:
    """The files of a folder, by their names in it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def encoded(text: str) -> bytes:
    """Text with the nested lists for which `DEEP` stands, and with what UTF-8 does not allow."""
    text = text.replace(f'"{DEEP}"', DEEP).replace(DEEP, "[" * 5000 + "]" * 5000)
    return text.encode("utf-8", "surrogatepass")


def _text(change: Change, content: bytes) -> bytes:
    return encoded(change.text(content.decode()))


def _json(change: Change, content: bytes) -> bytes:
    return encoded(json.dumps(change.tree(json.loads(content))))


def _lines(change: Change, content: bytes) -> bytes:
    lines = content.splitlines()
    at = change.randrange(len(lines))
    lines[at] = _json(change, lines[at])
    return b"\n".join(lines)


def _yaml(change: Change, content: bytes) -> bytes:
    if change.often(0.5):
        return _text(change, content)
    return encoded(yaml.safe_dump(change.tree(yaml.safe_load(content))))


def pack(members: list[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> bytes:
    """A zip without dates; a name may come twice."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", method) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, data in members:
            archive.writestr(zipfile.ZipInfo(name), data, method)
    return packed.getvalue()


def _zip(change: Change, content: bytes) -> bytes:
    """The members packed again, one of them with another name or content, or twice."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    at = change.randrange(len(members))
    name, data = members[at]
    match change.randrange(4):
        case 0:
            word = change.choice(WORDS).replace("\ud800", "\ufffd")
            members[at] = (change.choice((word, name + word, f"{word}/{name}", name.upper())), data)
        case 1:
            members.insert(change.randrange(len(members)), members[at])
        case _:
            members[at] = (name, change.file(name, data))
    method = change.choice((zipfile.ZIP_STORED,) * 4 + (zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA))
    packed = pack(members, method)
    return change.data(packed) if change.often(0.3) else packed


def _safetensors(change: Change, content: bytes) -> bytes:
    """The header changed, or the facts that its metadata holds as JSON of their own."""
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    facts = {name: json.loads(text) for name, text in header["__metadata__"].items()}
    if change.often(0.3):
        header = change.tree(header)
    else:
        facts = change.tree(facts)
        facts = facts if isinstance(facts, dict) else {"config": facts}
        header["__metadata__"] = {name: encoded(json.dumps(fact)).decode() for name, fact in facts.items()}
    text = encoded(json.dumps(header))
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


def _png(change: Change, content: bytes) -> bytes:
    """A chunk changed, its length and checksum made right again."""
    chunks, at = [], 8
    while at < len(content):
        (length,) = struct.unpack(">I", content[at : at + 4])
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + length]))
        at += 12 + length
    at = change.choice((0, 0, change.randrange(len(chunks))))
    kind, data = chunks[at]
    other = change.choice((b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"eXIf", b"acTL", b"fcTL", b"PLTE", b"tRNS"))
    chunks[at] = (other if change.often(0.2) else kind, change.data(data))
    return content[:8] + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def _h5(change: Change, content: bytes) -> bytes:
    """A data set's place taken by something else that HDF5 knows."""
    file = io.BytesIO(content)
    with h5py.File(file, "r+") as h5:
        name = change.choice(sorted(h5))
        values = h5.pop(name)[:]
        match change.randrange(6):
            case 0:
                h5[name] = h5py.Empty(change.choice(("u1", "f8", "S10")))
            case 1:
                h5.create_group(name)
            case 2:
                h5[name] = change.choice((h5py.SoftLink("/none"), h5py.ExternalLink("none.h5", "/x")))
            case 3:
                shape = change.choice(((), (0,), (2**40,), (2**31, 48, 48), (*values.shape, 1), (3, 2)))
                chunks = tuple(min(side, 8) for side in shape) if math.prod(shape) > 1 else None
                h5.create_dataset(name, shape, change.choice(("u1", "i8", "f4", "S3")), chunks=chunks)
            case 4:
                h5[name] = np.asarray(values, dtype=change.choice(("f8", "i2", "c8", "b1", "S4", "u8")))
            case _:
                h5[name] = np.full(values.shape, change.choice((-1, 7, 255, 2**31, math.nan, math.inf)))
    return file.getvalue()


FORMATS: Final[dict[str, Callable[[Change, bytes], bytes]]] = {
    **dict.fromkeys((".csv", ".txt", ".sha256"), _text),
    **dict.fromkeys((".zip", ".npz", ".pt"), _zip),
    ".json": _json,
    ".jsonl": _lines,
    ".yaml": _yaml,
    ".safetensors": _safetensors,
    ".png": _png,
    ".h5": _h5,
}
