"""SiPP against magnitude: which variants are compared, and what may be said of it."""

import math
from statistics import fmean, stdev

import numpy as np
import pandas as pd
import pytest
from report.runs import MadeUpRun, made_up_run, predict, set_accuracy

from sipp_bench.report import comparisons, prose, tables
from sipp_bench.report.bounds import bound_counts
from sipp_bench.report.collect import Collected, collect

KEEPS = (0.5, 0.2, 0.05)


@pytest.fixture
def run() -> MadeUpRun:
    return made_up_run()


def answers(report: Collected) -> list[str]:
    found = comparisons.headlines(report), comparisons.details(report), bound_counts(report)
    return prose.answers(report, *found)


def ten_seeds(apart: dict[float, list[float]], magnitude: float = 0.8) -> MadeUpRun:
    """SiPP's test accuracy is `apart` from magnitude's at each keep, seed by seed."""
    run = made_up_run({"sipp-det": "sipp-det", "magnitude": "magnitude"}, keeps=apart, seeds=range(10))
    for keep, differences in apart.items():
        set_accuracy(run, "magnitude", keep, [magnitude] * 10, 0.8)
        set_accuracy(run, "sipp-det", keep, [magnitude + each for each in differences], 0.8)
    return run


def noise(middle: float, spread: float = 0.01) -> list[float]:
    """Ten values of this mean and sample standard deviation."""
    values = np.linspace(-1, 1, 10)
    return [float(value) for value in middle + spread * values / values.std(ddof=1)]


def test_methods_are_chosen_on_validation_and_read_on_test(run: MadeUpRun) -> None:
    # On test sipp-rand looks best, but it is not what validation says.
    for method in run.cells["method"].unique():
        set_accuracy(run, method, 0.2, [0.5, 0.5, 0.5], 0.5)
    set_accuracy(run, "sipp-rand", 0.2, [0.99, 0.99, 0.99], 0.6)
    set_accuracy(run, "sipp-det", 0.2, [0.8, 0.9, 0.7], 0.7)
    set_accuracy(run, "magnitude", 0.2, [0.85, 0.85, 0.85], 0.9)
    row = comparisons.details(collect({"run": run})).set_index("keep").loc[0.2]
    assert (row["best"], row["sipp"], row["magnitude"]) == ("magnitude", "sipp-det", "magnitude")
    assert row["sipp_accuracy_mean"] == pytest.approx(0.8)
    differences = [-0.05, 0.05, -0.15]
    reach = 4.302652729911275 * stdev(differences) / math.sqrt(3)
    assert (row["n"], row["difference"]) == (3, pytest.approx(-0.05))
    assert (row["low"], row["high"]) == (pytest.approx(-0.05 - reach), pytest.approx(-0.05 + reach))
    assert row["verdict"] == "undecided"


def test_the_headline_is_one_test_of_the_mean_over_keeps() -> None:
    apart = {0.5: noise(0.0), 0.2: noise(-0.02)[::-1], 0.05: noise(0.08, 0.05)}
    row = comparisons.headlines(collect({"run": ten_seeds(apart)})).iloc[0]
    means = [fmean(values) for values in zip(*apart.values(), strict=True)]
    assert (row["sipp"], row["magnitude"], row["keeps"], row["n"]) == ("sipp-det", "magnitude", 3, 10)
    assert row["difference"] == pytest.approx(fmean(means)) == pytest.approx(0.02)
    assert row["high"] - row["low"] == pytest.approx(2 * 2.2621571628540993 * stdev(means) / math.sqrt(10))
    assert (row["tests"], row["verdict"]) == (1, "ahead" if row["p"] <= 0.05 else "undecided")


def test_three_seeds_are_not_ahead_by_the_sign_of_their_mean() -> None:
    """+8.8 points of three seeds whose interval reaches from -10 to +28: nothing was decided."""
    run = made_up_run({"sipp-det": "sipp-det", "magnitude": "magnitude"}, keeps=(0.2,))
    set_accuracy(run, "magnitude", 0.2, [0.36] * 3, 0.4)
    set_accuracy(run, "sipp-det", 0.2, [0.36 + 0.164, 0.36 + 0.088, 0.36 + 0.012], 0.4)
    sentence = answers(collect({"run": run}))[0]
    assert "undecided over the mean of 1 keep ratio sipp-det against magnitude: +8.8 points" in sentence
    assert "(95% interval -10.1 to +27.7, n = 3 seeds, p = 0.18 corrected for 1 test)" in sentence
    assert not {"ahead", "behind"} & set(sentence.replace(":", " ").split())


