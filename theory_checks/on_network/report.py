"""A report of verdicts for people: tables of text for a terminal, and the same as a section of HTML."""

import html
import math
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from theory_checks.claims import Finding, Verdict, claims

if TYPE_CHECKING:
    from theory_checks.verify import Report

MEANING = {
    Verdict.HOLDS: "an identity, without exception here",
    Verdict.NOT_FALSIFIED: "a rate that independent draws did not speak against",
    Verdict.CONDITIONAL: "true under an assumption that can only be audited",
    Verdict.USELESS: "the bound is no better than dropping: not a pass",
    Verdict.CANNOT_FAIL: "the bound is above all that can happen: not a pass",
    Verdict.FALSIFIED: "a counterexample was found: the code or the claim is wrong",
}
_WIDTH = 118

Table = tuple[str, Sequence[str], Sequence[Sequence[str]]]


def as_record(finding: Finding) -> dict[str, Any]:
    """A finding with its claim's title, statement and assumption, for JSON: who reads it needs no claims."""
    claim = claims().get(finding.claim)
    said = {} if claim is None else {"statement": claim.statement, "assumption": claim.assumption}
    return {**asdict(finding), "data": dict(finding.data), "title": title(finding.claim), **said}


def title(number: str) -> str:
    """What the claim is called; nothing for one that has no file."""
    known = claims()
    return known[number].title if number in known else ""


def to_text(report: "Report") -> str:
    """Findings, then what was skipped, how predictions differ, and tables of vacuity."""
    lines = [headline(report), ""]
    for finding in report.findings:
        keep = _keep(finding)
        lines.append(f"{finding.claim:4} {keep:>10}  {finding.verdict.value:14} {title(finding.claim)}")
        lines += textwrap.wrap(finding.detail, _WIDTH, initial_indent=" " * 17, subsequent_indent=" " * 17)
    lines += ["", *(_wrapped(sentence) for sentence in summary(report))]
    for caption, columns, rows in tables(report):
        lines += ["", _wrapped(caption), *_columns([list(columns), *map(list, rows)])]
    if report.skipped:
        lines += ["", "Not spoken of here:"]
        lines += [_wrapped(line, "  ") for line in _skipped(report)]
    return "\n".join(lines) + "\n"


def to_html(report: "Report") -> str:
    """The same as to_text, as one <section>."""
    parts = ['<section class="verify">', f"<h2>{html.escape(headline(report))}</h2>"]
    heads = ("Claim", "Keep", "Verdict", "Trials", "Violations", "What was seen")
    rows = [
        (
            f"{finding.claim} {title(finding.claim)}".strip(), _keep(finding), finding.verdict.value,
            str(finding.trials), str(finding.violations), finding.detail,
        )
        for finding in report.findings
    ]  # fmt: skip
    parts.append(_html_table(("Verdicts, never merged.", heads, rows)))
    parts += [f"<p>{html.escape(sentence)}</p>" for sentence in summary(report)]
    parts += [_html_table(table) for table in tables(report)]
    if report.skipped:
        entries = "".join(f"<li>{html.escape(line)}</li>" for line in _skipped(report))
        parts.append(f"<p>Not spoken of here:</p><ul>{entries}</ul>")
    return "\n".join([*parts, "</section>"]) + "\n"


def headline(report: "Report") -> str:
    """What was verified, and the verdict on the whole."""
    settings = report.settings
    keeps = ", ".join(f"{keep:g}" for keep in settings["keep"])
    whole = "nothing falsified" if report.ok else "FALSIFIED"
    if not report.ok and not any(finding.verdict is Verdict.FALSIFIED for finding in report.findings):
        broken = any("error" in entry for entry in report.skipped)
        whole = "A CHECK BROKE DOWN" if broken else "NOTHING WAS CHECKED"
    return f"{settings['network']}, {settings['method']}, keep {keeps}: {whole}"


