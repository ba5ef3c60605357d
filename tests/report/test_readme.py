"""Every sentence with a number in the README is computed anew from raw data, or listed as no result."""

import re
from pathlib import Path

import pytest
from report import readme
from report.prose import has_number, units
from report.readme_sentences import sentences

STATED = (Path(__file__).parent / "stated.txt").read_text(encoding="utf-8").splitlines()
"""Sentences with numbers that are no results of this project's raw data: definitions, settings, versions, levels."""


def plain(text: str) -> str:
    return " ".join(text.split())


def problems(text: str, known: set[str]) -> list[str]:
    """What is wrong with the README's numbers: sections that are not as computed, sentences that nobody computes."""
    found = []
    for heading in readme.SECTIONS:
        written = readme.of_readme(heading, text)
        if plain(written) != plain(readme.section(heading)):
            found.append(f"The section {heading!r} is not what the data give: python tests/report/readme.py writes it.")
        text = text.replace(written, "")
    said = {plain(unit) for unit in units(text)}
    found += [f"No data and no entry of stated.txt: {unit}" for unit in said if has_number(unit) and unit not in known]
    return found + [f"Not in the README: {sentence}" for sentence in known - said]


@pytest.fixture(scope="module")
def text() -> str:
    return (readme.ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def known() -> set[str]:
    stated = [line for line in STATED if line and not line.startswith("# ")]
    return {plain(unit) for sentence in [*sentences(), *stated] for unit in units(sentence)}


def test_every_number_in_the_readme_is_what_the_data_give(text: str, known: set[str]) -> None:
    assert problems(text, known) == []


def test_a_changed_digit_is_seen_wherever_it_is(text: str, known: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    computed = {heading: readme.section(heading) for heading in readme.SECTIONS}
    monkeypatch.setattr(readme, "section", computed.__getitem__)
    numbers = [
        match.end() - 1
        for unit in (*sentences(), *"\n".join(computed.values()).splitlines())
        if has_number(unit)
        for match in [re.search(r"\s+".join(map(re.escape, unit.split())), text)]
        if match
    ]
    changed = 0
    for end in numbers:
        places = [place for place in range(max(0, end - 12), end) if text[place].isdigit()]
        for place in places[-1:]:
            other = f"{text[:place]}{(int(text[place]) + 1) % 10}{text[place + 1 :]}"
            assert problems(other, known), text[place - 60 : end]
            changed += 1
    assert changed > 30


def test_a_new_sentence_with_a_number_needs_data(text: str, known: set[str]) -> None:
    new = text.replace("## From Python\n", "## From Python\n\nIt is 17 times as fast.\n")
    assert problems(new, known) == ["No data and no entry of stated.txt: It is 17 times as fast."]
