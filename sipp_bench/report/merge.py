"""Equal by content is the same: a network that several runs of a report made is counted once, with all its measures."""

from collections.abc import Hashable
from dataclasses import dataclass

import pandas as pd

CONTENT = ["network", "data", "seed", "method", "keep", "checkpoint_sha256", "mask_sha256", "retrained_sha256"]
"""Two finished cells that agree in these and in `accuracy` are one network. No hash: no content to compare."""
DENSE_VALIDATION = "dense_validation_accuracy"


@dataclass(frozen=True)
class Merged:
    """What became of the cells. again: the rows that were left out, with `into_run` and `into_id`, which stand for
    them. sources: (run, id) of a cell -> the same of all that it stands for, its own first.
    """

    cells: pd.DataFrame
    again: pd.DataFrame
    sources: dict[tuple[str, str], list[tuple[str, str]]]

    def moved(self, frame: pd.DataFrame, once: bool) -> pd.DataFrame:
        """The rows of a table of the runs under the cells that stand for theirs.

        once: a table of one row a cell, whose values complete each other; else a cell's rows are those of the first
        that has any.
        """
        if self.again.empty or frame.empty:
            return frame
        into = {(row.run, row.id): (row.into_run, row.into_id) for row in self.again.itertuples()}
        old = list(zip(frame["run"], frame["id"], strict=True))
        new = [into.get(key, key) for key in old]
        if once:
            rank = [key in into for key in old]
            named = frame.assign(run=[run for run, _ in new], id=[cell for _, cell in new], _rank=rank)
            return _completed(named.sort_values("_rank", kind="stable").drop(columns="_rank"), ["run", "id"])
        present = set(old)
        first = {key: next(source for source in sources if source in present) for key, sources in self._having(present)}
        keep = [first[key] == source for key, source in zip(new, old, strict=True)]
        return frame.assign(run=[run for run, _ in new], id=[cell for _, cell in new])[keep]

    def _having(self, present: set[tuple[str, str]]) -> list[tuple[tuple[str, str], list[tuple[str, str]]]]:
        return [item for item in self.sources.items() if present & set(item[1])]


def merge(cells: pd.DataFrame) -> Merged:
    """Count every network once, in the run that has the most cells of its network and data; the first of several."""
    keys = pd.DataFrame({name: cells.get(name) for name in CONTENT}).astype(object)
    known = (cells["status"] == "done") & keys[["checkpoint_sha256", "mask_sha256"]].notna().all(axis=1)
    keys = keys.assign(accuracy=cells["accuracy"]).where(known, None)
    # What has no content is like nothing else.
    keys["alone"] = [None if same else position for position, same in enumerate(known)]
    content: list[tuple[Hashable, ...]] = [
        tuple(None if pd.isna(value) else value for value in row) for row in keys.itertuples(index=False)
    ]
    size = cells.groupby(["run", "network", "data"])["id"].transform("size")
    ordered = cells.assign(_content=pd.factorize(pd.Series(content, dtype=object))[0]).loc[
        size.sort_values(ascending=False, kind="stable").index
    ]
    stands = ordered.drop_duplicates("_content").set_index("_content")[["run", "id"]]
    sources: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for key, run, cell in zip(ordered["_content"], ordered["run"], ordered["id"], strict=True):
        sources.setdefault((str(stands.at[key, "run"]), str(stands.at[key, "id"])), []).append((run, cell))
    again = ordered[ordered.duplicated("_content")].sort_index()
    into = stands.loc[again["_content"]]
    again = again.assign(into_run=into["run"].to_numpy(), into_id=into["id"].to_numpy()).drop(columns="_content")
    if again.empty:
        return Merged(cells, again, sources)
    completed = _completed(ordered, ["_content"]).set_index(ordered.drop_duplicates("_content").index)
    return Merged(completed.sort_index().drop(columns="_content")[list(cells.columns)], again, sources)


def _completed(frame: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """One row for each of the keys, in order of appearance: of every column the first value that is there."""
    types = frame.dtypes
    return frame.groupby(keys, sort=False).first().reset_index().astype({name: types[name] for name in frame.columns})


def fill_dense_validation(cells: pd.DataFrame) -> pd.DataFrame:
    """The dense network's validation accuracy where an old format lacks it, from cells of the same checkpoint.

    `dense_validation_filled` says where. The split into parts follows from data and seed, so that a checkpoint on
    them has one value.
    """
    if DENSE_VALIDATION not in cells or "checkpoint_sha256" not in cells:
        return cells
    same = [cells[name] for name in ("data", "seed", "checkpoint_sha256")]
    known = cells[DENSE_VALIDATION].groupby(same).transform("first")
    missing = cells[DENSE_VALIDATION].isna() & known.notna()
    return cells.assign(**{DENSE_VALIDATION: cells[DENSE_VALIDATION].fillna(known)}, dense_validation_filled=missing)
