"""The sentences of the report, each put together from the run's numbers."""

import json
import shlex
import tomllib
from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import pandas as pd

from sipp_bench.report.collect import Collected, RunLike, Target
from sipp_bench.report.style import method_order
from sipp_bench.report.summaries import compare_with_magnitude, overall_checks
from sipp_bench.report.tables import NOTHING, number, percent, share

CLAIMS = {
    "C2": "dropping weights leaves every quadrant sum of a block within ε = min(1, sum of the dropped "
    "sensitivities), relative, for every point of S: an identity, no probability",
    "C10": "sampling m weights with replacement by sensitivity leaves a quadrant sum within ε(m), "
    "Bernstein's bound, with probability at least 1 − δ over the draws",
    "C12": "the hybrid runs, block by block, whichever of C2 and C10 promises the smaller ε, and keeps that "
    "one's promise",
    "C13": "the mixture keeps the largest sensitivities and samples or drops the rest; Bernstein's bound "
    "for the rest, with probability at least 1 − δ over the draws",
}


def suite_table(run: RunLike) -> dict[str, Any]:
    """The suite file of a run, parsed; {} when its text is not TOML."""
    try:
        return tomllib.loads(run.meta["suite"].get("text", ""))
    except tomllib.TOMLDecodeError:
        return {}


def what_was_run(report: Collected) -> list[str]:
    """One paragraph a run: suite, networks, data, seeds, methods, keep ratios, protocol, counts."""
    return [_paragraph(label, run, report.cells[report.cells["run"] == label]) for label, run in report.runs.items()]


def _paragraph(label: str, run: RunLike, cells: pd.DataFrame) -> str:
    suite = suite_table(run)
    description = str(suite.get("description", "")).rstrip(".")
    targets = cells[["network", "data"]].drop_duplicates()
    named = [f"{network} on {data}" for network, data in targets.itertuples(index=False)]
    methods = list(method_order(cells))
    keeps = [share(keep) for keep in sorted(cells["keep"].unique(), reverse=True)]
    seeds = sorted(cells["seed"].unique())
    points = sorted(cells["num_points"].dropna().unique())
    looked = f"The methods looked at {join(f'{count:g}' for count in points)} points of S. " if points else ""
    return (
        f"Run {label}, suite "
        f"{run.meta['suite'].get('name', NOTHING)}{f' ({description})' if description else ''}: "
        f"{join(named)}; {counted(len(methods), 'method')} ({', '.join(methods)}) at "
        f"{counted(len(keeps), 'keep ratio')} ({', '.join(keeps)} of the prunable weights) with "
        f"{counted(len(seeds), 'seed')} ({join(map(str, seeds))}); protocol "
        f"{suite.get('protocol', 'one-shot')}. {looked}{_counts(run, cells)}"
    )


def _counts(run: RunLike, cells: pd.DataFrame) -> str:
    planned, done = len(run.meta["cells"]), int((cells["status"] == "done").sum())
    failed, missing = len(cells) - done, planned - len(cells)
    opening = f"Of {counted(planned, 'planned cell')}, {done:,} finished, {failed:,} failed"
    return f"{opening} and {missing:,} {'was' if missing == 1 else 'were'} not run."


def answers(report: Collected) -> list[str]:
    """The findings in a few sentences."""
    sentences = [sentence for target in report.targets() for sentence in _against_magnitude(target)]
    sentences += _bounds(report)
    failed = len(report.failed)
    if failed:
        sentences.append(f"{counted(failed, 'cell')} failed; see the list of failures. Means are over the others.")
    return sentences


def _against_magnitude(target: Target) -> list[str]:
    dense = 100 * target.cells.drop_duplicates("seed")["dense_accuracy"].mean()
    opening = f"{target.label} (dense: {dense:.1f}% test accuracy):"
    table = compare_with_magnitude(target)
    if table.empty:
        return [f"{opening} nothing was pruned."]
    winners = _winners(table)
    pairs = table[table["pairs"] > 0]
    if pairs.empty:
        return [f"{opening} no SiPP and magnitude pruning at the same keep ratio to compare.{winners}"]
    shown = pairs["difference"].round(3)  # as it is written, in tenths of points
    groups = {"behind": pairs[shown < 0], "ahead": pairs[shown > 0], "level": pairs[shown == 0]}
    parts = [f"{word} at keep {_extent(rows, word != 'level')}" for word, rows in groups.items() if len(rows)]
    compared = f"against the best magnitude variant, the best SiPP variant is {'; '.join(parts)}"
    return [f"{opening} {compared}.{winners}"]


def _extent(rows: pd.DataFrame, differ: bool) -> str:
    """At which keep ratios, and the largest difference in points if they differ."""
    keeps = ", ".join(map(share, rows["keep"]))
    largest = rows.iloc[int(rows["difference"].abs().argmax())]
    points = f"{100 * abs(largest['difference']):.1f} points"
    if not differ:
        return keeps
    return f"{keeps}, by {points}" if len(rows) == 1 else f"{keeps}, by up to {points} (at {share(largest['keep'])})"


def _winners(table: pd.DataFrame) -> str:
    chosen = table[table["best"].notna()]
    if chosen.empty:
        return ""
    keeps = chosen.groupby("best", sort=False)["keep"].apply(lambda keep: ", ".join(map(share, keep)))
    return f" Best by validation: {'; '.join(f'{method} at {where}' for method, where in keeps.items())}."


