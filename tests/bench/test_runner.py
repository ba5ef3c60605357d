"""Runs: interrupted, killed, failing and resumed, they end with the files of an undisturbed one."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from run_folders import results

import sipp_bench as sb
from sipp_bench.bench import measuring, runner
from sipp_bench.bench.runner import run
from sipp_bench.bench.suite import Suite, parse_suite
from sipp_bench.errors import StoreError
from sipp_bench.report.collect import collect
from sipp_bench.store.folder import Run, load_run
from sipp_bench.store.records import SEAL, read_json, sealed_json
from sipp_bench.store.summary import summary
from sipp_bench.zoo import data, training

SUITE = """
name = "tiny"
seeds = [0, 1]
keep = [1.0, 0.3, 0.05]
points = 32

[[target]]
network = "lenet-300-100"
data = "digits"

[[method]]
name = "sipp-det"

[[method]]
name = "sipp-hybrid"

[[method]]
name = "random"
"""

COMMAND = """
import sys
from pathlib import Path
from sipp_bench.bench.runner import run
from sipp_bench.bench.suite import load_suite
run(load_suite(sys.argv[1]), sys.argv[2], cache_dir=Path(sys.argv[3]), progress=False)
"""


@pytest.fixture(scope="module")
def suite() -> Suite:
    return parse_suite(SUITE, "tiny.toml")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def undisturbed(suite: Suite, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run(suite, tmp_path_factory.mktemp("undisturbed") / "run", cache_dir=cache, progress=False)


def test_every_cell_is_measured(suite: Suite, undisturbed: Run) -> None:
    cells = undisturbed.cells
    assert list(cells["id"]) == [cell.id for cell in suite.cells()]
    assert set(cells["status"]) == {"done"}
    retraining = ["pruned_accuracy", "pruned_loss", "control_accuracy", "control_loss", "retrained_sha256"]
    asked = {
        *("corrupted_accuracy", "dense_corrupted_accuracy", "excess_error", "corruption_errors", "excess_errors"),
        *("split_percentile", "split_accuracies", "twin_accuracy", "twin_agreement"),
    }
    assert set(cells.columns[cells.isna().any()]) == {"error", "delta", *retraining, *asked}
    assert set(cells["method_name"][cells["delta"].isna()]) == {"random"}
    whole = cells[cells["keep"] == 1]
    assert list(whole["accuracy"]) == list(whole["dense_accuracy"])
    assert list(whole["multiply_adds"]) == list(whole["dense_multiply_adds"])
    assert (whole["accuracy"] > 0.9).all()
    assert (cells["achieved_keep"] == cells["kept"] / cells["weights"]).all()
    assert (cells["num_points"] == 32).all()
    assert cells.groupby("seed")["checkpoint_sha256"].nunique().tolist() == [1, 1]
    assert cells["checkpoint_sha256"].nunique() == 2
    times = undisturbed.timings.select_dtypes("float").drop(columns="protocol_seconds")
    assert (times >= 0).all(axis=None)
    assert set(undisturbed.layers["layer"]) == {"fc1.weight", "fc2.weight", "fc3.weight"}
    kept = undisturbed.layers.groupby("id", sort=False)["kept"].sum()
    assert kept.to_dict() == cells.set_index("id")["kept"].to_dict()


def test_measures_beyond_accuracy_are_those_of_the_pruned_network(suite: Suite, undisturbed: Run, cache: Path) -> None:
    cells = undisturbed.cells
    whole = cells[cells["keep"] == 1]
    assert set(whole["agreement"]) == {1}
    assert set(whole["flips"]) == set(whole["loss_gap"]) == {0}
    assert set(whole["compression_ratio"]) == set(whole["theoretical_speedup"]) == {1}
    assert list(whole["calibration_error"]) == list(whole["dense_calibration_error"])
    assert (cells["top5_accuracy"] >= cells["accuracy"]).all()
    assert (cells["worst_class_accuracy"] == cells["class_accuracies"].map(min)).all()
    assert (cells["theoretical_speedup"] == cells["dense_multiply_adds"] / cells["multiply_adds"]).all()
    dataset = data.load("digits", seed=1)
    model = training.trained_model("lenet-300-100", dataset, seed=1, cache_dir=cache).model
    points = measuring._draw(dataset.points, 32, 1).images
    pruned = sb.prune(model, points, method="sipp-det", keep=0.3)
    with torch.no_grad():
        before, after = (network(dataset.test.images).argmax(1) for network in (model.eval(), pruned.model.eval()))
    row = cells.query("method == 'sipp-det' and keep == 0.3 and seed == 1").iloc[0]
    assert row["mask_sha256"] == pruned.mask_sha256
    assert row["flips"] == int((before != after).sum()) > 0
    assert row["agreement"] == 1 - row["flips"] / len(before)
    predicted = undisturbed.predictions(row["id"])
    assert predicted.keys() == {"labels", "dense", "pruned"}
    assert predicted["labels"].tolist() == dataset.test.labels.tolist()
    assert (predicted["dense"].tolist(), predicted["pruned"].tolist()) == (before.tolist(), after.tolist())
    right = after == dataset.test.labels
    by_class = [float(right[dataset.test.labels == label].double().mean()) for label in range(10)]
    assert row["class_accuracies"] == pytest.approx(by_class, rel=1e-12)


def test_checks_cover_the_points_looked_at_and_fresh_ones(undisturbed: Run) -> None:
    checks = undisturbed.checks
    assert set(checks["method"]) == {"sipp-det", "sipp-hybrid"}
    assert set(checks["on"]) == {"S", "fresh"}
    assert set(checks["claim"][checks["method"] == "sipp-det"]) == {"C2"}
    on_sample = checks[(checks["method"] == "sipp-det") & (checks["on"] == "S")]
    assert (on_sample["exceeding"] == 0).all()
    assert not (checks["verdict"] == "violated").any()
    assert set(checks["points"]) == {32}
    det = undisturbed.cells.query("method == 'sipp-det' and keep == 0.3 and seed == 0")["id"].item()
    arrays = undisturbed.blocks(det)["fc1.weight"]
    assert {array.shape for array in arrays.values()} == {(300, 2)}
    assert undisturbed.blocks(det.replace("sipp-det", "random")) == {}


def test_only_the_checks_that_the_suite_asks_for(cache: Path, tmp_path: Path) -> None:
    suite = parse_suite("checks = ['C2']\n" + SUITE.replace("[0, 1]", "[0]"), "tiny.toml")
    checks = run(suite, tmp_path, cache_dir=cache, progress=False).checks
    assert set(checks["claim"]) == {"C2"}
    assert set(checks["method"]) == {"sipp-det"}


def test_meta_says_what_was_run_on_what(suite: Suite, undisturbed: Run) -> None:
    meta = undisturbed.meta
    assert meta["suite"] == {"name": "tiny", "text": SUITE, "sha256": suite.sha256}
    assert meta["seeds"] == [0, 1]
    assert meta["data"] == {"digits": {"sha256": data.load("digits").sha256}}
    hashes = {entry["sha256"] for entry in meta["checkpoints"].values()}
    assert hashes == set(undisturbed.cells["checkpoint_sha256"])
    assert {"machine", "versions", "commit", "dirty", "started"} <= meta.keys()


def test_no_time_path_or_machine_in_a_cell(undisturbed: Run) -> None:
    for content in results(undisturbed.path).values():
        for word in (b"seconds", str(Path.home()).encode(), str(undisturbed.path).encode()):
            assert word not in content


def test_a_second_run_gives_the_same_bytes(suite: Suite, cache: Path, undisturbed: Run, tmp_path: Path) -> None:
    torch.rand(7)  # another state of the global generator must not matter
    run(suite, tmp_path / "run", cache_dir=cache, progress=False)
    assert results(tmp_path / "run") == results(undisturbed.path)


def test_a_run_in_pieces_gives_the_same_bytes(suite: Suite, cache: Path, undisturbed: Run, tmp_path: Path) -> None:
    run(suite, tmp_path / "run", cache_dir=cache, progress=False)
    removed = sorted((tmp_path / "run" / "cells").glob("*k0.3.json"))[::2]
    for file in removed:
        file.unlink()
    run(suite, tmp_path / "run", cache_dir=cache, progress=False)
    assert len(removed) > 1
    assert results(tmp_path / "run") == results(undisturbed.path)


def test_results_of_a_run_under_way_are_its_whole_files(undisturbed: Run, tmp_path: Path) -> None:
    """The temporary file is a link to nothing: to read it fails, as it does when it is renamed after it was listed."""
    folder = Path(shutil.copytree(undisturbed.path, tmp_path / "run"))
    (folder / "cells" / ".one.json.x1y2z3.tmp").symlink_to("renamed")
    assert results(folder) == results(undisturbed.path)


def test_kill_9_at_any_moment_and_run_again(cache: Path, undisturbed: Run, tmp_path: Path) -> None:
    suite_file = tmp_path / "tiny.toml"
    suite_file.write_bytes(SUITE.encode())
    folder = tmp_path / "run"
    command = [sys.executable, "-c", COMMAND, str(suite_file), str(folder), str(cache)]
    chance = random.Random(0)
    whole = len(results(undisturbed.path))
    killed_with: list[int] = []
    while len(killed_with) < 3:
        process = subprocess.Popen(command, cwd=Path(runner.__file__).parents[2])
        target = len(results(folder)) + chance.randint(1, 4)
        while process.poll() is None and len(results(folder)) < target:
            time.sleep(0.002)
        time.sleep(chance.random() * 0.05)
        process.send_signal(signal.SIGKILL)
        assert process.wait() in (0, -signal.SIGKILL)
        load_run(folder)  # whatever is there is whole
        if len(results(folder)) < whole:
            killed_with.append(len(results(folder)))
        else:  # on a busy machine the signal may come after the last cell: once more from the start
            shutil.rmtree(folder)
            killed_with.clear()
    assert killed_with == sorted(killed_with)
    subprocess.run(command, check=True, cwd=Path(runner.__file__).parents[2])
    assert results(folder) == results(undisturbed.path)
    assert not [file for file in (folder / "cells").iterdir() if file.suffix == ".tmp"]


def counting(monkeypatch: pytest.MonkeyPatch, *, failing: Callable[..., bool]) -> list[str]:
    """Have `sb.fit` note the methods it is called with, and raise for some."""
    fit, calls = sb.fit, list[str]()

    def noted(*arguments: Any, **options: Any) -> Any:
        calls.append(options["method"])
        if failing(**options):
            raise RuntimeError(f"cannot read {Path.home()}/secret/file.bin: no luck")
        return fit(*arguments, **options)

    monkeypatch.setattr(measuring, "fit", noted)
    return calls


def test_finished_cells_are_not_fitted_again(
    suite: Suite, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = counting(monkeypatch, failing=lambda **options: False)
    run(suite, tmp_path, cache_dir=cache, progress=False)
    assert calls == ["sipp-det", "sipp-hybrid", "random"] * 2, "once a fit, not once a keep ratio"
    calls.clear()
    run(suite, tmp_path, cache_dir=cache, progress=False)
    assert calls == []
    next((tmp_path / "cells").glob("*random--s1--k0.3.json")).unlink()
    run(suite, tmp_path, cache_dir=cache, progress=False)
    assert calls == ["random"]


def test_a_failing_fit_fails_its_cells_and_no_other(
    suite: Suite, cache: Path, undisturbed: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        counting(patch, failing=lambda method, **options: method == "sipp-hybrid")
        broken = run(suite, tmp_path, cache_dir=cache, progress=False)
    failed = broken.cells[broken.cells["status"] == "failed"]
    assert set(failed["method"]) == {"sipp-hybrid"}
    assert len(failed) == 6
    assert len(broken.cells) == 18
    assert set(failed["error"]) == {"RuntimeError: cannot read file.bin: no luck"}, "without the path"
    trace = (tmp_path / "cells" / f"{failed['id'].iloc[0]}.traceback.txt").read_text()
    assert "in noted" in trace
    assert "6 cells failed" in summary(broken)
    repaired = run(suite, tmp_path, cache_dir=cache, progress=False)
    assert set(repaired.cells["status"]) == {"done"}
    assert results(tmp_path) == results(undisturbed.path)
    assert not list(tmp_path.glob("cells/*.traceback.txt"))


def test_a_failing_cell_fails_alone(suite: Suite, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prune = sb.Fitted.prune

    def sometimes(self: sb.Fitted, keep: float, seed: int = 0) -> sb.Pruned:
        if keep == 0.3 and seed == 1:
            raise MemoryError("too big")
        return prune(self, keep, seed)

    monkeypatch.setattr(sb.Fitted, "prune", sometimes)
    cells = run(suite, tmp_path, cache_dir=cache, progress=False).cells
    failed = cells[cells["status"] == "failed"]
    assert list(failed["keep"]) == [0.3] * 3
    assert set(failed["seed"]) == {1}
    assert set(failed["error"]) == {"MemoryError: too big"}


def test_failing_training_fails_its_target_and_no_other(
    suite: Suite, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained_model = training.trained_model

    def sometimes(network: str, dataset: data.DataSet, **options: Any) -> training.Trained:
        if dataset.seed == 0:
            raise ValueError("the loss is NaN")
        return trained_model(network, dataset, **options)

    monkeypatch.setattr(training, "trained_model", sometimes)
    cells = run(suite, tmp_path, cache_dir=cache, progress=False).cells
    assert cells.groupby("seed")["status"].unique().map(list).to_dict() == {0: ["failed"], 1: ["done"]}


def test_interruption_stops_at_once(suite: Suite, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sb.Fitted, "prune", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(suite, tmp_path, cache_dir=cache, progress=False)
    assert len(load_run(tmp_path).cells) == 0
    assert len(run(suite, tmp_path, cache_dir=cache, progress=False).cells) == 18, "the lock went with it"


def test_another_checkpoint_is_refused(suite: Suite, cache: Path, undisturbed: Run, tmp_path: Path) -> None:
    run(suite, tmp_path, cache_dir=cache, progress=False)
    meta = read_json(tmp_path / "run.json")
    for entry in meta["checkpoints"].values():
        entry["sha256"] = "another"
    (tmp_path / "run.json").write_text(sealed_json(meta))
    next((tmp_path / "cells").glob("*random--s0--k0.3.json")).unlink()
    with pytest.raises(StoreError, match="is not what it was"):
        run(suite, tmp_path, cache_dir=cache, progress=False)


def test_global_state_is_left_as_it_was(suite: Suite, cache: Path, tmp_path: Path) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state(), torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
    run(suite, tmp_path, cache_dir=cache, progress=False)
    after = torch.get_rng_state(), torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


def test_points_are_a_seeded_draw_not_the_first_rows() -> None:
    part = data.load("mnist-digits").points  # sorted by label: the first rows are zeros
    chosen, again, other = (measuring._draw(part, 32, seed) for seed in (0, 0, 1))
    assert len(chosen) == len(chosen.indices.unique()) == 32
    assert len(chosen.labels.unique()) > 5
    assert torch.equal(chosen.indices, again.indices)
    assert not torch.equal(chosen.indices, other.indices)
    assert set(part.indices.tolist()) >= set(chosen.indices.tolist())
    assert len(measuring._draw(part, 10**6, 0)) == len(part)


def test_summary_has_dense_accuracy_methods_and_where_the_results_are(undisturbed: Run) -> None:
    text = summary(undisturbed)
    assert "lenet-300-100 on digits: test accuracy, mean of 2 seeds. Dense 9" in text
    for word in ("sipp-det", "sipp-hybrid", "random", "0.05", "C2", "18 of 18 cells done, 0 failed"):
        assert word in text
    assert text.endswith(f"Results: {undisturbed.path}")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cannot read /home/a b/c.bin: no", "cannot read a b/c.bin: no"),
        ("File '/home/me/x/y.py', line 3", "File 'y.py', line 3"),
        ("rate 3/4 and a/b stay", "rate 3/4 and a/b stay"),
        (r"C:\Users\me\x.npy", "x.npy"),
    ],
)
def test_paths_are_cut(text: str, expected: str) -> None:
    assert measuring._without_paths(text) == expected


def test_cells_without_retraining_add_nothing_but_measures_to_the_first_version(undisturbed: Run) -> None:
    cell = json.loads(next(undisturbed.path.glob("cells/*sipp-det--s0--k0.3.json")).read_text())
    scores = {"accuracy", "loss"}
    measures = {
        *("top5_accuracy", "dense_top5_accuracy", "agreement", "flips", "class_accuracies", "class_loss_changes"),
        *("worst_class", "worst_class_accuracy", "loss_gap", "calibration_error", "dense_calibration_error"),
        *("compression_ratio", "theoretical_speedup", "file_bytes_dense", "file_bytes_csr", "file_bytes_bitmap"),
        *("predictions", "dense_validation_accuracy"),
    }
    assert set(cell) - measures - {SEAL} == {
        *("format", "id", "network", "data", "seed", "method", "keep", "blocks", "status", "error", "method_name"),
        *("options", "weights", "requested", "kept", "achieved_keep", "multiply_adds", "dense_multiply_adds"),
        *("mask_sha256", "checkpoint_sha256", "num_points", "delta", "guarantee", "skipped", "layers", "checks"),
        *(f"{which}{score}" for which in ("", "dense_", "validation_") for score in scores),
    }
    assert measures <= set(cell)
    assert cell["format"] == 1
    cells = collect({"old": undisturbed}).cells
    assert cells["pruned_accuracy"].isna().all()
    assert cells["accuracy"].notna().all()
