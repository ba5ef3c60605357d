"""Run folders have the keys that the published schemas say, no others, and those of earlier versions stay readable."""

import json
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import sipp_bench as sb
from sipp_bench.bench.runner import run
from sipp_bench.bench.suite import parse_suite
from sipp_bench.bench.suite_tables import Target
from sipp_bench.compare import compare
from sipp_bench.store.folder import load_run
from sipp_bench.store.records import FORMAT
from sipp_bench.zoo.training import Recipe

SCHEMAS = {
    name: json.loads((resources.files("sipp_bench.store") / "schemas" / f"{name}.json").read_text())
    for name in ("run", "cell", "timing")
}
FIXTURES = sorted((Path(__file__).parents[1] / "fixtures" / "runs").iterdir())
OLD = FIXTURES[0].with_name("d9d3f84")
BASELINE = Path(__file__).parents[2] / "reports" / "baselines" / "regression"
# Of protocols that retrain, and what layers said before it had another name.
RETRAINING = {f"{which}_{score}" for which in ("pruned", "control") for score in
              ("accuracy", "loss", "validation_accuracy", "validation_loss")} | {"retrained_sha256"}  # fmt: skip
MEASURES = """
[measures]
corruption_images = 2
latency_repeats = 1
random_splits = 1
twin = true
"""
ASKED = {"corrupted_accuracy", "dense_corrupted_accuracy", "excess_error", "corruption_errors", "excess_errors",
         "split_percentile", "split_accuracies", "twin_accuracy", "twin_agreement"}  # fmt: skip
SUITE = """
name = "tiny"
seeds = [0]
keep = [0.1]
points = {points}
protocol = "{protocol}"
{measures}
[[target]]
network = "lenet-300-100"
data = "digits"
[[method]]
name = "sipp-hybrid"
weights = "uniform"
[[method]]
name = "snip"
"""


