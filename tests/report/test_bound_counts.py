"""What is said of bounds: how many say something, and how many of those are exceeded, claim by claim."""

import numpy as np
import pytest
from report.runs import MadeUpRun, made_up_run

from sipp_bench.report import bounds
from sipp_bench.report.bounds import bound_counts, bound_sentence, check_table, distribution_table
from sipp_bench.report.collect import Target, collect
from sipp_bench.report.tables import NOTHING


@pytest.fixture
def run() -> MadeUpRun:
    return made_up_run()


def parts(run: MadeUpRun, method: str, name: str) -> np.ndarray:
    """One array of all blocks of a method, end to end."""
    layers = [layer for cell, layers in run.arrays.items() if f"--{method}--" in cell for layer in layers.values()]
    return np.concatenate([layer[name].ravel() for layer in layers])


def only(run: MadeUpRun) -> tuple[Target, bounds.pd.DataFrame]:
    report = collect({"run": run})
    return next(report.targets()), bound_counts(report)


def test_every_block_is_counted_by_the_size_of_its_bound(run: MadeUpRun) -> None:
    _, counts = only(run)
    for method in ("sipp-det", "sipp-rand"):
        own, epsilon = counts[counts["method"] == method], parts(run, method, "epsilon")
        assert own["blocks"].sum() == len(epsilon)
        for edge in (0.1, 0.5, 1):
            assert own[f"below_{edge:g}"].sum() == (epsilon < edge).sum()
    whole = run.checks[run.checks["on"] == "S"].groupby("claim")[["blocks", "vacuous"]].sum()
    mine = counts.groupby("claim")[["blocks", "below_1"]].sum()
    assert (whole["blocks"] - whole["vacuous"] == mine["below_1"]).all(), "the cells' own rows count the same"


def test_excesses_are_counted_among_bounds_that_say_something(run: MadeUpRun) -> None:
    target, counts = only(run)
    epsilon, fresh = parts(run, "sipp-rand", "epsilon"), parts(run, "sipp-rand", "error_fresh")
    says = epsilon < 1
    exceeding = int((fresh[says] > epsilon[says]).sum())
    assert 0 < exceeding < (fresh > epsilon).sum()
    sentence = bound_sentence(target, counts)
    assert sentence is not None
    of_claim = sentence.partition("C10: ")[2]
    assert f"of the {says.sum():,} that say something 0 are exceeded on S, 0 violations" in of_claim
    assert f"and {exceeding:,} ({100 * exceeding / says.sum():.2g}%) on fresh points" in of_claim
    for keep in ("50", "5"):
        at = parts_at(run, "sipp-rand", float(keep) / 100)
        assert f"{100 * (at >= 1).mean():.1f}% at keep {keep}%" in of_claim


def parts_at(run: MadeUpRun, method: str, keep: float) -> np.ndarray:
    cells = [cell for cell in run.arrays if f"--{method}--" in cell and cell.endswith(f"k{keep}")]
    return np.concatenate([layer["epsilon"].ravel() for cell in cells for layer in run.arrays[cell].values()])


def test_runs_and_networks_are_never_pooled(run: MadeUpRun) -> None:
    other = made_up_run(targets=[("lenet-300-100", "digits")])
    for layers in other.arrays.values():
        for layer in layers.values():
            layer["epsilon"][:] = 1.0
    report = collect({"one": run, "two": other})
    counts = bound_counts(report)
    said = [bound_sentence(target, counts[counts["run"] == target.run]) or "" for target in report.targets()]
    assert len(said) == 2
    assert "100.0% at keep 50% and 100.0% at keep 5% of bounds say nothing" in said[1]
    assert "100.0%" not in said[0]


def test_excess_of_drawn_blocks_is_no_violation_but_said(run: MadeUpRun) -> None:
    cell = next(cell for cell in run.arrays if "--sipp-rand--" in cell)
    layer = run.arrays[cell]["fc1.weight"]
    layer["epsilon"][0], layer["error_S"][0] = 0.5, [0.51, 0.4]
    sentence = bound_sentence(*only(run)) or ""
    assert " 1 (" in sentence.partition("C10")[2].partition("exceeded on S")[0]
    assert "(drawn blocks, to which the claim allows it with probability δ), 0 violations" in sentence
    row = run.checks.index[(run.checks["claim"] == "C10") & (run.checks["on"] == "S")][0]
    run.checks.loc[row, "verdict"] = "violated"
    sentence = bound_sentence(*only(run)) or ""
    assert ", 1 violation, and" in sentence
    assert "allows it" not in sentence


def test_rounding_is_no_excess(run: MadeUpRun) -> None:
    """40,000 weights of 50 neurons: 803 roundings of 6e-8 are room for 4.8e-5, not for a thousandth."""
    cell = next(cell for cell in run.arrays if "--sipp-det--" in cell)
    layer = run.arrays[cell]["fc1.weight"]
    layer["epsilon"][:], layer["error_S"][:] = 0.5, 0.5 * (1 + 4e-5)
    before = only(run)[1].set_index("id").at[cell, "exceeding_S"]
    layer["error_S"][:] = 0.5 * (1 + 1e-3)
    assert only(run)[1].set_index("id").at[cell, "exceeding_S"] == before + layer["epsilon"].size


def test_a_cascade_says_what_its_bounds_are_about(run: MadeUpRun) -> None:
    last = "A bound of a cascade is about its last step: from the network retrained after the step before"
    target, counts = only(run)
    assert last not in (bound_sentence(target, counts) or "")
    run.meta["suite"]["text"] += 'protocol = "cascade"\n'
    target, counts = only(run)
    for said in (bound_sentence(target, counts) or "", distribution_table(target, counts).caption):
        assert last in said
    assert last in check_table(target, counts).caption
    assert last in bounds.distribution_picture(target, counts, "sizes").caption


def test_the_table_has_the_distribution_by_keep(run: MadeUpRun) -> None:
    table = distribution_table(*only(run))
    row = next(row for row in table.rows if row[0] == "sipp-rand")
    epsilon = parts_at(run, "sipp-rand", 0.2)
    shares = [100 * (epsilon < edge).mean() for edge in (0.1, 0.5, 1)] + [100 * (epsilon >= 1).mean()]
    assert row[:2] == ["sipp-rand", "C10"]
    assert row[table.columns.index("20%")] == " / ".join(f"{value:.1f}" for value in shares)


def test_verdicts_are_counted_and_never_merged(run: MadeUpRun) -> None:
    det = (run.checks["method"] == "sipp-det") & (run.checks["on"] == "S")
    rows = run.checks.index[det]
    run.checks.loc[rows, "verdict"] = "holds"
    run.checks.loc[rows[:2], "verdict"] = "useless"
    run.checks.loc[rows[2], "verdict"] = "violated"
    row = next(row for row in check_table(*only(run)).rows if row[0] == "sipp-det" and row[2] == "S")
    assert row[-1] == f"violated 1, useless 2, holds {len(rows) - 3}"


def test_rate_of_excess_stands_beside_delta_only_for_methods_that_draw(run: MadeUpRun) -> None:
    table = check_table(*only(run))
    rate, delta = table.columns.index("Max. rate"), table.columns.index("δ")
    by_method = {row[0]: row for row in table.rows if row[2] == "fresh"}
    assert by_method["sipp-det"][rate] == by_method["sipp-det"][delta] == NOTHING
    fresh = run.checks[(run.checks["method"] == "sipp-rand") & (run.checks["on"] == "fresh")]
    assert by_method["sipp-rand"][rate] == f"{fresh['exceeding_rate'].max():.2g}"
    assert by_method["sipp-rand"][delta] == "0.1"
