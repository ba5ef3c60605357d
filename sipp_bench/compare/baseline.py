"""A baseline: what `compare` needs of a run folder, and the history of why it is what it is."""

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path

from sipp_bench.errors import OptionError, StoreError
from sipp_bench.machine.files import read_regular, write_atomically
from sipp_bench.store.folder import load_run
from sipp_bench.store.records import read_json, sealed_json

HISTORY = "history.json"


def update(run: Path | str, output: Path | str, reason: str) -> Path:
    """Make the folder `output` the baseline that `run` is, and add {date, commit, dirty, reason} to its history.

    Arrays are left out: nothing compares them. The folder is replaced as a whole, after the new one is complete: a
    folder with files in it cannot be renamed over, so that the old one steps aside first. Where that is how an earlier
    update ended, killed, the old baseline is put back before anything else.
    Raises OptionError for an empty reason; StoreError for a run with failed or missing cells, and for a folder that is
    neither new nor a baseline.
    """
    output = Path(output)
    if not reason.strip():
        raise OptionError("A baseline needs a reason: say what changed, and why that is right.")
    loaded = load_run(run)
    failed = list(loaded.cells["id"][loaded.cells["status"] == "failed"])
    missing = [cell for cell in loaded.meta["cells"] if cell not in set(loaded.cells["id"])]
    if failed or missing or loaded.cells.empty:
        problem = f"{len(failed)} failed and {len(missing)} missing cells, the first {[*failed, *missing, '-'][0]}"
        raise StoreError(f"{loaded.path} is no baseline: it has {problem}. Run its suite again.")
    aside = set_aside(output)
    if aside.exists():
        if output.exists():
            shutil.rmtree(aside)
        else:
            aside.rename(output)
    history = _history(output)
    system = (loaded.meta["resumed"] or [loaded.meta])[-1]
    entry = {"date": datetime.now(UTC).date().isoformat(), "commit": system.get("commit"), "dirty": system.get("dirty")}
    history.append(entry | {"reason": reason.strip()})

    fresh = output.with_name(f".{output.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    write_atomically(fresh / "run.json", sealed_json(loaded.meta))
    for cell in loaded.cells["id"]:
        content = read_json(loaded.path / "cells" / f"{cell}.json") | {"blocks": None, "predictions": None}
        write_atomically(fresh / "cells" / f"{cell}.json", sealed_json(content))
        timing = read_json(loaded.path / "cells" / f"{cell}.timing.json")
        write_atomically(fresh / "cells" / f"{cell}.timing.json", sealed_json(timing))
    write_atomically(fresh / HISTORY, json.dumps(history, indent=1, ensure_ascii=False) + "\n")
    if output.exists():
        output.rename(aside)
    fresh.rename(output)
    if aside.exists():
        shutil.rmtree(aside)
    return output


def set_aside(output: Path) -> Path:
    """Where an update keeps the old baseline between its two renames."""
    return output.with_name(f".{output.name}.old")


def _history(output: Path) -> list[dict[str, object]]:
    if not output.exists():
        return []
    try:
        history = json.loads(read_regular(output / HISTORY))
    except (OSError, ValueError) as error:
        raise StoreError(f"{output} is no baseline: it has no readable {HISTORY}. Choose another with -o.") from error
    if not isinstance(history, list):
        raise StoreError(f"{output / HISTORY} is not a list of what was changed and why.")
    return history
