"""What a comparison is written as: a terminal table, JSON, JUnit XML, Markdown; and the command that writes them."""

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from sipp_bench.cli.commands import main
from sipp_bench.compare import output
from sipp_bench.compare.findings import Comparison, Finding, sort

NASTY = 'a<b>&"c" | *d* _e_ `f` [g](h)\x00\x1b\ud800\nend'


def comparison(*findings: Finding) -> Comparison:
    return Comparison("base", "new", "cell", sort(findings), ("torch 1 -> 2",))


SAME = Finding("cell", "one", "same", "Equal.")
WORSE = Finding("timing", NASTY, "regression", "1.15 times as slow.", (20, 20), (1.0, 1.15), "s", 1e-4, 2e-4)
FASTER = Finding("timing", "fast", "better", "1.12 times as fast.", (20, 20), (1.12, 1.0), "s", 1e-4, 2e-4)
UNKNOWN = tuple(Finding("timing", f"t{index}", "undecided", "Too few.", (3, 3), (1.0, 2.0)) for index in range(3))
STRANGE = Finding("cell", "strange", "not comparable", "The checkpoints differ.")


def test_text_has_counts_then_the_worst_first() -> None:
    text = output.as_text(comparison(SAME, *UNKNOWN, FASTER, WORSE, STRANGE))
    marks = [
        "torch 1 -> 2",
        "regression ",
        "regression: a<b>",
        "not comparable: strange",
        "undecided: t0 and 2 more: Too",
    ]
    marks += ["better: fast: 1.12 times as fast. Median 1.12 -> 1 s, n = 20 and 20", "Regression (exit code 1)."]
    places = [text.index(mark) for mark in marks]
    assert places == sorted(places)


def test_exit_codes() -> None:
    assert comparison(SAME, FASTER, *UNKNOWN, STRANGE).exit_code == 0
    assert comparison(SAME, WORSE).exit_code == 1
    assert comparison(STRANGE, FASTER).exit_code == 2, "no cell was compared"
    assert comparison().exit_code == 2


def test_json_is_versioned_and_complete() -> None:
    content = json.loads(output.as_json(comparison(SAME, WORSE)).encode("utf-8", "replace"))
    assert (content["format"], content["alpha"], content["verdict"], content["exit_code"]) == (1, 0.01, "regression", 1)
    worst, same = content["findings"]
    assert (worst["n"], worst["medians"], worst["p"], worst["p_adjusted"]) == ([20, 20], [1.0, 1.15], 1e-4, 2e-4)
    assert (same["status"], same["p"]) == ("same", None)


def test_junit_is_valid_whatever_the_names() -> None:
    suite = ET.fromstring(output.as_junit(comparison(SAME, WORSE, FASTER, *UNKNOWN, STRANGE)).encode())[0]
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors"), suite.get("skipped")) == (
        "7",
        "1",
        "0",
        "4",
    )
    assert len(suite.findall("testcase/failure")) == 1
    assert len(suite.findall("testcase/skipped")) == 4
    name = suite.findall("testcase")[0].get("name") or ""
    assert name.startswith('a<b>&"c" | *d*')
    assert "\x1b" not in name
    alone = ET.fromstring(output.as_junit(comparison(STRANGE)).encode())[0]
    assert alone.get("errors") == "1" == str(len(alone.findall("testcase/error")))


def test_markdown_escapes_and_is_limited() -> None:
    text = output.as_markdown(comparison(SAME, WORSE))
    (row,) = [line for line in text.splitlines() if line.startswith("| regression")]
    assert row.count("|") == 5
    assert not {"<b>", "`f`", "*d*", "[g]"} & {part for part in ("<b>", "`f`", "*d*", "[g]") if part in row}
    many = output.as_markdown(comparison(*(Finding("cell", str(i), "regression", "x") for i in range(300))))
    assert "And 100 more." in many


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    return int(caught.value.code or 0)


def timing_file(path: Path, scale: float) -> Path:
    seconds = [scale * (1 + index / 1000) for index in range(20)]
    info = {"subject_seconds": seconds, "reference_seconds": [1.0] * 20}
    path.write_text(json.dumps({"benchmarks": [{"fullname": "one", "extra_info": info}]}))
    return path


def test_the_command_writes_all_and_exits_with_the_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, slow = timing_file(tmp_path / "base.json", 1), timing_file(tmp_path / "slow.json", 1.2)
    files = [tmp_path / "out" / name for name in ("junit.xml", "found.json", "summary.md")]
    options = [part for pair in zip(("--junit", "--json", "--summary"), files, strict=True) for part in pair]
    assert call("compare", base, slow, *options) == 1
    assert "regression: one: 1.2 times as slow." in capsys.readouterr().out
    assert all(file.stat().st_size for file in files)
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == sorted(file.name for file in files)
    assert call("compare", base, base) == 0
    assert call("compare", slow, base) == 0


def test_the_command_refuses_what_it_cannot_read_or_write(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, empty = timing_file(tmp_path / "base.json", 1), tmp_path / "empty.json"
    empty.write_text("")
    assert call("compare", base, empty) == 2
    assert "empty.json is not JSON" in capsys.readouterr().err
    assert call("compare", base, base, "--json", tmp_path) == 2
    assert "is a folder" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["compare", "baseline"])
def test_help_ends_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(command, "--help") == 0
    assert f"sipp-bench {command} " in capsys.readouterr().out.rpartition("Example:")[2]
