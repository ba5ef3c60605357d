"""Suite files: what is accepted, and in which words everything else is refused."""

import hashlib
import re
from pathlib import Path

import pytest

from sipp_bench.bench.suite import list_suites, load_suite, parse_suite
from sipp_bench.errors import SuiteError
from sipp_bench.store.cell import Cell

TOP = """
name = "small"
seeds = [0, 1]
keep = [1, 0.5, 0.1]
"""
TARGET = """
[[target]]
network = "lenet-300-100"
data = "digits"
"""
METHOD = """
[[method]]
name = "magnitude"
"""
GOOD = TOP + TARGET + METHOD


def test_cells_are_the_product_in_a_fixed_order() -> None:
    text = GOOD + '[[method]]\nname = "sipp-det"\nweights = "downstream"\n'
    cells = parse_suite(text, "x").cells()
    assert len(cells) == 2 * 2 * 3
    assert cells[0] == Cell("lenet-300-100", "digits", 0, "magnitude", 1.0)
    assert [cell.keep for cell in cells[:3]] == [1.0, 0.5, 0.1]
    assert cells[3].method == "sipp-det-downstream"
    assert cells[6].seed == 1
    assert cells == parse_suite(text, "x").cells()


def test_ids_are_readable_distinct_and_fit_for_file_names() -> None:
    cells = load_suite("quick").cells()
    ids = [cell.id for cell in cells]
    assert len({cell_id.lower() for cell_id in ids}) == len(cells)
    assert all(re.fullmatch(r"[A-Za-z0-9._+=-]+", cell_id) for cell_id in ids)
    assert Cell("torchvision:resnet18", "digits", 2, "wanda", 0.1).id == (
        "torchvision-resnet18--digits--wanda--s2--k0.1"
    )


def test_defaults() -> None:
    suite = parse_suite(GOOD, "x")
    assert (suite.points, suite.protocol, suite.description) == (256, "one-shot", "")
    assert suite.checks == ("C2", "C10", "C12", "C13")
    assert parse_suite("points = 'sample-size'\n" + GOOD, "x").points == "sample-size"
    assert parse_suite("checks = []\n" + GOOD, "x").checks == ()


def test_default_labels_name_the_options() -> None:
    text = GOOD + '[[method]]\nname = "sipp-rand"\nweights = "layer"\ndelta = 0.05\n'
    suite = parse_suite(text, "x")
    assert [method.label for method in suite.methods] == ["magnitude", "sipp-rand-layer-delta=0.05"]
    assert suite.methods[1].options == {"weights": "layer", "delta": 0.05}


def test_text_and_hash_are_kept(tmp_path: Path) -> None:
    file = tmp_path / "small.toml"
    file.write_bytes(GOOD.encode())
    suite = load_suite(file)
    assert suite.text == GOOD
    assert suite.sha256 == hashlib.sha256(GOOD.encode()).hexdigest()
    assert load_suite(str(file)).sha256 == suite.sha256
    assert parse_suite(GOOD + "# edited\n", "x").sha256 != suite.sha256


def test_line_ends_are_kept(tmp_path: Path) -> None:
    file = tmp_path / "small.toml"
    file.write_bytes(GOOD.replace("\n", "\r\n").encode())
    assert load_suite(file).text == GOOD.replace("\n", "\r\n")


