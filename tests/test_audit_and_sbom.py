"""`make audit` and `make sbom` with the real tools; the advisories come from a server of this test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("audit")]  # one environment of tools

ADVISORY = {
    "id": "TEST-1",
    "details": "A made-up advisory.",
    "published": "2026-01-01T00:00:00Z",
    "affected": [{"package": {"name": "pillow", "ecosystem": "PyPI"}, "versions": []}],
}


@pytest.fixture(scope="module")
def tools() -> Path:
    """The environment of the tools, which `make` sets up once."""
    python = f"PYTHON={sys.executable}"
    subprocess.run(["make", python, ".audit/.ready"], cwd=ROOT, check=True, capture_output=True, text=True)
    return ROOT / ".audit" / "bin"


def test_an_audit_passes_only_if_every_version_was_looked_up(tools: Path, tmp_path: Path) -> None:
    with advisories({}) as url:
        passed = audit(tools, tmp_path, url)
    with advisories({"pillow": [ADVISORY]}) as url:
        found = audit(tools, tmp_path, url)
    gone = audit(tools, tmp_path, url)

    assert (passed.returncode, passed.stderr) == (0, "")
    assert passed.stdout.startswith("audit: no advisory for any of the ")
    assert found.returncode == 1
    assert "pillow" in found.stdout
    assert "TEST-1" in found.stdout
    assert (gone.returncode, gone.stdout) == (3, "")
    assert gone.stderr.startswith("audit: not done, the advisories could not be read: ")
    assert gone.stderr.count("\n") == 1


def test_the_sbom_lists_what_is_installed(tools: Path, tmp_path: Path) -> None:
    sbom = tmp_path / "sbom.json"
    command = [
        str(tools / "cyclonedx-py"),
        "environment",
        "--output-reproducible",
        "--output-file",
        str(sbom),
    ]
    subprocess.run([*command, sys.prefix], check=True)
    content = json.loads(sbom.read_text())
    names = {component["name"].lower() for component in content["components"]}
    assert content["bomFormat"] == "CycloneDX"
    assert {"ferdist", "torch", "ffcv", "msgspec"} <= names


def audit(tools: Path, home: Path, url: str) -> subprocess.CompletedProcess[str]:
    command = [str(ROOT / "scripts" / "audit"), str(tools / "pip-audit")]
    options = ["--vulnerability-service", "osv", "--osv-url", url]
    environment = {
        **os.environ,
        "HOME": str(home),
        "NO_PROXY": "127.0.0.1",
    }  # HOME: no advisories from its cache
    return subprocess.run([*command, *options], capture_output=True, text=True, env=environment, check=False)


@contextmanager
def advisories(known: dict[str, list[dict[str, object]]]) -> Iterator[str]:
    """The URL of a server that speaks OSV's protocol and has advisories for these packages."""

    class Answer(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            body = json.dumps({"vulns": known[name]} if (name := asked["package"]["name"]) in known else {})
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()
