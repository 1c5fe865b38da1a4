"""What the self test found: a line for each thing that it looked at."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Final

from ferdist.errors import FerdistError

SCHEMA: Final = 1


class Status(StrEnum):
    """How a check ended, the worst last."""

    FOUND = "found"
    """A fact; there is nothing to pass."""
    PASSED = "passed"
    SKIPPED = "skipped"
    """It does not apply to this machine."""
    WARNING = "warning"
    """ferdist works, but slower or with less than it could have."""
    FAILED = "failed"
    """Something that ferdist promises does not hold here."""

    @property
    def severity(self) -> int:
        """0 to 4, the worst highest."""
        return list(Status).index(self)


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: in a few words; the same on every rank.
        status: how it ended.
        value: what was found or measured.
        remedy: what to do, where there is something to do.
    """

    name: str
    status: Status
    value: str
    remedy: str = ""


Probe = Callable[[], Iterable[Check]]


def look(name: str, probe: Probe) -> Iterator[Check]:
    """The checks of a probe; an error of its own is a failed check, not the end of the test."""
    try:
        yield from probe()
    except FerdistError as error:
        yield Check(name, Status.FAILED, str(error))
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        yield Check(name, Status.FAILED, f"unexpected {reason}", "report it with the output of --json")


def merge(by_rank: Sequence[Sequence[Check]]) -> list[Check]:
    """One list of the checks of all ranks: the worst of each name, and which ranks it is from."""
    merged = []
    for name in dict.fromkeys(check.name for checks in by_rank for check in checks):
        found = {rank: c for rank, checks in enumerate(by_rank) for c in checks if c.name == name}
        worst = max(found.values(), key=lambda check: check.status.severity)
        same = {rank for rank, check in found.items() if check.value == worst.value}
        if len(same) < len(by_rank) and len({check.value for check in found.values()}) > 1:
            ranks = ", ".join(map(str, sorted(same)))
            worst = Check(name, worst.status, f"{worst.value} (rank {ranks})", worst.remedy)
        merged.append(worst)
    return merged


@dataclass(frozen=True)
class Findings:
    """All that the self test found.

    Attributes:
        groups: the checks by group, in the order they were made.
        settings: config keys that suit this machine, with their values.
    """

    groups: dict[str, list[Check]]
    settings: dict[str, Any]

    @property
    def passed(self) -> bool:
        """Whether all that ferdist promises holds here."""
        return all(check.status != Status.FAILED for checks in self.groups.values() for check in checks)

    def to_json(self) -> str:
        """As one JSON object."""
        checks = [{"group": group, **asdict(c)} for group, found in self.groups.items() for c in found]
        return json.dumps(
            {"schema": SCHEMA, "passed": self.passed, "checks": checks, "settings": self.settings}, indent=2
        )
