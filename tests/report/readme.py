"""What the README says of results, computed from raw data in reports/: `python tests/report/readme.py` writes it in.

The computations are the tests' own, not the report's. Whole sections, by heading, are in `SECTIONS`; sentences of other
sections are in `readme_sentences`, and must be mended by hand.
"""

import json
import re
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd
from scipy import stats

ROOT = Path(__file__).parents[2]
LEVEL, CHANCE = 0.05, 0.01
CONTENT = ["network", "data", "seed", "method", "keep", "checkpoint_sha256", "mask_sha256", "retrained_sha256"]
TARGET = ["run", "network", "data"]
NETWORKS = {"lenet-300-100": "LeNet-300-100", "lenet-5": "LeNet-5", "resnet-20": "ResNet-20"}
RUNS = {
    "quick": "one-shot",
    "fashion": "one-shot",
    "fashion-resnet": "one-shot",
    "fashion-cascade": "iterative",
    "fashion-resnet-cascade": "iterative",
}


def cells_of(site: str) -> pd.DataFrame:
    """The finished cells of a site, each network once, in the run listed first."""
    cells = pd.read_csv(ROOT / "reports" / site / "data" / "cells.csv").query("status == 'done'")
    return cells.groupby(CONTENT, sort=False, dropna=False).first().reset_index()


def spread(values: "pd.Series[float]") -> str:
    return f"{100 * values.mean():.1f} ± {100 * values.std():.1f}"


def percent(keep: float) -> str:
    return f"{100 * keep:g}%"


