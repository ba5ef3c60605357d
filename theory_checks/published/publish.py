"""The theory report: every claim checked, every known-bad subject tried, power curves, real networks."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup
from tqdm.auto import tqdm

from sipp_bench.machine.files import write_atomically
from sipp_bench.machine.seeds import derived_seed
from sipp_bench.machine.system import describe_system
from sipp_bench.report.style import figure_style, new_figure, png
from sipp_bench.zoo import data, training
from theory_checks.claims import QUICK, Effort, Finding, Verdict, claims
from theory_checks.on_network.report import as_record
from theory_checks.published.power import (
    DetectionRow,
    PowerRow,
    detection_matrix,
    false_alarms,
    power_curves,
    undetected,
)
from theory_checks.published.predictive import Predictive, picture, predictive_power
from theory_checks.subjects.subject import REFERENCE
from theory_checks.verify import Report, verify

# Trained networks of the zoo on which the claims are verified: what they look at is S, what is fresh is validation.
NETWORKS = (("lenet-300-100", "mnist-digits"), ("lenet-5", "mnist-digits"))
KEEPS = (0.5, 0.2, 0.1)


@dataclass(frozen=True)
class TheoryRun:
    """All that a theory report says, raw.

    findings: each claim on the reference, at `effort`. alarms: findings of the reference over `seeds` that falsified
    something, which on correct code are false alarms. matrix and power: see `theory_checks.published.power`.
    """

    effort: Effort
    findings: Sequence[Finding]
    seeds: int
    alarms: Sequence[str]
    matrix: Sequence[DetectionRow]
    power: Sequence[PowerRow]
    networks: Sequence[Report]
    predictive: Predictive
    machine: dict[str, Any]

    @property
    def ok(self) -> bool:
        """Nothing falsified, no false alarm, and every known-bad subject rejected as the claims say."""
        falsified = any(finding.verdict is Verdict.FALSIFIED for finding in self.findings)
        return not falsified and not self.alarms and not undetected(self.matrix) and all(n.ok for n in self.networks)


def run_theory(
    effort: Effort, *, repeats: int = 2, seeds: int = 50, seed: int = 0, processes: int = 1, progress: bool = False
) -> TheoryRun:
    """Check everything; all randomness from `seed`. repeats: of each cell of the matrix and each point of a curve.

    seeds: how often the whole set of claims is run on correct code at QUICK, counting alarms. processes: for the
    seeds, the matrix and the curves; results do not depend on it.
    """
    bar = tqdm(total=5 + len(NETWORKS), desc="theory", disable=not progress)

    def step(what: str) -> None:
        bar.set_postfix_str(what)
        bar.update()

    networks = []
    for network, name in NETWORKS:
        step(network)
        networks.append(_verified(network, name, seed))
    step("predictive power")
    predictive = predictive_power()
    step("claims")
    findings = [claim.check(REFERENCE, effort, seed) for claim in claims().values()]
    step("false alarms")
    alarms = false_alarms(QUICK, seeds, derived_seed(seed, "false alarms"), processes)
    step("known-bad subjects")
    matrix = detection_matrix(QUICK, repeats, derived_seed(seed, "known-bad subjects"), processes=processes)
    step("power curves")
    power = power_curves(repeats, derived_seed(seed, "power curves"), processes)
    bar.close()
    return TheoryRun(effort, findings, seeds, alarms, matrix, power, networks, predictive, describe_system())


def write_report(run: TheoryRun, output: Path) -> Path:
    """index.html, figures and raw data (theory.json and CSV files) under `output`, each written atomically."""
    frames = {
        "findings": pd.DataFrame([_flat(finding) for finding in run.findings]),
        "matrix": pd.DataFrame([dataclasses.asdict(row) for row in run.matrix]),
        "power": pd.DataFrame([dataclasses.asdict(row) for row in run.power]),
        "predictive-layers": run.predictive.layers,
        "predictive-cells": run.predictive.cells,
        "predictive-correlations": run.predictive.correlations,
    }
    for name, frame in frames.items():
        write_atomically(output / "data" / f"{name}.csv", frame.to_csv(index=False))
    raw = {
        "effort": dataclasses.asdict(run.effort),
        "findings": [as_record(finding) for finding in run.findings],
        "false alarms": {"seeds": run.seeds, "claims": len(run.findings), "alarms": list(run.alarms)},
        "networks": [json.loads(report.to_json()) for report in run.networks],
        "machine": run.machine,
    }
    write_atomically(output / "data" / "theory.json", json.dumps(raw, indent=1, sort_keys=True))
    write_atomically(output / "figures" / "matrix.png", _matrix_figure(frames["matrix"]))
    write_atomically(output / "figures" / "power.png", _power_figure(frames["power"]))
    write_atomically(output / "figures" / "predictive.png", picture(run.predictive))
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("theory_checks"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    page = environment.get_template("theory.html.jinja").render(
        run=run,
        claims=claims(),
        undetected=undetected(run.matrix),
        networks=[
            (f"{network} on {name}", Markup(report.to_html()))  # escaped where it is made
            for (network, name), report in zip(NETWORKS, run.networks, strict=True)
        ],
    )
    return write_atomically(output / "index.html", page)


def _verified(network: str, name: str, seed: int) -> Report:
    dataset = data.load(name, seed=seed)
    model = training.trained_model(network, dataset, seed=seed).model
    return verify(model, dataset.points.images, dataset.validation.images, keep=KEEPS, seed=seed)


def _flat(finding: Finding) -> dict[str, Any]:
    record = dataclasses.asdict(finding) | {"verdict": str(finding.verdict)}
    interval = record.pop("interval") or {"low": None, "high": None, "confidence": None}
    del record["data"]
    return record | {f"interval_{name}": value for name, value in interval.items()}


def _matrix_figure(matrix: pd.DataFrame) -> bytes:
    """Detection rates, claims against known-bad subjects; required ones are framed."""
    import seaborn as sns

    rates = matrix.assign(rate=matrix["rejected"] / matrix["repeats"])
    table = rates.pivot(index="known_bad", columns="claim", values="rate")
    table = table[list(dict.fromkeys(matrix["claim"]))]
    with figure_style():
        figure = new_figure(10, 1.5 + 0.26 * len(table))
        axes = figure.subplots()
        sns.heatmap(
            table, ax=axes, cmap="cividis", vmin=0, vmax=1, linewidths=0.5, cbar_kws={"label": "detection rate"}
        )
        for row in matrix[matrix["required"]].itertuples():
            x, y = list(table.columns).index(str(row.claim)), list(table.index).index(str(row.known_bad))
            axes.plot(x + 0.5, y + 0.5, marker="s", markersize=5, markerfacecolor="none", markeredgecolor="black")
        axes.set(xlabel="claim (square: must reject)", ylabel="known-bad subject")
        return png(figure)


def _power_figure(power: pd.DataFrame) -> bytes:
    """Detection rate against the factor on the bound, one line a claim that rejects any."""
    import seaborn as sns

    rates = power.assign(rate=power["rejected"] / power["repeats"])
    seen = rates.groupby("claim", sort=False).filter(lambda rows: rows["rate"].max() > 0)
    with figure_style():
        figure = new_figure(8, 4.5)
        axes = figure.subplots()
        if not seen.empty:
            sns.lineplot(
                seen, x="shrink", y="rate", hue="claim", style="claim", markers=True, palette="colorblind", ax=axes
            )
            sns.move_legend(axes, "center left", bbox_to_anchor=(1.02, 0.5))
        axes.set(xlabel="bound multiplied by", ylabel="detection rate", ylim=(-0.03, 1.03))
        axes.invert_xaxis()
        return png(figure)
