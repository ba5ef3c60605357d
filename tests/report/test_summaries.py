"""Every number of the report against a computation of its own."""

import math

import numpy as np
import pandas as pd
import pytest
from report.runs import MadeUpRun, made_up_run

from sipp_bench.report import beyond, layers, prose, summaries, tables
from sipp_bench.report.collect import Target, collect


def target_of(run: MadeUpRun) -> Target:
    return next(collect({"run": run}).targets())


@pytest.fixture
def run() -> MadeUpRun:
    return made_up_run()


def set_accuracy(run: MadeUpRun, method: str, keep: float, test: list[float], validation: float) -> None:
    rows = (run.cells["method"] == method) & (run.cells["keep"] == keep)
    run.cells.loc[rows, "accuracy"] = test
    run.cells.loc[rows, "validation_accuracy"] = validation


def test_methods_are_chosen_on_validation_and_read_on_test(run: MadeUpRun) -> None:
    # On test sipp-rand looks best, but it is not what validation says.
    for method in run.cells["method"].unique():
        set_accuracy(run, method, 0.2, [0.5, 0.5, 0.5], 0.5)
    set_accuracy(run, "sipp-rand", 0.2, [0.99, 0.99, 0.99], 0.6)
    set_accuracy(run, "sipp-det", 0.2, [0.8, 0.9, 0.7], 0.7)
    set_accuracy(run, "magnitude", 0.2, [0.85, 0.85, 0.85], 0.9)
    row = summaries.compare_with_magnitude(target_of(run)).set_index("keep").loc[0.2]
    assert (row["best"], row["sipp"], row["magnitude"]) == ("magnitude", "sipp-det", "magnitude")
    assert row["sipp_accuracy_mean"] == pytest.approx(0.8)
    assert row["difference"] == pytest.approx(-0.05)
    assert row["difference_sd"] == pytest.approx(0.1)
    assert (row["ahead"], row["behind"], row["pairs"]) == (1, 2, 3)


def test_the_prune_potential_is_that_of_validation_and_none_where_it_cannot_be_told(run: MadeUpRun) -> None:
    assert beyond.potential_table(target_of(run)) is None, "runs of before have no dense validation accuracy"
    run.cells["dense_validation_accuracy"] = 0.9
    for method in run.cells["method"].unique():
        for keep, validation in ((0.5, 0.8), (0.2, 0.896), (0.05, 0.894)):
            set_accuracy(run, method, keep, [0.9] * 3, validation)
    set_accuracy(run, "random", 0.2, [0.9] * 3, 0.8)
    set_accuracy(run, "magnitude", 0.5, [0.1] * 3, 0.95)
    table = beyond.potential_table(target_of(run))
    assert table is not None
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["sipp-det"] == ["none, none, none", "80.0, 80.0, 80.0"], "50 % fails, 80 % passes, 95 % does not"
    assert rows["magnitude"] == ["80.0, 80.0, 80.0"] * 2
    assert rows["random"] == ["none, none, none"] * 2


def test_where_sipp_loses_is_said_plainly(run: MadeUpRun) -> None:
    for keep, sipp in ((0.5, 0.9), (0.2, 0.6), (0.05, 0.3)):
        for method in run.cells["method"].unique():
            set_accuracy(run, method, keep, [sipp] * 3, 0.3)
        set_accuracy(run, "magnitude", keep, [0.8] * 3, 0.4)
    sentence = prose.answers(collect({"run": run}))[0]
    assert "the best SiPP variant is behind at keep 20%, 5%, by up to 50.0 points (at 5%)" in sentence
    assert "ahead at keep 50%, by 10.0 points." in sentence


def test_without_magnitude_there_is_no_comparison() -> None:
    run = made_up_run(methods={"sipp-det": "sipp-det"})
    assert "no SiPP and magnitude pruning" in prose.answers(collect({"run": run}))[0]
    table = tables.best_table(target_of(run))
    assert all(row[3] == tables.NOTHING for row in table.rows)