def test_what_is_certain_is_said_and_where_sipp_loses_plainly() -> None:
    apart = {0.5: noise(0.001), 0.2: noise(-0.3), 0.05: noise(0.1)}
    report = collect({"run": ten_seeds(apart)})
    sentence = answers(report)[0]
    assert "sipp-det is behind magnitude: -6.6 points of test accuracy" in sentence
    assert "corrected for 3 tests: ahead at 5%; behind at 20%; undecided at 50%." in sentence
    table = tables.comparison_table(next(report.targets()), comparisons.headlines(report), comparisons.details(report))
    assert [row[1] for row in table.rows] == ["behind", "undecided", "behind", "ahead"]


def test_the_correction_is_over_the_whole_report() -> None:
    """p = 0.03 of one test is a verdict; beside twenty others it is none."""
    differences = noise(0.008, 0.00977)
    alone = collect({"run": ten_seeds({0.2: differences})})
    assert comparisons.details(alone).iloc[0]["verdict"] == "ahead"
    many = {"run": ten_seeds({keep / 100: differences for keep in range(1, 21)})}
    assert set(comparisons.details(collect(many))["verdict"]) == {"undecided"}


def test_one_seed_says_so() -> None:
    run = made_up_run({"sipp-det": "sipp-det", "magnitude": "magnitude"}, seeds=(1,))
    report = collect({"run": run})
    sentence = answers(report)[0]
    assert "one seed, which decides nothing, over the mean of 3 keep ratios sipp-det against magnitude" in sentence
    assert "(n = 1 seed)" in sentence
    assert set(comparisons.details(report)["verdict"]) == {"one seed"}


def test_the_headline_takes_seeds_that_have_every_keep_ratio(run: MadeUpRun) -> None:
    """An iterative run that is not finished: magnitude has one seed, SiPP three."""
    run.cells = run.cells[(run.cells["method_name"] != "magnitude") | (run.cells["seed"] == 1)]
    assert comparisons.headlines(collect({"run": run})).iloc[0]["verdict"] == "one seed"


def test_at_chance_nothing_is_called_best() -> None:
    run = made_up_run({"sipp-det": "sipp-det", "magnitude": "magnitude"})
    predict(run, np.arange(1000) % 10)
    for method in ("sipp-det", "magnitude"):
        set_accuracy(run, method, 0.05, [0.1, 0.11, 0.1] if method == "magnitude" else [0.1, 0.1, 0.12], 0.1)
        # What `predict` made is consistent with `flips` only where accuracy is not asked for: 1,000 points either way.
    report = collect({"run": run})
    details = comparisons.details(report).set_index("keep")
    assert details.loc[0.05, "verdict"] == "at chance"
    assert details.loc[0.05, "best"] is None or pd.isna(details.loc[0.05, "best"])
    assert details.loc[0.5, "best"] in ("sipp-det", "magnitude")
    table = tables.comparison_table(next(report.targets()), comparisons.headlines(report), details.reset_index())
    assert table.rows[-1][-1] == table.rows[-1][1] == "at chance"
    assert "at chance at 5%" in answers(report)[0]
    accuracy = tables.accuracy_table(next(report.targets()))
    assert not {column for _, column in accuracy.strong} & {accuracy.columns.index("5%")}


def test_a_method_above_chance_is_told_from_one_at_it() -> None:
    run = made_up_run({"sipp-det": "sipp-det", "magnitude": "magnitude"}, keeps=(0.2,))
    predict(run, np.arange(1000) % 10)
    set_accuracy(run, "magnitude", 0.2, [0.1] * 3, 0.1)
    set_accuracy(run, "sipp-det", 0.2, [0.1, 0.1, 0.124], 0.2)
    assert comparisons.details(collect({"run": run})).iloc[0]["verdict"] == "undecided"


def test_without_magnitude_there_is_no_comparison() -> None:
    report = collect({"run": made_up_run(methods={"sipp-det": "sipp-det"})})
    assert "no SiPP and magnitude pruning" in answers(report)[0]
    table = tables.comparison_table(next(report.targets()), comparisons.headlines(report), comparisons.details(report))
    assert all(row[7] == tables.NOTHING and row[1] == tables.NOTHING for row in table.rows)


def test_without_validation_nothing_is_chosen(run: MadeUpRun) -> None:
    run.cells["validation_accuracy"] = float("nan")
    report = collect({"run": run})
    assert all(comparisons.details(report)[name].isna().all() for name in ("best", "sipp", "magnitude"))
    assert not tables.accuracy_table(next(report.targets())).strong
    assert "no SiPP and magnitude pruning" in answers(report)[0]