REFUSED = {
    "not TOML": ("name = ", [], ["is not TOML"]),
    "unknown key": ("sedes = [1]\n" + GOOD, ["sedes"], ["Did you mean seeds?", "Allowed:", "target"]),
    "unknown key in a target": (
        TOP + TARGET + "model = 'x'\n" + METHOD,
        ["target.model", "entry 1"],
        ["Allowed: network, data, recipe, weights"],
    ),
    "unknown network": (
        GOOD.replace("lenet-300-100", "lenet-300"),
        ["target.network"],
        ["Did you mean lenet-300-100?"],
    ),
    "unknown data": (GOOD.replace('"digits"', '"digit"'), ["target.data"], ["Did you mean digits?"]),
    "unknown method": (
        GOOD + "[[method]]\nname = 'sip-det'\n",
        ["method.name", "entry 2"],
        ["Did you mean sipp-det?", "wanda"],
    ),
    "unknown option": (GOOD + "wieghts = 'layer'\n", ["method", "entry 1"], ["wieghts"]),
    "impossible option": (GOOD + "scope = 'galaxy'\n", ["method", "entry 1"], ["galaxy"]),
    "unknown check": ("checks = ['C3']\n" + GOOD, ["checks"], ["C3", "Allowed: C2, C10, C12, C13"]),
    "unknown protocol": ("protocol = 'two-shot'\n" + GOOD, ["protocol"], ["Allowed: one-shot, retrain"]),
    "keep above 1": (GOOD.replace("0.5", "1.5"), ["keep"], ["from 0 to 1", "1.5"]),
    "keep below 0": (GOOD.replace("0.5", "-0.5"), ["keep"], ["from 0 to 1"]),
    "keep is not a number": (GOOD.replace("0.5", "nan"), ["keep"], ["from 0 to 1"]),
    "keep is text": (GOOD.replace("0.5", "'half'"), ["keep", "entry 2"], ["must be a number, not 'half'"]),
    "keep is no list": (GOOD.replace("[1, 0.5, 0.1]", "0.5"), ["keep"], ["must be a list", "0.5"]),
    "keep twice": (GOOD.replace("0.5", "1.0"), ["keep"], ["1.0 twice"]),
    "no keep": (GOOD.replace("[1, 0.5, 0.1]", "[]"), ["keep"], ["no cells"]),
    "no seeds": (GOOD.replace("[0, 1]", "[]"), ["seeds"], ["no cells"]),
    "seeds missing": (GOOD.replace("seeds = [0, 1]", ""), ["seeds"], ["is missing"]),
    "negative seed": (GOOD.replace("[0, 1]", "[0, -1]"), ["seeds"], ["from 0 to"]),
    "seed is a fraction": (GOOD.replace("[0, 1]", "[0.5]"), ["seeds", "entry 1"], ["whole number, not 0.5"]),
    "seed is yes": (GOOD.replace("[0, 1]", "[true]"), ["seeds"], ["whole number, not True"]),
    "seed twice": (GOOD.replace("[0, 1]", "[1, 1]"), ["seeds"], ["1 twice"]),
    "no points": ("points = 0\n" + GOOD, ["points"], ["from 1 on", "sample-size"]),
    "points are yes": ("points = true\n" + GOOD, ["points"], ["from 1 on"]),
    "points are another rule": ("points = 'all'\n" + GOOD, ["points"], ["sample-size"]),
    "no target": (TOP + METHOD, ["target"], ["add at least one [[target]]"]),
    "no method": (TOP + TARGET, ["method"], ["add at least one [[method]]"]),
    "empty targets": ("target = []\n" + TOP + METHOD, ["target"], ["no cells"]),
    "target is a table": (GOOD.replace("[[target]]", "[target]"), ["target"], ["must be a list"]),
    "method without name": (GOOD + "[[method]]\nscope = 'layer'\n", ["method.name"], ["is missing"]),
    "method with a number for a name": (GOOD + "[[method]]\nname = 3\n", ["method.name"], ["must be text"]),
    "duplicate target": (GOOD + TARGET, ["target"], ["lenet-300-100 on digits twice"]),
    "duplicate label": (GOOD + METHOD, ["method"], ["magnitude twice", "label of its own"]),
    "labels that differ in case": (GOOD + METHOD + "label = 'Magnitude'\n", ["method"], ["twice"]),
    "label with a slash": (GOOD + "label = 'a/b'\n", ["method.label"], ["letters and digits"]),
    "label with two dots": (GOOD + "label = '..'\n", ["method.label"], ["letters and digits"]),
    "empty label": (GOOD + "label = ''\n", ["method.label"], ["letters and digits"]),
    "name with a blank": (GOOD.replace('"small"', '"my suite"'), ["name"], ["letters and digits"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses_naming_file_key_and_what_is_allowed(case: str, tmp_path: Path) -> None:
    text, keys, expected = REFUSED[case]
    file = tmp_path / "mine.toml"
    file.write_text(text)
    with pytest.raises(SuiteError) as caught:
        load_suite(file)
    message = str(caught.value)
    assert str(file) in message
    for part in [*keys, *expected]:
        assert part in message
    assert "\n" not in message, "one problem, one sentence"
    for jargon in ("pydantic", "validation", "value_error", "Value error", "Field required", "Input should"):
        assert jargon not in message


def test_every_problem_gets_its_sentence() -> None:
    with pytest.raises(SuiteError) as caught:
        parse_suite("sedes = [1]\npoints = 0\n" + TOP.replace("0.5", "7") + TARGET + METHOD, "mine.toml")
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert all(line.startswith("mine.toml: key ") and line.endswith(".") for line in lines)


def test_unknown_suite_is_refused_with_what_there_is() -> None:
    with pytest.raises(SuiteError, match=r"no suite 'quik'. Did you mean quick\?"):
        load_suite("quik")


def test_missing_file_folder_and_binary_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SuiteError, match=r"Cannot read .*nothing\.toml"):
        load_suite(tmp_path / "nothing.toml")
    with pytest.raises(SuiteError, match="Cannot read"):
        load_suite(tmp_path)
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SuiteError, match="UTF-8"):
        load_suite(binary)


@pytest.mark.parametrize("name", list_suites())
def test_shipped_suites_load(name: str) -> None:
    assert load_suite(name).name == name


def test_quick_is_enough_for_a_report() -> None:
    suite = load_suite("quick")
    assert "quick" in list_suites()
    assert len(suite.seeds) >= 3
    assert len(suite.keep) >= 5
    assert {
        "sipp-det",
        "sipp-rand",
        "sipp-hybrid",
        "sipp-mixture",
        "magnitude",
        "random",
        "snip",
        "wanda",
    } == {method.name for method in suite.methods}
    for name in ("sipp-det", "sipp-rand", "sipp-hybrid", "sipp-mixture"):
        weights = {method.options["weights"] for method in suite.methods if method.name == name}
        assert weights >= {"uniform", "downstream"}
