"""Weights in parts: every row once, in order, and no memory beside them that nobody uses."""

from types import SimpleNamespace

import numpy as np
import pytest

from sipp_bench.machine import parts


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (7, parts.PART), (7, 3 * parts.PART), (4000, 100), (5, 0)])
def test_parts_are_whole_rows_in_order(rows: int, columns: int) -> None:
    found = list(parts.row_parts(rows, columns))
    assert [row for part in found for row in range(rows)[part]] == list(range(rows))
    assert all((part.stop - part.start) * columns <= parts.PART or part.stop - part.start == 1 for part in found)


def test_memory_is_reserved_once_and_not_for_small_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """It took 5 ms for each small weight where torch's algorithms were deterministic, as they are in a run."""
    asked = []
    monkeypatch.setattr(parts, "np", SimpleNamespace(empty=lambda *size, **_: asked.append(size), uint8=np.uint8))
    parts._keep_freed_memory.cache_clear()
    for _ in range(3):
        list(parts.row_parts(10, 10))
    assert asked == []
    for _ in range(3):
        list(parts.row_parts(4000, 100))
    assert len(asked) == 1
    parts._keep_freed_memory.cache_clear()