def _bounds(report: Collected) -> list[str]:
    if report.checks.empty:
        return ["No bounds were checked in this run."]
    sentences = []
    overall = overall_checks(report)
    for claim in in_claim_order(overall["claim"].unique()):
        parts = []
        for row in overall[(overall["claim"] == claim) & (overall["blocks"] > 0)].to_dict("records"):
            if row["on"] == "S":
                parts.append(_vacuous(report.checks[report.checks["claim"] == claim]))
            parts.append(_excess(row))
        sentences.append(f"Claim {claim}: {'; '.join(parts)}.")
    return sentences


def _excess(row: dict[Hashable, Any]) -> str:
    """How many measured errors exceed their bound, of one claim on one kind of points."""
    share_of_all = number(100 * row["exceeding"] / row["blocks"], "{:.2g}")
    found = f"{row['exceeding']:,} of {row['blocks']:,} measured errors exceed their bound ({share_of_all}%)"
    if row["on"] != "S":
        if not row["exceeding"]:
            found = "no error exceeds its bound"
        return f"on fresh points, of which the claim says nothing, {found}"
    if not row["exceeding"]:
        return "no measured error on S exceeds its bound; 0 violations"
    if not row["violated"]:
        return f"on S {found}, all of drawn blocks, to which the claim allows it with probability δ; 0 violations"
    return f"on S {found}; {counted(row['violated'], 'violation')}"


def _vacuous(checks: pd.DataFrame) -> str:
    """How many of one claim's bounds on S say nothing: over all, and at the ends of the keep ratios."""
    on_s = checks[checks["on"] == "S"]
    overall = percent(on_s["vacuous"].sum() / on_s["blocks"].sum())
    by_keep = on_s[on_s["keep"] < 1].groupby("keep")[["vacuous", "blocks"]].sum().sort_index(ascending=False)
    rows = by_keep.reset_index().to_dict("records")
    ends = [f"{percent(row['vacuous'] / row['blocks'])}% at keep {share(row['keep'])}" for row in rows]
    between = f", from {ends[0]} to {ends[-1]}" if len(ends) > 1 else ""
    return (
        f"{overall}% of {on_s['blocks'].sum():,} bounds are vacuous (ε ≥ 1: no better than dropping the block){between}"
    )


def in_claim_order(claims: Iterable[str]) -> list[str]:
    """C2 before C10: by number."""
    return sorted(claims, key=lambda claim: (len(claim), claim))


def provenance(label: str, run: RunLike, cells: pd.DataFrame) -> list[tuple[str, str]]:
    """Everything about a run that someone who wants to repeat it needs, as names and values."""
    meta = run.meta
    suite = meta["suite"]
    facts = [
        ("Run", label),
        ("Suite", f"{suite.get('name', NOTHING)}, SHA-256 {suite.get('sha256', NOTHING)}"),
        ("Commit", _commit(meta)),
        ("Started", str(meta.get("started", NOTHING))),
        ("Seeds", ", ".join(map(str, sorted(cells["seed"].unique())))),
    ]
    for section in ("machine", "versions"):
        facts += [(f"{section.capitalize()}: {key}", _value(key, value)) for key, value in _items(meta, section)]
    facts += [("A worker's machine", json.dumps(machine)) for _, machine in _items(meta, "workers")]
    facts += [("Resumed later on", json.dumps(system)) for system in meta.get("resumed", ())]
    facts += [(f"Data: {name}", _hashes(value)) for name, value in _items(meta, "data")]
    facts += [(f"Checkpoint: {name}", _hashes(value)) for name, value in _items(meta, "checkpoints")]
    facts.append(("To remake it", _command(label, str(suite.get("name", "suite")))))
    return facts


def _command(label: str, suite: str) -> str:
    run, file, report = (shlex.quote(word) for word in (label, f"{suite}.toml", f"{label}-report"))
    return (
        f"save the suite file below as {file}, then: sipp-bench run {file} -o {run} && sipp-bench report "
        f"{run} -o {report}"
    )


def timing_conditions(run: RunLike) -> str:
    """Device, threads and processor that the times were measured on, and what ran beside."""
    machine = run.meta.get("machine", {})
    threads = machine.get("torch_threads", NOTHING)
    device = f"{machine['device']}, beside the CPU" if "device" in machine else "the CPU"
    beside = ""
    if "workers" in machine:
        beside = f" {machine['workers']} processes shared the machine, which takes longer than one alone."
    elif run.meta.get("workers"):
        beside = f" Cells were measured on {len(run.meta['workers'])} other machines as well."
    return (
        f"Measured on {device} ({machine.get('cpu') or 'unknown processor'}, {machine.get('cores', NOTHING)} "
        f"cores) with {threads} torch thread{'' if threads == 1 else 's'}, float32, wall clock, one sample each time "
        f"the stage ran, no warm-up; of a GPU until its work is done.{beside}"
    )


def _items(meta: Mapping[str, Any], section: str) -> Iterable[tuple[str, Any]]:
    return dict(meta.get(section) or {}).items()


def _hashes(value: Any) -> str:
    return ", ".join(f"{key} {item}" for key, item in value.items()) if isinstance(value, dict) else str(value)


def _value(key: str, value: Any) -> str:
    if value is None:
        return NOTHING
    if key == "memory_bytes":
        return f"{value / 2**30:.1f} GiB"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return str(value)


def _commit(meta: Mapping[str, Any]) -> str:
    if not meta.get("commit"):
        return "not known (not run from a checkout)"
    state = {True: "with uncommitted changes", False: "clean", None: "state not known"}[meta.get("dirty")]
    return f"{meta['commit']} ({state})"


def join(parts: Iterable[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    *first, last = list(parts) or [NOTHING]
    return f"{', '.join(first)} and {last}" if first else last


def counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")
