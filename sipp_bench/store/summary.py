"""A run in a few lines of plain text, for the terminal."""

from sipp_bench.store.folder import Run


def summary(run: Run) -> str:
    """In plain text: test accuracy by method and keep ratio, verdicts of the checks, failures, counts."""
    lines = []
    done = run.cells[run.cells["status"] == "done"]
    failed = run.cells[run.cells["status"] == "failed"]
    for (network, data_name), cells in done.groupby(["network", "data"], sort=False):
        dense = cells.groupby("seed")["dense_accuracy"].first()
        table = cells.pivot_table(index="method", columns="keep", values="accuracy", sort=False)
        table = table.sort_index(axis="columns", ascending=False).map("{:.1%}".format)
        lines += [
            f"{network} on {data_name}: test accuracy, mean of {len(dense)} seeds. Dense {dense.mean():.1%}",
            table.rename_axis(columns="keep", index=None).to_string(na_rep="-"),
            "",
        ]
    for name, size in run.meta.get("sample_size", {}).items():
        lines.append(
            f"{name}: the authors' rule asks for {size['wanted']} points; S has {size['there']}, all looked at."
        )
    if len(run.checks):
        lines.append("Checks, one a layer and cell:")
        verdicts = run.checks.groupby(["claim", "on", "verdict"]).size().unstack(fill_value=0)
        lines += [verdicts.reset_index().rename_axis(columns=None).to_string(index=False), ""]
    for error, cells in failed.groupby("error", sort=False):
        lines.append(f"{len(cells)} cells failed, the first {cells['id'].iloc[0]}: {error}")
    planned = len(run.meta["cells"])
    lines.append(f"{len(done)} of {planned} cells done, {len(failed)} failed. Results: {run.path}")
    return "\n".join(lines)