def test_without_validation_nothing_is_chosen(run: MadeUpRun) -> None:
    run.cells["validation_accuracy"] = float("nan")
    assert all(row[1:4] == [tables.NOTHING] * 3 for row in tables.best_table(target_of(run)).rows)
    assert not tables.accuracy_table(target_of(run)).strong
    assert "Best by validation" not in prose.answers(collect({"run": run}))[0]


def test_bounds_are_counted_over_all_blocks(run: MadeUpRun) -> None:
    blocks = [layer for cell, layers in run.arrays.items() if "sipp-rand" in cell for layer in layers.values()]
    epsilon = np.concatenate([layer["epsilon"].ravel() for layer in blocks])
    fresh = np.concatenate([layer["error_fresh"].ravel() for layer in blocks])
    sentence = next(words for words in prose.answers(collect({"run": run})) if words.startswith("Claim C10"))
    assert f"{100 * (epsilon >= 1).mean():.1f}% of {len(epsilon):,} bounds are vacuous" in sentence
    assert "no measured error on S exceeds its bound; 0 violations" in sentence
    assert f"{(fresh > epsilon).sum():,} of {len(epsilon):,} measured errors exceed their bound" in sentence


def test_excess_of_drawn_blocks_is_no_violation_but_said(run: MadeUpRun) -> None:
    on_s = (run.checks["claim"] == "C10") & (run.checks["on"] == "S")
    rows = run.checks.index[on_s]
    run.checks.loc[rows[0], "exceeding"] = 2
    total = run.checks.loc[rows, "blocks"].sum()
    answers = "".join(prose.answers(collect({"run": run})))
    assert f"on S 2 of {total:,} measured errors exceed their bound" in answers
    assert "all of drawn blocks, to which the claim allows it with probability δ; 0 violations" in answers
    run.checks.loc[rows[0], "verdict"] = "violated"
    answers = "".join(prose.answers(collect({"run": run})))
    assert "; 1 violation;" in answers
    assert "to which the claim allows it" not in answers


def test_verdicts_are_counted_and_never_merged(run: MadeUpRun) -> None:
    det = (run.checks["method"] == "sipp-det") & (run.checks["on"] == "S")
    rows = run.checks.index[det]
    run.checks.loc[rows, "verdict"] = "holds"
    run.checks.loc[rows[:2], "verdict"] = "useless"
    run.checks.loc[rows[2], "verdict"] = "violated"
    row = next(row for row in tables.check_table(target_of(run)).rows if row[0] == "sipp-det" and row[2] == "S")
    assert row[-1] == f"violated 1, useless 2, holds {len(rows) - 3}"


def test_vacuous_share_is_that_of_blocks_on_s(run: MadeUpRun) -> None:
    table = tables.vacuity_table(target_of(run))
    cells = [cell for cell in run.arrays if "--sipp-rand--" in cell and cell.endswith("k0.2")]
    epsilon = np.concatenate([layer["epsilon"].ravel() for cell in cells for layer in run.arrays[cell].values()])
    row = next(row for row in table.rows if row[0] == "sipp-rand")
    assert row[table.columns.index("20%")] == f"{100 * (epsilon >= 1).mean():.1f}"


def test_rate_of_excess_stands_beside_delta_only_for_methods_that_draw(run: MadeUpRun) -> None:
    table = tables.check_table(target_of(run))
    rate, delta = table.columns.index("Max. rate"), table.columns.index("δ")
    by_method = {row[0]: row for row in table.rows if row[2] == "fresh"}
    assert by_method["sipp-det"][rate] == by_method["sipp-det"][delta] == tables.NOTHING
    fresh = run.checks[(run.checks["method"] == "sipp-rand") & (run.checks["on"] == "fresh")]
    assert by_method["sipp-rand"][rate] == f"{fresh['exceeding_rate'].max():.2g}"
    assert by_method["sipp-rand"][delta] == "0.1"


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
    assert summary.at[("random", 0.2), "difference_sd"] == pytest.approx(difference.std())
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
