"""A theory run's folder in, what the report shows of it out. It is made by `python -m theory_checks -o FOLDER`."""

import json
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image
from scipy.stats import binomtest

from sipp_bench.errors import StoreError
from sipp_bench.machine.files import read_regular
from sipp_bench.report.style import DPI
from sipp_bench.report.tables import NOTHING, Table, number, percent, share

PICTURES = {
    # file in the folder: (what it shows, text alternative)
    "matrix": (
        "Share of the checks in which a claim rejected an implementation that is wrong on purpose. A square: the claim "
        "must reject it.",
        "Heat map of detection rates, claims by known-bad subjects; the counts are in data/theory-matrix.csv.",
    ),
    "power": (
        "Power: the share of checks that reject when every bound is multiplied by a factor below 1.",
        "Line chart of detection rate against the factor on each bound; the counts are in data/theory-power.csv.",
    ),
    "predictive": (
        "Do bounds predict? Bound against measured error, measured error against accuracy, and both after retraining. "
        "Rank correlations over everything are mostly the keep ratio's; within one keep ratio they are what "
        "a bound adds.",
        "Scatter plots of bounds, errors and accuracies; the numbers are in data/theory-predictive-cells.csv.",
    ),
}
DATA = ("findings", "matrix", "power", "predictive-cells", "predictive-layers", "predictive-correlations")


@dataclass(frozen=True)
class Plate:
    """A figure that was drawn elsewhere, shown as it is."""

    file: str
    content: bytes
    caption: str
    alt: str
    width: int


@dataclass(frozen=True)
class Theory:
    """What is shown of a theory run. data: file name -> text of its tables, copied beside the report's own."""

    summary: str
    findings: Table
    tables: list[Table]
    pictures: list[Plate]
    data: dict[str, str]


def read_theory(folder: Path) -> Theory:
    """Read a theory run's folder. Raises StoreError when it is none, or when a file in it is damaged."""
    try:
        raw = json.loads(read_regular(folder / "data" / "theory.json"))
        data = {name: read_regular(folder / "data" / f"{name}.csv").decode() for name in DATA}
        matrix = pd.read_csv(BytesIO(read_regular(folder / "data" / "matrix.csv")))
        pictures = [_plate(folder, name) for name in PICTURES]
        return Theory(
            summary=_summary(raw, matrix),
            findings=_findings(raw["findings"]),
            tables=[
                _statements(raw["findings"]),
                _matrix(matrix),
                *_networks(raw["networks"]),
            ],
            pictures=pictures,
            data={f"theory-{name}.csv": text for name, text in data.items()},
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"{folder} is not the folder of a theory run, or damaged ({error}). Make one with: "
            "python -m theory_checks -o FOLDER"
        ) from error


def _plate(folder: Path, name: str) -> Plate:
    content = read_regular(folder / "figures" / f"{name}.png")
    with Image.open(BytesIO(content)) as image:
        width = image.width
    caption, alt = PICTURES[name]
    return Plate(f"theory-{name}.png", content, caption, alt, round(width * 100 / DPI))


def _summary(raw: dict[str, Any], matrix: pd.DataFrame) -> str:
    findings, alarms = raw["findings"], raw["false alarms"]
    falsified = [finding["claim"] for finding in findings if finding["verdict"] == "falsified"]
    named = ", ".join(falsified)
    required = matrix[matrix["required"]]
    missed = int((required["rejected"] < required["repeats"]).sum())
    repeats = sorted(required["repeats"].unique())
    lows = [
        f"{times} of {times}: {binomtest(times, times).proportion_ci().low:.2f} to 1" for times in map(int, repeats)
    ]
    return (
        f"{len(falsified)} of {len(findings)} claims falsified{f' ({named})' if falsified else ''} at "
        f"effort {raw['effort']['name']} (α = {raw['effort']['alpha']:g} for a whole run); “not falsified” is not "
        f"“proved”. Correct code, {alarms['seeds']} runs of all claims: {len(alarms['alarms'])} false alarms. Of "
        f"{len(required)} pairs of a claim and a known-bad subject that it must reject, "
        f"{len(required) - missed} were rejected every time; of one pair that says little (95 % interval of its "
        f"detection rate, {', '.join(lows)})."
    )


