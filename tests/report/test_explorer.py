"""The explorer's files: where each model comes from, what flipped, and which images belong to it."""

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from report.runs import MadeUpRun, made_up_run, predict, retrain, store

from sipp_bench.report import lineage, thumbnails
from sipp_bench.report.collect import collect
from sipp_bench.report.explorer import explorer_files
from sipp_bench.report.models import Models
from sipp_bench.store.folder import load_run
from sipp_bench.zoo import data

PRUNED = "run/lenet-5/digits/s0/magnitude/k0.2"


def small(seeds: tuple[int, ...] = (0,)) -> MadeUpRun:
    methods = {"sipp-det": "sipp-det", "magnitude": "magnitude"}
    run = made_up_run(methods, targets=[("lenet-5", "digits")], keeps=(0.5, 0.2), seeds=seeds)
    predict(run, data.load("digits", seed=0).test.labels.numpy())
    return run


def gathered(run: MadeUpRun, images: bool = True) -> tuple[Models, dict[str, bytes]]:
    return lineage.gather_models(collect({"run": run}), images)


def by_id(models: Models) -> dict[str, Any]:
    found = {model.id: model for model in models.models}
    assert len(found) == len(models.models)
    return found


def test_every_model_has_its_base_its_operation_and_its_measures() -> None:
    run = small()
    models = by_id(gathered(run)[0])
    assert len(models) == 5
    pruned, dense = models[PRUNED], models["run/lenet-5/digits/s0/dense"]
    cell = run.cells[(run.cells["method"] == "magnitude") & (run.cells["keep"] == 0.2)].iloc[0]
    assert (pruned.base, dense.base) == (dense.id, None)
    assert (pruned.operation.name, dense.operation.name) == ("prune", "train")
    assert pruned.operation.parameters["keep"] == 0.2
    for name in ("accuracy", "loss", "agreement", "compression", "theoretical_speedup", "fit_seconds"):
        expected = {"compression": 1 / cell["achieved_keep"], "theoretical_speedup": None}.get(name, cell.get(name))
        expected = run.timings.set_index("id").at[cell["id"], name] if name == "fit_seconds" else expected
        assert pruned.metrics.get(name) == (expected if expected is None else pytest.approx(expected))
    assert dense.metrics["accuracy"] == pytest.approx(cell["dense_accuracy"])
    classes = run.classes[cell["id"]]
    of_seven = classes["labels"] == 7
    assert dense.class_accuracies[7] == pytest.approx((classes["dense"] == 7)[of_seven].mean())
    layers = run.layers[run.layers["id"] == cell["id"]]
    assert [layer.kept for layer in pruned.layers] == layers["kept"].tolist()


def test_flips_are_those_of_the_predictions() -> None:
    run = small()
    models, _ = gathered(run)
    pruned = by_id(models)[PRUNED]
    family = models.families[pruned.family]
    classes = run.classes[run.cells["id"][(run.cells["method"] == "magnitude") & (run.cells["keep"] == 0.2)].iloc[0]]
    before, after = classes["dense"], classes["pruned"]
    assert pruned.flips.count == (before != after).sum()
    for start, end, count in pruned.flips.pairs:
        assert count == ((before == start) & (after == end)).sum() > 0
    assert [count for *_, count in pruned.flips.pairs] == sorted((c for *_, c in pruned.flips.pairs), reverse=True)
    assert pruned.flips.shown == after[family.positions].tolist()
    assert family.dense == before[family.positions].tolist()
    assert family.labels == classes["labels"][family.positions].tolist()


def test_images_are_the_ones_that_flip_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thumbnails, "SHOWN", 7)
    run = small()
    models, sheets = gathered(run)
    family = models.families["run/lenet-5/digits/s0"]
    counts = sum((each["pruned"] != each["dense"]).astype(int) for each in run.classes.values())
    assert len(family.positions) == 7
    assert sorted(counts[family.positions]) == sorted(counts)[-7:]
    images = data.load("digits", seed=0).test.images
    sheet = np.asarray(Image.open(BytesIO(sheets[family.sheet])))
    for place, position in enumerate(family.positions):
        tile = sheet[:8, 8 * place : 8 * place + 8]
        np.testing.assert_array_equal(tile, (255 * images[position, 0]).round().numpy())


