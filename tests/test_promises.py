"""docs/reliability.md names tests that exist."""

from __future__ import annotations

import re

from tests.conftest import ROOT


def test_every_promise_names_tests_that_exist() -> None:
    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    tables = re.findall(r"^\| promise .*\n\| --- .*\n((?:\| .*\n)+)", text, re.M)
    rows = [row for table in tables for row in table.splitlines()]
    assert len(rows) > 20
    for row in rows:
        named = re.findall(r"`([\w/]+\.py)(?:::(\w+))?`", row.split(" | ")[1])
        assert named, row
        for file, name in named:
            content = (ROOT / "tests" / file).read_text(encoding="utf-8")
            assert f"\ndef {name or 'test_'}" in content, f"{file}::{name}"