def _findings(findings: list[dict[str, Any]]) -> Table:
    rows = []
    for finding in findings:
        interval = finding.get("interval")
        numbers = [
            f"{finding['trials']:,}",
            f"{finding['violations']:,}",
            NOTHING if interval is None else f"{number(interval['low'])} to {number(interval['high'])}",
            *(number(finding[name]) for name in ("worst", "alpha", "beta", "detectable")),
        ]
        rows.append([finding["claim"], finding["title"], finding["verdict"], *numbers])
    return Table(
        "Each claim: its verdict; the trials, and in how many of them what the claim bounds was seen (a violation; for "
        "claims about coverage a covered point: below is the rate that is claimed) with the 95 % interval of "
        "that rate; the largest measured / allowed; the level α of its test, β, and the smallest rate that the test "
        "misses with probability β at most.",
        ["Claim", "Title", "Verdict", "Trials", "Counted", "Interval", "Largest", "α", "β", "Detectable"],
        rows,
        text=(0, 1, 2),
    )


def _statements(findings: list[dict[str, Any]]) -> Table:
    return Table(
        "What each claim says, what it assumes of the points, and what was found. Assumptions are not tested: checks "
        "make their data so that they hold; on a network of yours they can only be audited.",
        ["Claim", "Statement", "Assumes", "Found"],
        [
            # A theory run of before has neither statements nor assumptions.
            [one["claim"], one.get("statement", NOTHING), one.get("assumption", NOTHING), one["detail"]]
            for one in findings
        ],
        text=(0, 1, 2, 3),
    )


def _matrix(matrix: pd.DataFrame) -> Table:
    """Known-bad subjects by the claims that must reject them: rejected / repeats."""
    required = matrix[matrix["required"]]
    rows = [
        [str(subject), ", ".join(f"{row.claim} {row.rejected}/{row.repeats}" for row in group.itertuples())]
        for subject, group in required.groupby("known_bad", sort=False)
    ]
    return Table(
        "Known-bad subjects, each with the claims that must reject it and how often they did.",
        ["Known-bad subject", "Rejected by"],
        rows,
        text=(0, 1),
    )


def _networks(networks: list[dict[str, Any]]) -> list[Table]:
    """Of every network: T and the draws needed by layer, and what makes its bounds as large as they are."""
    tables = []
    for position, network in enumerate(networks, start=1):
        settings, vacuity = network["settings"], network["vacuity"]
        what = f"network {position} ({settings['network']}, {settings['weights']:,} weights)"
        tables.append(
            Table(
                f"T, the sum of a block’s sensitivities, by layer of {what}, medians over the active blocks: beside "
                "the block’s weights, the draws from which its sampling bound is below 1, and the share of blocks that "
                "have more weights than that.",
                ["Layer", "Blocks", "T", "Weights", "Draws needed", "Draws / weights", "Reachable (%)"],
                [
                    [row["layer"], f"{row['blocks']:,}"]
                    + [number(row[name]) for name in ("T", "weights", "draws_needed", "ratio")]
                    + [percent(row["reachable"])]
                    for row in vacuity["draws_needed"]
                ],
            )
        )
        factors = ("m", "T", "L", "epsilon", "without_T", "without_L", "with_union", "dropping")
        tables.append(
            Table(
                f"Decomposition of the sampling bound by layer of {what}, medians over blocks: the draws m, T, the "
                "logarithm L, the bound ε from them, what it were with T = 1 or L = 1, with a union bound over the "
                "network, and the bound for dropping instead.",
                ["Layer", "Keep", "m", "T", "L", "ε", "ε, T = 1", "ε, L = 1", "ε, union", "Dropping"],
                [
                    [row["layer"], share(row["keep"]), *(number(row.get(name, NOTHING)) for name in factors)]
                    for row in vacuity["decomposition"]
                ],
            )
        )
    return tables
