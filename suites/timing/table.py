"""python suites/timing/table.py TIMING.json: Markdown tables of ratios, medians with quartiles, of a timing run."""

import json
import sys
from pathlib import Path
from statistics import median
from typing import Any


def tables(run: dict[str, Any]) -> str:
    """Every table of a run of suites/timing, from its pytest-benchmark JSON."""
    groups: dict[str, dict[str, dict[str, str]]] = {}
    for benchmark in run["benchmarks"]:
        info = benchmark["extra_info"]
        low, middle, high = info["ratio_quartiles"]
        seconds = median(info["subject_seconds"])
        text = f"{middle:.3g} ({low:.3g}-{high:.3g})"
        if "peak_bytes" not in info:
            text += f", {seconds * 1e3:.3g} ms" if seconds < 1 else f", {seconds:.3g} s"
        groups.setdefault(info["table"], {}).setdefault(info["row"], {})[info["column"]] = text
    machine = run["machine_info"]["machine"]
    lines = [f"{machine['cpu']}, {machine['cores']} cores; torch {run['machine_info']['versions']['torch']}.", ""]
    for name, rows in groups.items():
        columns = list(dict.fromkeys(column for row in rows.values() for column in row))
        lines += [f"**{name}**: median (quartiles), median time of the first", ""]
        lines += ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
        lines += [f"| {row} | " + " | ".join(cells.get(c, "") for c in columns) + " |" for row, cells in rows.items()]
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"Usage: {__doc__}")
    print(tables(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