def test_images_of_other_data_are_not_shown() -> None:
    run = small()
    run.meta["data"] = {"digits": {"sha256": "0" * 64}}
    models, sheets = gathered(run)
    assert sheets == {}
    assert "is not the data that the run had" in models.families["run/lenet-5/digits/s0"].note
    del run.meta["data"]
    for classes in run.classes.values():
        classes["labels"] = np.roll(classes["labels"], 1)
    assert gathered(run)[1] == {}


def test_images_can_be_left_out() -> None:
    models, sheets = gathered(small(), images=False)
    family = models.families["run/lenet-5/digits/s0"]
    assert (sheets, family.sheet) == ({}, None)
    assert family.positions, "the points are still listed"


def test_large_images_in_colour_are_made_small() -> None:
    pixels = np.random.default_rng(0).integers(256, size=(21, 3, 96, 64), dtype=np.uint8)
    sheet = thumbnails._sheet(pixels)
    assert (sheet.width, sheet.height) == (32, 48)
    assert Image.open(BytesIO(sheet.png)).size == (20 * 32, 2 * 48)


def test_runs_without_predictions_say_so() -> None:
    run = small()
    run.classes.clear()
    models, sheets = gathered(run)
    family = models.families["run/lenet-5/digits/s0"]
    assert sheets == {}
    assert "stored no predictions" in family.note
    assert by_id(models)[PRUNED].flips is None


def test_retrained_models_come_from_pruned_ones() -> None:
    run = small()
    retrain(run)
    models = by_id(gathered(run)[0])
    pruned, retrained = models[PRUNED], models[f"{PRUNED}/retrained"]
    assert retrained.base == pruned.id
    assert (pruned.operation.name, retrained.operation.name) == ("prune", "retrain")
    cell = run.cells[(run.cells["method"] == "magnitude") & (run.cells["keep"] == 0.2)].iloc[0]
    assert (pruned.metrics["accuracy"], retrained.metrics["accuracy"]) == (cell["pruned_accuracy"], 0.9)
    classes = run.classes[cell["id"]]
    assert retrained.flips.count == (classes["pruned"] != classes["retrained"]).sum()


def test_a_chain_over_the_suite_prunes_what_it_retrained_before() -> None:
    run = small()
    retrain(run)
    run.meta["suite"]["text"] = 'protocol = "cascade"\n[protocol_options]\nsteps = "suite"\n'
    models = by_id(gathered(run)[0])
    half = "run/lenet-5/digits/s0/magnitude/k0.5"
    assert models[half].base == "run/lenet-5/digits/s0/dense"
    assert models[PRUNED].base == f"{half}/retrained"
    of_cell = {
        cell["keep"]: run.classes[cell["id"]] for cell in run.cells.to_dict("records") if cell["method"] == "magnitude"
    }
    assert models[PRUNED].flips.count == (of_cell[0.5]["retrained"] != of_cell[0.2]["pruned"]).sum()


def test_files_are_whole_and_harmless(tmp_path: Path) -> None:
    run = small()
    run.cells["network"] = "</script><script>alert(1)</script>"
    run.cells["loss"] = np.inf
    files = explorer_files(collect({"<b>": run}), images=True)
    models = Models.model_validate_json(str(files["models.json"]))
    assert models.models[1].network == "</script><script>alert(1)</script>"
    assert models.models[1].metrics["loss"] is None
    script = str(files["data.js"])
    assert "<" not in script
    content = json.loads(script.removeprefix("window.SIPP_BENCH = ").rstrip(";\n"))
    assert content["models"] == json.loads(str(files["models.json"]))["models"]
    assert set(content["styles"]) == {"sipp-det", "magnitude"}
    schema = json.loads(str(files["models.schema.json"]))
    assert {"base", "operation", "metrics"} <= set(schema["$defs"]["Model"]["required"])


def test_stored_runs_give_the_same_models(tmp_path: Path) -> None:
    run = small()
    read = load_run(store(run, tmp_path / "run"))
    one, other = (lineage.gather_models(collect({"run": each}), False)[0] for each in (run, read))
    assert [model.flips for model in one.models] == [model.flips for model in other.models]
    assert one.families == other.families
