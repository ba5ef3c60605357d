"""From finished runs to a page that a researcher would read: `build_report(run_dirs, output)`."""

from sipp_bench.report.build import build_report

__all__ = ["build_report"]
