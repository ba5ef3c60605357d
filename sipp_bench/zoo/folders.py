"""Where checkpoints and data are kept on this machine."""

import os
import sys
from pathlib import Path


def default_cache_dir() -> Path:
    """$SIPP_BENCH_CACHE, else sipp-bench in the platform's own cache folder ($XDG_CACHE_HOME or ~/.cache)."""
    if chosen := os.environ.get("SIPP_BENCH_CACHE"):
        return Path(chosen).expanduser()
    if sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "sipp-bench"


def data_dir() -> Path:
    """Where data is looked for first and downloaded to: $SIPP_BENCH_DATA, else `data` in the cache folder."""
    chosen = os.environ.get("SIPP_BENCH_DATA")
    return Path(chosen).expanduser() if chosen else default_cache_dir() / "data"


def data_dirs() -> tuple[Path, ...]:
    """Every folder that is searched for data, in order; the last is where Debian's packages put theirs."""
    return data_dir(), Path("/usr/share/datasets")
