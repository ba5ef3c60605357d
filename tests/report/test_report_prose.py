"""The sentences of "The answer" of published reports of this version, computed anew from the raw data beside them."""

import re
from pathlib import Path
from typing import Any

import pandas as pd
from report import readme
from report.prose import has_number

PUBLISHED = [site for site in (readme.ROOT / "reports").iterdir() if (site / "data" / "comparisons.csv").exists()]
"""Sites of earlier versions have other sentences; their tables are checked in test_published."""


def answers(site: Path) -> list[str]:
    text = (
        (site / "report.md").read_text(encoding="utf-8").partition("## The answer\n")[2].partition("\nSiPP against")[0]
    )
    return [line.removeprefix("- ").replace("\\", "") for line in text.splitlines() if line]


def expected(site: Path) -> list[str]:
    cells = pd.read_csv(site / "data" / "cells.csv").query("status == 'done'")
    groups = list(cells.groupby(readme.TARGET, sort=False))
    label = {key: f"{key[1]} on {key[2]}" + (f", run {key[0]}" if several(site) else "") for key, _ in groups}
    pruned = [(key, group[group["keep"] < 1]) for key, group in groups]
    heads = [readme.compare(group) for _, group in pruned]
    details = [
        (key, keep, readme.compare(at)) for key, group in pruned for keep, at in list(group.groupby("keep"))[::-1]
    ]
    tests, detailed = readme.judge(heads), readme.judge([found for _, _, found in details])
    said = []
    for (key, group), found in zip(groups, heads, strict=True):
        dense = 100 * group.drop_duplicates("seed")["dense_accuracy"].mean()
        words = [
            f"{label[key]} (dense: {dense:.1f}% test accuracy)",
            f"{100 * float(str(found['difference'])):+.1f} points",
        ]
        words += [str(found["sipp"]), str(found["magnitude"]), str(found["verdict"]), f"n = {found['n']} seed"]
        if found["p"] is not None:
            words += [f"95% interval {found['interval']}", f"p = {found['p']:.2g} corrected for {tests} test"]
        for word in dict.fromkeys(str(each["verdict"]) for at, _, each in details if at == key):
            keeps = [readme.percent(float(str(k))) for at, k, each in details if at == key and each["verdict"] == word]
            words.append(f"{word} at {', '.join(keeps)}")
        words.append(f"corrected for {detailed} test")
        said.append("|".join(words))
    return said + bounds(site, label)


def several(site: Path) -> bool:
    return len(list((site / "data").glob("*.run.json"))) != 1


def bounds(site: Path, label: dict[Any, str]) -> list[str]:
    counts, checks = (pd.read_csv(site / "data" / f"{name}.csv") for name in ("bounds", "checks"))
    said = []
    for key, group in counts.groupby(readme.TARGET, sort=False):
        words = [f"Bounds of {label[key]}"]
        for claim, of_claim in sorted(group.groupby("claim"), key=lambda item: int(str(item[0])[1:])):
            rows = checks[(checks[readme.TARGET] == list(key)).all(axis=1) & (checks["claim"] == claim)]
            on_s = rows[(rows["on"] == "S") & (rows["keep"] < 1)]
            for keep in (on_s["keep"].max(), on_s["keep"].min()):
                at = on_s[on_s["keep"] == keep]
                words.append(f"{100 * at['vacuous'].sum() / at['blocks'].sum():.1f}% at keep {readme.percent(keep)}")
            telling = int(of_claim["below_1"].sum())
            words.append(f"of the {telling:,} that say something")
            for name, rest in (("exceeding_S", "are exceeded on S"), ("exceeding_fresh", "on fresh points")):
                count = int(of_claim[name].sum())
                words.append((f"{count:,} ({100 * count / telling:.2g}%) " if count else "0 ") + rest)
            violated = int((rows["verdict"] == "violated").sum())
            words.append(f"{violated:,} violation")
        said.append("|".join(words))
    return said


def differences(site: Path) -> list[str]:
    """Sentences that lack what the data give, in order; and those that nobody computes."""
    found, wanted = answers(site), expected(site)
    missing = []
    for sentence, words in zip(found, wanted, strict=False):
        rest = sentence
        missing += [f"{word!r} is not in {sentence!r}" for word in words.split("|") if word not in rest]
        for word in sorted(words.split("|"), key=len, reverse=True):
            rest = rest.replace(word, "")
        rest = re.sub(r"C\d+:|mean of \d+ keep ratios?|95% interval|ε ≥ 1", "", rest)
        missing += [f"Not computed: {rest!r}"] if has_number(rest) else []
    return missing + [f"Not computed: {sentence!r}" for sentence in found[len(wanted) :] if has_number(sentence)]


def test_every_number_of_the_answers_is_what_the_data_give() -> None:
    assert {site.name: differences(site) for site in PUBLISHED} == {site.name: [] for site in PUBLISHED}
