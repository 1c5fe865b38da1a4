"""Reports of runs: one html page, table1.md and the figures, made from the files in the run folders."""

from __future__ import annotations

from ferdist.reporting.report import write_report

__all__ = ["write_report"]
