"""Is NEW as good as BASE? Two run folders, or files of pytest-benchmark, compared by fixed rules."""

from pathlib import Path

from sipp_bench.compare import baseline, benchmarks, runs
from sipp_bench.compare.findings import Comparison, Finding
from sipp_bench.errors import OptionError, StoreError

__all__ = ["Comparison", "Finding", "compare"]


def compare(base: Path | str, new: Path | str) -> Comparison:
    """Every cell, group of seeds and timing of BASE against NEW; what BASE has and NEW lacks is a regression.

    BASE and NEW are run folders, or JSON files of pytest-benchmark, or folders of the one or the other, one a run.
    Raises StoreError when one cannot be read, OptionError when one is a run folder and the other is not.
    """
    base, new = Path(base), Path(new)
    for path in (base, new):
        if not path.exists() and (aside := baseline.set_aside(path)).exists():
            raise StoreError(
                f"There is no {path}: an update of this baseline was killed while it replaced it. The old one is "
                f"{aside}: run sipp-bench baseline again, which puts it back first, or rename it."
            )
        if not path.exists():
            raise StoreError(f"There is no {path}. Give a run folder, or a JSON file that pytest-benchmark wrote.")
    timed = [path.is_file() or (not (path / "run.json").exists() and any(path.glob("*.json"))) for path in (base, new)]
    if timed[0] != timed[1]:
        raise OptionError(f"{base} and {new} do not compare: give two run folders, or two files of pytest-benchmark.")
    return benchmarks.compare(base, new) if timed[0] else runs.compare(base, new)
