"""The sentences of the report, each put together from the run's numbers."""

import json
import shlex
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from sipp_bench.compare.paired import VERDICTS
from sipp_bench.report.bounds import bound_sentence
from sipp_bench.report.collect import Collected, RunLike, Target, suite_table
from sipp_bench.report.comparisons import of_target
from sipp_bench.report.style import method_order
from sipp_bench.report.tables import NOTHING, interval, points, share, tests_over

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


def what_was_run(report: Collected) -> list[str]:
    """One paragraph a run: suite, networks, data, seeds, methods, keep ratios, protocol, counts, what is counted "
    "once."""
    cells = report.all_cells
    return [
        _paragraph(label, run, cells[cells["run"] == label]) + _counted_once(report, label)
        for label, run in report.runs.items()
    ]


def _counted_once(report: Collected, label: str) -> str:
    again = report.merged.again
    parts = [
        f"{len(rows):,} of its cells are equal by content (checkpoint, masks, accuracy) to cells of run {into}: these "
        "are the same networks, counted once, there, with the measures of both."
        for into, rows in again[again["run"] == label].groupby("into_run", sort=False)
    ]
    return "".join(f" {part}" for part in parts)


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


def answers(report: Collected, headlines: pd.DataFrame, details: pd.DataFrame, counts: pd.DataFrame) -> list[str]:
    """The findings in a few sentences: of every target the comparison with magnitude, then what its bounds say."""
    targets = list(report.targets())
    sentences = [_compared(target, of_target(headlines, target), of_target(details, target)) for target in targets]
    said = [bound_sentence(target, of_target(counts, target)) for target in targets]
    sentences += [sentence for sentence in said if sentence] or ["No bounds were checked in this run."]
    failed = len(report.failed)
    if failed:
        sentences.append(f"{counted(failed, 'cell')} failed; see the list of failures. Means are over the others.")
    return sentences


def _compared(target: Target, headlines: pd.DataFrame, details: pd.DataFrame) -> str:
    """The headline test of one target, and the verdicts by keep ratio."""
    dense = 100 * target.cells.drop_duplicates("seed")["dense_accuracy"].mean()
    opening = f"{target.label} (dense: {dense:.1f}% test accuracy):"
    if details.empty:
        return f"{opening} nothing was pruned."
    row = headlines.to_dict("records")[0]
    if pd.isna(row["verdict"]):
        return f"{opening} no SiPP and magnitude pruning of one seed at the same keep ratios to compare."
    over = f"over the mean of {counted(row['keeps'], 'keep ratio')} {row['sipp']}"
    where = f"{row['magnitude']}: {points(row['difference'])} points of test accuracy"
    headline = {
        "ahead": f"{over} is ahead of {where}",
        "behind": f"{over} is behind {where}",
        "undecided": f"undecided {over} against {where}",
        "at chance": f"at chance {over} and {where}",
        "one seed": f"one seed, which decides nothing, {over} against {where}",
    }[row["verdict"]]
    tested = f"95% interval {interval(row)}, n = {counted(row['n'], 'seed')}"
    if row["p_adjusted"] == row["p_adjusted"]:
        tested += f", p = {row['p_adjusted']:.2g} corrected for {tests_over(headlines)}"
    if row["n"] < 2:
        tested = f"n = {counted(row['n'], 'seed')}"
    by_verdict = details[details["verdict"].notna()].groupby("verdict", sort=False)["keep"].apply(list)
    parts = [f"{word} at {', '.join(map(share, by_verdict[word]))}" for word in VERDICTS if word in by_verdict]
    return f"{opening} {headline} ({tested}). By keep ratio, corrected for {tests_over(details)}: {'; '.join(parts)}."


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