def summary(report: "Report") -> list[str]:
    """Sentences: how many of each verdict and what it means; predictions; smallest keep ratios."""
    settings = report.settings
    counts = Counter(finding.verdict for finding in report.findings)
    said = [f"{counts[verdict]} {verdict.value} ({MEANING[verdict]})" for verdict in Verdict if counts[verdict]]
    sentences = [f"{len(report.findings)} findings: {'; '.join(said)}."]
    sentences += [row["sentence"] for row in report.disagreement]
    smallest = report.vacuity["smallest_keeps"]
    found = [f"{name} from {keep:.3g}" for name, keep in smallest.items() if keep is not None]
    sentences.append(
        f"Blocks changed by pruning with a bound below 1, by keep ratio: {', '.join(found)}."
        if found
        else "At no keep ratio does any block that pruning changes have a bound below 1."
    )
    if settings["fresh_points_in_S"]:
        sentences.append(
            f"Warning: {settings['fresh_points_in_S']} of the {settings['fresh_points']} fresh points are in S as well."
        )
    sentences += [f"{name} stays dense: {reason}." for name, reason in settings["dense_weights"].items()]
    sentences.append(
        f"S: {settings['points']} points; fresh: {settings['fresh_points']}; delta {settings['delta']:g}; "
        f"a false alarm of one decision has probability at most {settings['level']:.1g}."
    )
    return sentences


def tables(report: "Report") -> list[Table]:
    """Vacuity, as (caption, columns, rows)."""
    vacuity, delta = report.vacuity, report.settings["delta"]
    return [
        _table(
            f"Draws needed for a bound below 1 (m* = 8/3 T ln(2/delta), delta {delta:g}), medians over active blocks",
            vacuity["draws_needed"],
            {
                "layer": "layer", "blocks": "blocks", "T": "T", "weights": "weights", "draws_needed": "m*",
                "ratio": "m*/weights", "reachable": "m* < weights",
            },
        ),
        _table(
            "Blocks that pruning changed: the share with epsilon < 1",
            vacuity["telling_blocks"],
            {
                "keep": "keep", "layer": "layer", "changed": "changed", "drawn": "drawn",
                "epsilon_median": "median epsilon", "telling": "epsilon < 1",
            },
        ),
        _table(
            "Factors of the sampling bound (C10) at each block's kept weights or draws m, medians; beside it claim "
            "C2's sum of dropped s, Delta of C18, and the smaller bound times Delta",
            vacuity["decomposition"],
            {
                "keep": "keep", "layer": "layer", "T": "T", "m": "m", "epsilon": "epsilon", "without_T": "if T = 1",
                "without_L": "if L = 1", "with_union": "union (C11)", "with_C": "C = 3", "dropping": "dropping",
                "Delta": "Delta", "Delta_max": "max Delta", "output": "eps Delta",
            },
        ),
    ]  # fmt: skip


def _table(caption: str, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> Table:
    return caption, list(columns.values()), [[_cell(row[key]) for key in columns] for row in rows]


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "-" if math.isnan(value) else f"{value:.3g}"
    return str(value)


def _keep(finding: Finding) -> str:
    if finding.data.get("synthetic"):
        return "synthetic"
    return f"{finding.data['keep']:g}" if "keep" in finding.data else "-"


def _skipped(report: "Report") -> list[str]:
    """One line a claim and reason, its keep ratios together."""
    keeps: dict[tuple[str, str], list[str]] = {}
    for entry in report.skipped:
        keeps.setdefault((entry["claim"], entry["reason"]), []).append(
            "" if entry["keep"] is None else f"{entry['keep']:g}"
        )
    return [
        f"{claim}{' at keep ' + ', '.join(values) if any(values) else ''}: {reason}"
        for (claim, reason), values in sorted(keeps.items(), key=lambda item: int(item[0][0][1:]))
    ]


def _wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(text, _WIDTH, initial_indent=indent, subsequent_indent=indent)


def _columns(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  " + "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def _html_table(table: Table) -> str:
    caption, columns, rows = table
    head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
    body = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return (
        f"<table><caption>{html.escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    )
