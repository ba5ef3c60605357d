"""A comparison as text for a terminal, JSON, JUnit XML, and Markdown for the summary page of a CI job."""

import html
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from dataclasses import asdict

from sipp_bench.compare.findings import ALPHA, KINDS, STATUSES, THRESHOLD, Comparison, Finding
from sipp_bench.store.records import to_json

FORMAT = 1
"""The version of the format of the JSON."""
_MOST_ROWS = 200
"""Of the Markdown: the pages that show it take a limited size."""

# What XML 1.0 does not allow, however it is escaped.
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def as_json(comparison: Comparison) -> str:
    """Everything, versioned."""
    return to_json(
        {
            "format": FORMAT,
            "base": comparison.base,
            "new": comparison.new,
            "verdict": comparison.verdict,
            "exit_code": comparison.exit_code,
            "alpha": ALPHA,
            "threshold": THRESHOLD,
            "counts": comparison.counts,
            "notes": comparison.notes,
            "findings": [asdict(finding) for finding in comparison.findings],
        }
    )


def as_text(comparison: Comparison) -> str:
    """Counts, then everything that is not the same, worst first; what has one reason in common is one line."""
    lines = [f"BASE {comparison.base}", f"NEW  {comparison.new}", *comparison.notes, ""]
    kinds = [kind for kind in KINDS if any(finding.kind == kind for finding in comparison.findings)]
    width = max(len(status) for status in STATUSES)
    lines.append(" " * width + "".join(f"{kind:>10}" for kind in kinds))
    for status, total in comparison.counts.items():
        counts = [sum(f.status == status and f.kind == kind for f in comparison.findings) for kind in kinds]
        if total:
            lines.append(f"{status:<{width}}" + "".join(f"{count:>10}" for count in counts))
    shown = [f"{group[0].status}: {_names(group)}: {_detail(group)}" for group in _grouped(comparison)]
    lines += ["", *shown] if shown else []
    lines += ["", f"{comparison.verdict[0].upper()}{comparison.verdict[1:]} (exit code {comparison.exit_code})."]
    return "\n".join(lines)


def as_junit(comparison: Comparison) -> str:
    """JUnit XML: a regression is a failure; where nothing could be compared, an error; what is undecided, skipped."""
    counts = comparison.counts
    errors = counts["not comparable"] if comparison.exit_code == 2 else 0
    skipped = counts["undecided"] + counts["not comparable"] - errors
    totals = {"tests": len(comparison.findings), "failures": counts["regression"], "errors": errors, "skipped": skipped}
    attributes = {"name": "sipp-bench compare"} | {key: str(value) for key, value in totals.items()}
    root = ET.Element("testsuites", attributes)
    suite = ET.SubElement(root, "testsuite", attributes)
    for finding in comparison.findings:
        case = ET.SubElement(suite, "testcase", classname=f"sipp-bench.{finding.kind}", name=_xml(finding.name))
        detail = _xml(_detail([finding]))
        if finding.status == "regression":
            ET.SubElement(case, "failure", message=detail, type="regression").text = detail
        elif finding.status == "not comparable" and errors:
            ET.SubElement(case, "error", message=detail, type=finding.status).text = detail
        elif finding.status in ("not comparable", "undecided"):
            ET.SubElement(case, "skipped", message=f"{finding.status}: {detail}")
        else:
            ET.SubElement(case, "system-out").text = f"{finding.status}: {detail}"
    ET.indent(root, " ")
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def as_markdown(comparison: Comparison) -> str:
    """GitHub-flavoured Markdown: the verdict, counts, and a table of what is not the same."""
    counts = ", ".join(f"{count} {status}" for status, count in comparison.counts.items() if count)
    lines = [f"## sipp-bench compare: {comparison.verdict}", "", f"{counts}."]
    if comparison.notes:
        lines += ["", *(f"- {_markdown(note)}" for note in comparison.notes)]
    groups = list(_grouped(comparison))
    if groups:
        lines += ["", "| status | kind | what | why |", "|---|---|---|---|"]
        for group in groups[:_MOST_ROWS]:
            cells = (group[0].status, group[0].kind, _names(group), _detail(group))
            lines.append("| " + " | ".join(_markdown(cell) for cell in cells) + " |")
    if len(groups) > _MOST_ROWS:
        lines += ["", f"And {len(groups) - _MOST_ROWS} more."]
    return "\n".join(lines) + "\n"


def _grouped(comparison: Comparison) -> Iterator[list[Finding]]:
    """What is not the same, worst first: regressions and improvements one by one, others by kind and reason."""
    groups: dict[tuple[str, ...], list[Finding]] = {}
    for finding in comparison.findings:
        own = finding.name if finding.status in ("regression", "better") else ""
        if finding.status != "same":
            groups.setdefault((finding.status, finding.kind, finding.message, own), []).append(finding)
    yield from groups.values()


def _names(group: Sequence[Finding]) -> str:
    more = f" and {len(group) - 1} more" if len(group) > 1 else ""
    return f"{group[0].name}{more}"


def _detail(group: Sequence[Finding]) -> str:
    """The message, and the numbers where there are any and they are of one finding."""
    finding = group[0]
    if len(group) > 1 or finding.medians is None or finding.n is None or finding.p_adjusted is None:
        return finding.message
    before, after = finding.medians
    return (
        f"{finding.message} Median {before:.4g} -> {after:.4g} {finding.unit}, "
        f"n = {finding.n[0]} and {finding.n[1]}, adjusted p = {finding.p_adjusted:.2g}."
    )


def _xml(text: str) -> str:
    return _NOT_XML.sub("\ufffd", text)


def _markdown(text: str) -> str:
    """As plain text in a table: nothing of it is markup."""
    plain = html.escape(" ".join(text.split()))
    return re.sub(r"[|*_`\[\]~\\]", lambda found: f"&#{ord(found[0])};", plain)
