"""Run folders with the right seal and the wrong content, links that lead out, and folders that go while one writes."""

import hashlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from store.test_store import CELLS, META, TIMING, done, write_run

from sipp_bench.cli.commands import main
from sipp_bench.errors import StoreError
from sipp_bench.report.build import build_report
from sipp_bench.store.folder import Store, load_run
from sipp_bench.store.records import SEAL, sealed_json


def npz(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=True, **arrays)
    return buffer.getvalue()


def classes(count: int = 3, kind: str = "u1") -> Any:
    return np.zeros(count, dtype=kind)


def block(**arrays: Any) -> bytes:
    fine = {name: np.zeros((1, 2), dtype=np.float32) for name in ("epsilon", "error_S", "error_fresh")}
    return safetensors.numpy.save({f"fc1.weight/{name}": array for name, array in (fine | arrays).items()})


PREDICTIONS = {
    "junk": b"junk" * 30,
    "an array alone": npz(a=classes())[:40],
    "a pickle": npz(labels=np.array([{}, 1, 2], dtype=object), dense=classes(), pruned=classes()),
    "other names": npz(labels=classes(), dense=classes()),
    "other lengths": npz(labels=classes(3), dense=classes(4), pruned=classes(3)),
    "rows": npz(labels=classes(4).reshape(2, 2), dense=classes(4).reshape(2, 2), pruned=classes(4).reshape(2, 2)),
    "fractions": npz(labels=classes(), dense=classes(kind="f4"), pruned=classes()),
    "below zero": npz(labels=classes(), dense=classes(kind="i8") - 1, pruned=classes()),
    "classes without end": npz(labels=classes(), dense=classes(kind="u8") + 2**40, pruned=classes()),
    "nothing": npz(labels=classes(0), dense=classes(0), pruned=classes(0)),
}
BLOCKS = {
    "junk": b"junk" * 30,
    "other names": safetensors.numpy.save({"fc1.weight/epsilon": np.zeros((1, 2), dtype=np.float32)}),
    "other shapes": block(epsilon=np.zeros((3, 2), dtype=np.float32)),
    "three columns": block(epsilon=np.zeros((1, 3), dtype=np.float32)),
    "a number": block(epsilon=np.zeros((), dtype=np.float32)),
    "booleans": block(epsilon=np.zeros((1, 2), dtype=bool)),
}


@pytest.mark.parametrize(
    ("part", "suffix", "content"),
    [("predictions", "predictions.npz", content) for content in PREDICTIONS.values()]
    + [("blocks", "safetensors", content) for content in BLOCKS.values()],
    ids=[f"predictions-{name}" for name in PREDICTIONS] + [f"blocks-{name}" for name in BLOCKS],
)
def test_the_right_seal_and_the_wrong_content(tmp_path: Path, part: str, suffix: str, content: bytes) -> None:
    write_run(tmp_path)
    file = tmp_path / "cells" / f"{CELLS[0].id}.json"
    (tmp_path / "cells" / f"{CELLS[0].id}.{suffix}").write_bytes(content)
    described = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    cell = {key: value for key, value in json.loads(file.read_text()).items() if key != SEAL}
    file.write_text(sealed_json(cell | {part: described}))
    with pytest.raises(StoreError, match=f"{suffix} is missing, truncated or changed"):
        getattr(load_run(tmp_path), part)(CELLS[0].id)
    with pytest.raises(StoreError, match=f"{suffix} is missing, truncated or changed"):
        Store(tmp_path, META)


@pytest.mark.parametrize("link", ["report", "report/figures", "report/data", "report/explorer"])
def test_a_report_writes_nothing_through_links_in_a_run_folder(
    tmp_path: Path, link: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run, outside = tmp_path / "run", tmp_path / "outside"
    write_run(run)
    outside.mkdir()
    (run / link).parent.mkdir(exist_ok=True)
    (run / link).symlink_to(outside)
    with pytest.raises(StoreError, match="is a link that leads out of the folder"):
        build_report([run], run / "report")
    with pytest.raises(SystemExit) as caught:
        main(["report", str(run)])
    assert caught.value.code == 2
    assert "leads out" in capsys.readouterr().err
    assert list(outside.iterdir()) == []


def test_a_run_is_refused_before_it_measures_where_its_report_leads_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "report").symlink_to(tmp_path / "outside")
    with pytest.raises(SystemExit) as caught:
        main(["run", "quick", "-o", str(tmp_path / "run")])
    assert caught.value.code == 2
    assert "report is a link that leads out" in capsys.readouterr().err
    assert [entry.name for entry in (tmp_path / "run").iterdir()] == ["report"]


GOING: dict[str, tuple[Callable[[Path], object], str]] = {
    "deleted": (shutil.rmtree, "was deleted, moved or replaced"),
    "moved": (lambda run: run.rename(run.with_name("moved")), "was deleted, moved or replaced"),
    "replaced": (lambda run: (shutil.rmtree(run), write_run(run)), "was deleted, moved or replaced"),
    "cells deleted": (lambda run: shutil.rmtree(run / "cells"), "1 finished cells, the first .* were deleted"),
}


@pytest.mark.parametrize("what", GOING)
@pytest.mark.parametrize("more", [0, 1])
def test_a_folder_that_goes_while_it_is_written_is_no_finished_run(tmp_path: Path, what: str, more: int) -> None:
    go, sentence = GOING[what]

    def write() -> None:
        with Store(tmp_path / "run", META) as store:
            store.write_cell(CELLS[0], done(), TIMING)
            go(tmp_path / "run")
            for cell in CELLS[1 : 1 + more]:
                store.write_cell(cell, done(), TIMING)

    with pytest.raises(StoreError, match=sentence):
        write()


def test_a_lock_that_is_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / ".lock").mkdir()
    with pytest.raises(StoreError, match="it is a folder"):
        Store(tmp_path, META)


@pytest.mark.parametrize("key", ["method_name", "accuracy", "weights", "kept", "achieved_keep"])
def test_a_finished_cell_without_its_result_is_no_report(tmp_path: Path, key: str) -> None:
    run = Path(shutil.copytree(Path(__file__).parents[1] / "fixtures" / "runs" / "62a8637", tmp_path / "run"))
    file = min(file for file in run.glob("cells/*.json") if not file.name.endswith(".timing.json"))
    content = {name: value for name, value in json.loads(file.read_text()).items() if name not in (SEAL, key)}
    file.write_text(sealed_json(content))
    with pytest.raises(StoreError, match=f"{file.stem} of the run run has no {key}. Delete its files"):
        build_report([run], tmp_path / "report")
    assert not (tmp_path / "report").exists()
