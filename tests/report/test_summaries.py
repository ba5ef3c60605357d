"""Every number of the report against a computation of its own."""

import math

import pandas as pd
import pytest
from report.runs import MadeUpRun, made_up_run

from sipp_bench.report import layers, prose, summaries, tables
from sipp_bench.report.collect import Target, collect


def target_of(run: MadeUpRun) -> Target:
    return next(collect({"run": run}).targets())


@pytest.fixture
def run() -> MadeUpRun:
    return made_up_run()


def test_layer_table_has_requested_and_achieved(run: MadeUpRun) -> None:
    table = layers.layer_table(target_of(run))
    rows = run.layers[(run.layers["method"] == "magnitude") & (run.layers["layer"] == "fc1.weight")]
    rows = rows[rows["keep"] == 0.05]
    requested, kept = (100 * (rows[name] / rows["weights"]).mean() for name in ("requested", "kept"))
    row = next(row for row in table.rows if row[:2] == ["magnitude", "fc1.weight"])
    assert row[2] == "40,000"
    assert row[table.columns.index("5%")] == f"{requested:.1f} / {kept:.1f}"


def test_keep_of_a_layer_is_the_one_asked_of_its_network(run: MadeUpRun) -> None:
    expected = layers.layer_table(target_of(run))
    run.layers["keep"] = run.layers["kept"] / run.layers["weights"]
    assert layers.layer_table(target_of(run)) == expected


def test_a_fit_shared_by_keep_ratios_is_one_sample(run: MadeUpRun) -> None:
    summary = summaries.time_summary(target_of(run).timings).set_index(["method", "stage"])
    assert summary.at[("magnitude", "fit"), "n"] == 3
    assert summary.at[("magnitude", "prune"), "n"] == 9
    cells = run.cells[run.cells["method"] == "magnitude"]["id"]
    seconds = run.timings[run.timings["id"].isin(cells)]["prune_seconds"]
    assert summary.at[("magnitude", "prune"), "median"] == pytest.approx(seconds.median())
    assert summary.at[("magnitude", "prune"), "upper_quartile"] == pytest.approx(seconds.quantile(0.75))


def test_difference_is_paired_by_seed_and_keep(run: MadeUpRun) -> None:
    target = target_of(run)
    summary = summaries.difference_summary(target.cells, "magnitude").set_index(["method", "keep"])
    wide = run.cells[run.cells["keep"] == 0.2].pivot(index="seed", columns="method", values="accuracy")
    difference = wide["random"] - wide["magnitude"]
    assert summary.at[("random", 0.2), "difference"] == pytest.approx(difference.mean())
    reach = 4.302652729911275 * difference.std() / math.sqrt(3)
    assert summary.at[("random", 0.2), "low"] == pytest.approx(difference.mean() - reach)
    assert summary.at[("random", 0.2), "high"] == pytest.approx(difference.mean() + reach)
    assert "magnitude" not in summary.index.get_level_values("method")


def test_one_method_alone_has_nothing_to_be_compared_with(run: MadeUpRun) -> None:
    cells = target_of(run).cells
    alone = cells[(cells["method"] == "magnitude") & (cells["keep"] == cells["keep"].max())]
    assert not alone.empty
    assert summaries.difference_summary(alone, "magnitude").empty


def test_methods_are_listed_sipp_first_and_as_the_run_has_them(run: MadeUpRun) -> None:
    shuffled = run.cells.sample(frac=1, random_state=0)
    labels = list(dict.fromkeys(summaries.accuracy_summary(collect({"run": run}).done)["method"]))
    assert labels == ["sipp-det", "sipp-det-downstream", "sipp-rand", "magnitude", "magnitude-layer", "random"]
    assert set(shuffled["method"]) == set(labels)


@pytest.mark.parametrize(
    ("value", "text"), [(float("nan"), "–"), (None, "–"), (math.inf, "∞"), (0.25, "0.2"), (0.0, "0.0")]
)
def test_missing_numbers_are_dashes(value: float | None, text: str) -> None:
    assert tables.number(value, "{:.1f}") == text


@pytest.mark.parametrize(
    ("mean", "spread", "seeds", "text"),
    [(0.5, 0.01, 3, "50.0 ± 1.0"), (0.5, math.nan, 1, "50.0 (n = 1)"), (math.nan, math.nan, 0, "–")],
)
def test_spread_of_one_seed_is_not_zero(mean: float, spread: float, seeds: int, text: str) -> None:
    assert tables.mean_and_spread(mean, spread, seeds, scale=100) == text


@pytest.mark.parametrize(("value", "text"), [(12.345, "12.3 s"), (0.0123, "12.3 ms"), (2e-5, "20 µs"), (math.nan, "–")])
def test_seconds_have_a_unit(value: float, text: str) -> None:
    assert tables.seconds(value) == text


def test_provenance_has_what_a_repetition_needs(run: MadeUpRun) -> None:
    run.meta |= {"data": {"mnist-digits": {"sha256": "d" * 64}}, "checkpoints": {"lenet-5": {"sha256": "e" * 64}}}
    facts = dict(prose.provenance("my run", run, collect({"run": run}).cells))
    assert facts["Commit"] == "0123456789abcdef (with uncommitted changes)"
    assert "5" * 64 in facts["Suite"]
    assert "d" * 64 in facts["Data: mnist-digits"]
    assert "e" * 64 in facts["Checkpoint: lenet-5"]
    assert facts["Seeds"] == "0, 1, 2"
    assert "sipp-bench run made-up.toml -o 'my run'" in facts["To remake it"]


def test_rows_say_which_run_they_are_from(run: MadeUpRun) -> None:
    other = made_up_run(methods={"magnitude": "magnitude"})
    report = collect({"one": run, "two": other})
    for frame, name in ((report.cells, "cells"), (report.layers, "layers"), (report.timings, "timings")):
        sizes = frame.groupby("run").size()
        assert sizes["one"] == len(getattr(run, name))
        assert sizes["two"] == len(getattr(other, name))
    assert {"network", "data", "seed", "keep", "method_name"} <= set(report.timings.columns)
    # A mean never crosses runs, even where they share cells.
    summary = summaries.accuracy_summary(report.done)
    assert summary["seeds"].max() == 3
    assert isinstance(summary, pd.DataFrame)