def files(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every JSON file of a run, with the name of its schema."""
    yield "run", json.loads((folder / "run.json").read_text())
    for file in sorted(folder.glob("cells/*.json")):
        yield ("timing" if file.name.endswith(".timing.json") else "cell"), json.loads(file.read_text())


def check(name: str, content: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator(SCHEMAS[name]).validate(content)


@pytest.fixture(scope="module")
def today(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Runs of the current code: one-shot, a lottery with its control; in both, snip fails in the second."""
    cache, folders, fit = tmp_path_factory.mktemp("cache"), [], sb.fit

    def failing(*arguments: Any, **options: Any) -> sb.Fitted:
        if options["method"] == "snip" and folders:
            raise ValueError("planted")
        return fit(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sipp_bench.bench.measuring.fit", failing)
        patch.setattr(Target, "training_recipe", lambda _: Recipe(epochs=1, batch_size=50, learning_rate=0.05))
        patch.setattr(
            "sipp_bench.bench.measuring.sample_size", lambda *_, **__: 1000
        )  # more than the 180 that there are
        for protocol, measures, points in (("one-shot", MEASURES, "8"), ("lottery", "", '"sample-size"')):
            text = SUITE.format(protocol=protocol, measures=measures, points=points)
            suite = parse_suite(text, f"{protocol}.toml")
            path = tmp_path_factory.mktemp(protocol) / "run"
            folders.append(run(suite, path, cache_dir=cache, progress=False).path)
    return folders


@pytest.mark.parametrize("folder", FIXTURES, ids=lambda path: path.name)
def test_runs_of_earlier_versions_are_read(folder: Path) -> None:
    for name, content in files(folder):
        check(name, content)
    loaded = load_run(folder)
    assert list(loaded.cells["id"]) == loaded.meta["cells"]
    assert loaded.meta["commit"].startswith(folder.name.partition("-")[0])
    done = loaded.cells[loaded.cells["status"] == "done"]
    failed = loaded.cells[loaded.cells["status"] == "failed"]
    assert len(done) == (1 if folder.name == "a707536" else 2)
    assert failed["error"].str.contains("planted").all()
    needed = [
        "accuracy",
        "dense_accuracy",
        "validation_accuracy",
        "kept",
        "achieved_keep",
        "multiply_adds",
        "num_points",
    ]
    assert done[needed].notna().all(axis=None)
    for table in (loaded.cells, loaded.layers, loaded.checks):
        assert (table["keep"] == 0.1).all()
    assert len(loaded.layers) == 3 * len(done)
    assert set(loaded.checks["verdict"]) == {"holds", "useless", "measured"}
    (bounded,) = done["id"][done["method_name"] == "sipp-hybrid"]
    assert loaded.blocks(bounded)["fc3.weight"]["epsilon"].shape == (10, 2)
    assert compare(folder, folder).exit_code == 0


def test_results_did_not_change_since_the_first_version() -> None:
    """What a version wrote, the next wrote as well: the same pruned weights, by cell."""
    runs = [load_run(folder).cells for folder in FIXTURES]
    masks = [dict(zip(cells["id"], cells["mask_sha256"], strict=True)) for cells in runs]
    for cell in masks[0]:
        assert len({each[cell] for each in masks if each[cell] is not None}) == 1


def test_old_and_new_runs_compare(today: list[Path]) -> None:
    comparison = compare(OLD, today[0])
    assert {finding.kind for finding in comparison.findings} == {"cell", "accuracy", "timing"}
    timings = [finding for finding in comparison.findings if finding.kind == "timing"]
    assert {finding.unit for finding in timings} <= {"s", None}, "no reference in the old one"
    assert not {finding.status for finding in timings} & {"regression", "better"}


def test_runs_of_today_have_the_keys_of_the_schemas_and_no_others(today: list[Path]) -> None:
    keys: dict[str, set[str]] = {"run": set(), "cell": set(), "timing": set(), "layer": set(), "check": set()}
    for folder in today:
        for name, content in files(folder):
            check(name, content)
            keys[name] |= content.keys()
            if name == "cell":
                keys["layer"] |= {key for row in content.get("layers", ()) for key in row}
                keys["check"] |= {key for row in content.get("checks", ()) for key in row}
    cell = SCHEMAS["cell"]["properties"]
    properties = {name: schema["properties"] for name, schema in SCHEMAS.items()}
    properties |= {"layer": cell["layers"]["items"]["properties"], "check": cell["checks"]["items"]["properties"]}
    for name, found in keys.items():
        assert found == {key for key, value in properties[name].items() if not value.get("deprecated")}, name


def test_every_cell_of_today_is_complete(today: list[Path]) -> None:
    for folder in today:
        cells = [content for name, content in files(folder) if name == "cell"]
        wanted = SCHEMAS["cell"]["properties"].keys() - (RETRAINING if folder == today[0] else ASKED)
        assert {content["status"] for content in cells} == ({"done"} if folder == today[0] else {"done", "failed"})
        for content in cells:
            expected = (
                wanted
                if content["status"] == "done"
                else {
                    *SCHEMAS["cell"]["required"],
                    *("predictions", "content_sha256"),
                }
            )
            assert content.keys() == expected


def test_the_baseline_has_the_format() -> None:
    for name, content in files(BASELINE):
        check(name, content)


Change = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("cell", lambda cell: cell.update(sparsity=0.9)),
        ("cell", lambda cell: cell["layers"][0].update(sparsity=0.9)),
        ("cell", lambda cell: cell["checks"][0].pop("bound_max")),
        ("cell", lambda cell: cell.pop("mask_sha256")),
        ("cell", lambda cell: cell.update(accuracy="0.9")),
        ("cell", lambda cell: cell.update(format=FORMAT + 1)),
        ("cell", lambda cell: cell.update(status="failed")),
        ("timing", lambda timing: timing.update(host="name")),
        ("timing", lambda timing: timing.update(fit_seconds=None)),
        ("run", lambda meta: meta["machine"].update(host="name")),
        ("run", lambda meta: meta.pop("resumed")),
    ],
)
def test_what_drifts_is_found(name: str, change: Change) -> None:
    content = next(c for n, c in files(OLD) if n == name and c.get("checks") != [])
    check(name, content)
    change(content)
    with pytest.raises(jsonschema.ValidationError):
        check(name, content)


def test_the_schemas_are_schemas_of_this_format() -> None:
    for schema in SCHEMAS.values():
        jsonschema.Draft202012Validator.check_schema(schema)
        assert f"format {FORMAT}" in schema["title"]
    assert SCHEMAS["cell"]["properties"]["format"] == SCHEMAS["run"]["properties"]["format"] == {"const": FORMAT}