def joined(parts: Sequence[str]) -> str:
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    lines = [heads, ["---" if place < left else "---:" for place in range(len(heads))], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def guessing(cells: pd.DataFrame) -> bool:
    """Whether no network is better than guessing, by exact binomial tests on its test images."""
    flipped = cells[cells["flips"] > 0].iloc[0]
    points, classes = round(flipped["flips"] / (1 - flipped["agreement"])), len(json.loads(flipped["class_accuracies"]))
    return bool((stats.binom.sf((cells["accuracy"] * points).round() - 1, points, 1 / classes) > CHANCE).all())


def chosen(cells: pd.DataFrame, sipp: bool) -> pd.DataFrame:
    """The cells of the variant with the best mean validation accuracy, of those with the most cells."""
    side = cells[cells["method_name"].str.startswith("sipp-") if sipp else cells["method_name"] == "magnitude"]
    sizes = side["method"].value_counts()
    side = side[side["method"].isin(sizes[sizes == sizes.max()].index)]
    return side[side["method"] == side.groupby("method", sort=False)["validation_accuracy"].mean().idxmax()]


def compare(cells: pd.DataFrame) -> dict[str, object]:
    """SiPP minus magnitude over these cells' keep ratios, paired by seed: paired t with its 95 % interval."""
    sipp, magnitude = chosen(cells, True), chosen(cells, False)
    wide = [side.pivot(index="seed", columns="keep", values="accuracy") for side in (sipp, magnitude)]
    apart = (wide[0] - wide[1]).dropna(how="all").dropna(how="all", axis=1).dropna().mean(axis=1)
    found: dict[str, object] = {"sipp": sipp["method"].iloc[0], "magnitude": magnitude["method"].iloc[0]}
    found |= {"n": len(apart), "difference": apart.mean(), "interval": "–", "p": None}
    found["accuracies"] = [100 * side[side["seed"].isin(apart.index)]["accuracy"].mean() for side in (sipp, magnitude)]
    if guessing(pd.concat([sipp, magnitude])):
        return found | {"verdict": "at chance"}
    if len(apart) < 2:
        return found | {"verdict": "one seed"}
    if apart.std() < 1e-12:
        return found | {"p": 2.0 ** (1 - len(apart)) if apart.any() else 1.0}
    tested = stats.ttest_1samp(apart, 0)
    low, high = tested.confidence_interval(0.95)
    return found | {"p": tested.pvalue, "interval": f"{100 * low:+.1f} to {100 * high:+.1f}"}


def judge(found: list[dict[str, object]]) -> int:
    """Holm's correction over all that was tested: writes `p` and `verdict`; how many tests there were."""
    tested = sorted((each for each in found if each["p"] is not None), key=lambda each: float(str(each["p"])))
    least = 0.0
    for place, each in enumerate(tested):
        least = max(least, min(1.0, float(str(each["p"])) * (len(tested) - place)))
        each["p"] = least
        word = "ahead" if float(str(each["difference"])) > 0 else "behind"
        each["verdict"] = word if least <= LEVEL else "undecided"
    return len(tested)


def comparison(cells: pd.DataFrame) -> str:
    """The headline tests as a table, and by keep ratio how many of each verdict."""
    cells = cells[cells["keep"] < 1]
    groups = list(cells.groupby(TARGET, sort=False))
    heads = [compare(group) for _, group in groups]
    details = [(key, keep, compare(at)) for key, group in groups for keep, at in group.groupby("keep")]
    tests, detailed = judge(heads), judge([found for _, _, found in details])
    rows = []
    for (key, group), found in zip(groups, heads, strict=True):
        run, network, data = map(str, key)
        dense = group.drop_duplicates("seed")["dense_accuracy"]
        one, other = found["accuracies"]  # type: ignore[misc]  # two numbers
        name = f"{NETWORKS[network]}, {data}, {RUNS[run]}"
        sides = [f"`{found['sipp']}` {one:.1f}", f"`{found['magnitude']}` {other:.1f}"]
        difference, p = f"{100 * float(str(found['difference'])):+.1f}", found["p"]
        tested = [difference, str(found["interval"]), str(found["n"]), "–" if p is None else f"{p:.2g}"]
        rows.append([f"{name} ({100 * dense.mean():.1f})", *sides, *tested, f"**{found['verdict']}**"])
    columns = ["network (dense accuracy, %)", "SiPP, %", "magnitude, %", "difference", "95 % interval", "n", "p"]
    words = [str(found["verdict"]) for _, _, found in details]
    counts = [f"{words.count(word)} {word}" for word in ("ahead", "behind", "undecided", "at chance", "one seed")]
    decided = [
        f"{found['verdict']} by {100 * abs(float(str(found['difference']))):.1f} points on {NETWORKS[str(key[1])]}, "
        f"{key[2]}, {RUNS[str(key[0])]}, at {percent(float(str(keep)))} (n = {found['n']}, {found['interval']}, "
        f"p = {found['p']:.2g})"
        for key, keep, found in details
        if found["verdict"] in ("ahead", "behind")
    ]
    chance: dict[str, list[str]] = {}
    for key, keep, found in reversed(details):
        if found["verdict"] == "at chance":
            chance.setdefault(f"{NETWORKS[str(key[1])]}, {RUNS[str(key[0])]}", []).append(percent(float(str(keep))))
    said = [f"By keep ratio, corrected over {detailed} tests, SiPP is: {', '.join(counts)}."]
    said += [f"Decided: {'; '.join(decided)}."] if decided else []
    said += [f"At chance, where no method is best: {name} at keep {joined(at)}." for name, at in chance.items()]
    intro = (
        "One test a network: test accuracy over the mean of all keep ratios, the variant of each side chosen on "
        f"validation, SiPP minus magnitude in points, paired by seed (paired t, n seeds; p by Holm over {tests} tests; "
        f"ahead or behind: p at most {LEVEL:g}). Three seeds decide little."
    )
    return "\n\n".join([intro, table([*columns, "SiPP is"], rows), " ".join(said)])


def vacuity(site: str) -> str:
    """Of every run and network the share of bounds that say nothing: the range over its claims, never pooled."""
    checks = pd.read_csv(ROOT / "reports" / site / "data" / "checks.csv")
    on_s, fresh = (checks[checks["on"] == on] for on in ("S", "fresh"))
    keeps = sorted(on_s["keep"].unique(), reverse=True)
    rows, seen = [], []
    for (run, network, data), group in on_s.groupby(TARGET, sort=False):
        shares = group.groupby(["keep", "claim"])[["vacuous", "blocks"]].sum()
        ratio = 100 * shares["vacuous"] / shares["blocks"]
        ends = [(f"{ratio[keep].min():.1f}", f"{ratio[keep].max():.1f}") if keep in ratio else ("–",) for keep in keeps]
        cells = ["–".join(dict.fromkeys(pair)) for pair in ends]
        about = "last step of iterative pruning" if RUNS[str(run)] == "iterative" else "one-shot"
        claims = sorted(group["claim"].unique(), key=lambda claim: int(claim[1:]))
        rows.append([f"{NETWORKS[str(network)]}, {data}, {about}", ", ".join(claims), *cells])
        here = fresh[(fresh[TARGET] == [run, network, data]).all(axis=1)]
        of_c2 = [each[each["claim"] == "C2"] for each in (group, here)]
        says = int((of_c2[0]["blocks"] - of_c2[0]["vacuous"]).sum())
        if says:
            count = int(of_c2[1]["exceeding"].sum())
            seen.append(f"{100 * count / says:.2g} % of {says:,} ({NETWORKS[str(network)]}, {data}, {about})")
    certain, blocks = int(on_s["exceeding_certain"].sum()), int((on_s["blocks"] - on_s["drawn"]).sum())
    heads = ["ε ≥ 1, % of blocks, by keep", "claims", *map(percent, keeps)]
    return "\n\n".join(
        [
            "**Bounds.** Most say nothing (ε ≥ 1: dropping the block would honour them too). From the lowest to the "
            "highest of the claims:",
            table(heads, rows, 2),
            f"Of {blocks:,} bounds that hold with certainty {certain} are exceeded on S. On fresh points, of which no "
            f"claim speaks without more, errors exceed C2's bound in {'; '.join(seen)} of those bounds "
            "that say something.",
        ]
    )


def distribution() -> str:
    """How the bounds of the quick run's first network are distributed; "" where the data do not say."""
    file = ROOT / "reports" / "quick" / "data" / "bounds.csv"
    if not file.exists():
        return ""
    bounds = pd.read_csv(file).query("network == 'lenet-300-100' and data == 'mnist-digits' and run == 'quick'")
    rows = []
    for claim, group in sorted(bounds.groupby("claim"), key=lambda item: int(str(item[0])[1:])):
        sums = group.groupby("keep")[["blocks", "below_0.1", "below_0.5", "below_1"]].sum().sort_index(ascending=False)
        shares = 100 * sums.iloc[:, 1:].div(sums["blocks"], axis=0)
        rows.append([str(claim), *(" / ".join(f"{value:.0f}" for value in row) for _, row in shares.iterrows())])
    heads = ["ε < 0.1 / < 0.5 / < 1, % of blocks", *(percent(keep) for keep in sums.index)]
    return f"The sizes of the bounds on LeNet-300-100, MNIST digits:\n\n{table(heads, rows)}"


def quick() -> Iterator[str]:
    cells = cells_of("quick")
    own = cells[cells["run"] == "quick"]
    first = own.query("network == 'lenet-300-100' and data == 'mnist-digits'")
    seeds = first["seed"].nunique()
    flipped = first[first["flips"] > 0].iloc[0]
    points = round(flipped["flips"] / (1 - flipped["agreement"]))
    yield (
        "LeNet-300-100 on 5,000 MNIST digits, one-shot, without retraining: test accuracy in %, mean ± sample standard "
        f"deviation over {seeds} seeds (each with its own split, training and draws; {points:,} test images; dense "
        f"network {spread(first.drop_duplicates('seed')['dense_accuracy'])}), by the fraction of weights kept. Raw "
        "data and the other networks: [reports/quick](reports/quick/report.md), made by `sipp-bench run quick`."
    )
    keeps = sorted(first["keep"].unique(), reverse=True)
    rows = [
        [f"`{method}`", *(spread(of_method[of_method["keep"] == keep]["accuracy"]) for keep in keeps)]
        for method, of_method in first.groupby("method", sort=False)
    ]
    yield table(["method", *map(percent, keeps)], rows)
    yield comparison(own)
    yield vacuity("quick")
    if found := distribution():
        yield found
    measured = cells["corrupted_accuracy"].notna()
    twin = cells[cells["twin_agreement"].notna()].drop_duplicates(["network", "seed"])
    of_network = [
        f"{100 * group.mean():.1f} % ({100 * group.min():.1f} to {100 * group.max():.1f}, n = {len(group)}) on "
        f"{NETWORKS[str(name)]}"
        for name, group in twin.groupby("network", sort=False)["twin_agreement"]
    ]
    yield (
        f"Run `beyond` has the measures beyond accuracy of {measured.sum()} of these {len(cells)} networks (the same "
        "by content, counted once): corrupted images, random layer budgets, latency in pairs, and as control a second "
        f"dense network, trained from another seed, which agrees with the first on {joined(of_network)} of the test "
        "images."
    )


def fashion() -> Iterator[str]:
    cells = cells_of("fashion")
    flipped = cells[cells["flips"] > 0].iloc[0]
    points = round(flipped["flips"] / (1 - flipped["agreement"]))
    keeps = sorted(cells["keep"].unique())
    yield (
        f"[reports/fashion](reports/fashion) (open `index.html`; raw data under `data/`): {points:,} test images, "
        f"{cells['seed'].nunique()} seeds, {len(keeps)} keep ratios from {percent(keeps[-1])} down to "
        f"{percent(keeps[0])}. "
        "Its pages are of an earlier version, which called ahead and behind what three seeds do not decide; the "
        "numbers below are computed from its raw data."
    )
    yield comparison(cells)
    resnet = cells[cells["run"] == "fashion-resnet-cascade"]
    planned = len(json.loads((ROOT / "reports/fashion/data/fashion-resnet-cascade.run.json").read_text())["cells"])
    of_seeds = [
        f"`{name}` with {group['seed'].nunique()} {'seed' if group['seed'].nunique() == 1 else 'seeds'}"
        for name, group in resnet.groupby("method", sort=False)
    ]
    of_hybrid = resnet[resnet["method_name"] == "sipp-hybrid"]
    at = {keep: spread(of_hybrid[of_hybrid["keep"] == keep]["accuracy"]) for keep in (0.5, 0.1, 0.01)}
    retrained = [f"{accuracy} % at keep {percent(keep)}" for keep, accuracy in at.items()]
    yield (
        f"Iterative pruning retrains for one epoch after each step. Of ResNet-20's {planned} cells {len(resnet)} were "
        f"run: {joined(of_seeds)}; retraining leaves `{of_hybrid['method'].iloc[0]}` {joined(retrained)}."
    )
    yield vacuity("fashion")
    yield (
        "A bound of iterative pruning is about the last step, from the network retrained after the step before to what "
        "was pruned from it; no bound speaks of the whole way from the dense network. Times in `fashion-resnet` and "
        "`fashion-cascade` are of a version that pruned more slowly."
    )


SECTIONS = {"What the quick run gave": quick, "Fashion-MNIST": fashion}


def section(heading: str) -> str:
    """The section's text, in lines of at most 120 characters but for tables."""
    blocks = "\n\n".join(SECTIONS[heading]()).split("\n\n")
    options = {"break_long_words": False, "break_on_hyphens": False}
    return "\n\n".join(block if block.startswith("|") else textwrap.fill(block, 120, **options) for block in blocks)


def of_readme(heading: str, text: str) -> str:
    """The text below a heading of the README, up to the next."""
    found = re.search(rf"^## {re.escape(heading)}\n\n(.*?)\n(?=\n## |\Z)", text, flags=re.MULTILINE | re.DOTALL)
    assert found, f"The README has no section {heading!r}."
    return found[1]


if __name__ == "__main__":
    readme = ROOT / "README.md"
    written = readme.read_text(encoding="utf-8")
    for title in SECTIONS:
        written = written.replace(of_readme(title, written), section(title).rstrip())
    readme.write_text(written, encoding="utf-8")
