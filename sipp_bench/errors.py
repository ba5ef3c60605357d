"""Every exception that sipp-bench raises on purpose.

Each message is a sentence that names the thing that was wrong and says what to do. The command line prints
the sentence without a traceback and exits with status 2 for bad usage or input.
"""

import difflib
from collections.abc import Iterable
from numbers import Integral


class SippBenchError(Exception):
    """Base class: catch this to catch everything that sipp-bench refuses on purpose."""


class OptionError(SippBenchError, ValueError):
    """An option, a method name, a layer name or a number outside its allowed range."""


class ModelError(SippBenchError, ValueError):
    """A network that cannot be measured or pruned: NaN weights or activations, nothing to prune."""


class PointsError(SippBenchError, ValueError):
    """Points that cannot be used: none at all, of the wrong shape, or not finite."""


class SuiteError(SippBenchError, ValueError):
    """A suite file that is not TOML, or that names something unknown or impossible."""


class DataError(SippBenchError):
    """Data that is missing, damaged, or would need a download that is not possible."""


class CheckpointError(SippBenchError):
    """A checkpoint or a saved result that is missing, truncated, changed, or of another network."""


class StoreError(SippBenchError):
    """A run folder that cannot be written or read, or that belongs to another suite."""


class RankError(SippBenchError):
    """One of several processes that measure together has failed or ended, so that none of them has a result."""


class WorkerError(SippBenchError):
    """Workers of a run that were lost with the cells that they measured, or a scheduler that cannot be reached."""


def require_counts(**counts: object) -> None:
    """Raise OptionError unless each is a whole number from 1 on, of Python or of numpy."""
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, Integral) or count < 1:
            raise OptionError(f"{name} is a whole number of at least 1, not {count!r}.")


def did_you_mean(name: str, allowed: Iterable[str]) -> str:
    """ " Did you mean ...?" with the names that `name` is the beginning of, else the closest one; "" where none is."""
    allowed = list(allowed)
    begun = [each for each in allowed if name and each.startswith(name)]
    close = begun[:5] or difflib.get_close_matches(name, allowed, n=1)
    if not close:
        return ""
    *others, last = close
    return f" Did you mean {', '.join(others)}{' or ' if others else ''}{last}?"
