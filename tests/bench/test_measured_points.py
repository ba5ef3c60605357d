"""Which points a run looks at and checks on: of the right part, all that are asked for, and none of another name."""

from pathlib import Path

import pytest
from PIL import Image

from sipp_bench.bench import measuring, protocols
from sipp_bench.bench.estimate import estimate
from sipp_bench.bench.runner import run
from sipp_bench.bench.suite import parse_suite
from sipp_bench.errors import DataError, OptionError, SuiteError
from sipp_bench.store.summary import summary
from sipp_bench.zoo import data, training
from sipp_bench.zoo.data import DataSet, Part
from sipp_bench.zoo.training import Recipe

RECIPE = Recipe(epochs=1, batch_size=50, learning_rate=0.05)
SEED = 3
SUITE = """
name = "points"
seeds = [3]
keep = [0.4, 0.1]
points = 24
protocol = "{protocol}"
[[target]]
network = "lenet-300-100"
data = "digits"
[[method]]
name = "sipp-hybrid"
[[method]]
name = "random"
[[method]]
name = "snip"
"""


@pytest.fixture(scope="module")
def dataset() -> DataSet:
    return data.load("digits", seed=SEED)


@pytest.mark.parametrize(
    ("where", "part", "message"),
    [
        ("fresh", "points", "24 of the 24 points that are to be fresh .* 24 are set apart for pruning"),
        ("fresh", "train", "24 of the 24 points that are to be fresh .* trained on 24"),
        ("fresh", "test", "24 of the 24 points that are to be fresh .*: 0 are set apart .* trained on 0"),
        ("points", "validation", "24 of the 24 points that pruning would look at .* 0 of them test data"),
    ],
)
def test_points_of_another_part_are_refused(dataset: DataSet, where: str, part: str, message: str) -> None:
    foreign: Part = getattr(dataset, part)
    chosen = Part(foreign.images[:24], foreign.labels[:24], foreign.indices[:24])
    require = dataset.require_fresh if where == "fresh" else dataset.require_points
    with pytest.raises(DataError, match=message):
        require(chosen)


@pytest.mark.parametrize("kept", ["images", "labels"])
def test_points_under_the_rows_of_others_are_refused(dataset: DataSet, kept: str) -> None:
    """Only the rows' numbers say where points are from; images or labels of another part may hide behind them."""
    own, other = dataset.validation, dataset.points
    named = Part(own.images[:9], other.labels[:9].roll(1) + 0, own.indices[:9])
    named = named if kept == "images" else Part(other.images[:9], own.labels[:9], own.indices[:9])
    with pytest.raises(DataError, match="to be fresh are not the images of digits that they name"):
        dataset.require_fresh(named)
    dataset.require_fresh(Part(own.images[:9], own.labels[:9], own.indices[:9]))


def test_a_cell_whose_fresh_points_are_s_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(training.RECIPES, "lenet-300-100", RECIPE)
    draw = measuring._draw
    points = data.load("digits", seed=SEED).points
    monkeypatch.setattr(measuring, "_draw", lambda part, wanted, seed: draw(points, wanted, seed))
    suite = parse_suite(SUITE.format(protocol="one-shot"), "again.toml")
    cells = run(suite, tmp_path / "run", cache_dir=tmp_path / "cache", progress=False).cells.set_index("method")
    assert set(cells["status"]["sipp-hybrid"]) == {"failed"}
    assert cells["error"]["sipp-hybrid"].str.contains("24 of the 24 points that are to be fresh").all()
    assert set(cells["status"]["random"]) == {"done"}, "no check, no fresh points"


def test_checks_get_the_network_that_was_pruned_and_the_pruned_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a cascade these are neither the trained network nor the retrained one."""
    monkeypatch.setitem(training.RECIPES, "lenet-300-100", RECIPE)
    outcomes, checked = [], []
    cascade, check = protocols.Cascade.run, measuring.check_rows
    monkeypatch.setattr(protocols.Cascade, "run", lambda *a: outcomes.append(cascade(*a)) or outcomes[-1])
    monkeypatch.setattr(measuring, "check_rows", lambda *a: checked.append(a) or check(*a))
    text = SUITE.format(protocol="cascade").replace("[0.4, 0.1]", "[0.2]").replace('name = "snip"', 'name = "wanda"')
    text = text.replace("points = 24", "points = 24\nprotocol_options = { steps = 2, retrain_epochs = 1 }")
    cells = run(parse_suite(text, "again.toml"), tmp_path / "run", cache_dir=tmp_path / "cache", progress=False).cells
    assert set(cells["status"]) == {"done"}, cells["error"].tolist()
    assert [(a[0] is outcomes[0].reference, a[1] is outcomes[0].pruned) for a in checked] == [(True, True)] * 2


def test_more_points_than_there_are_are_refused_before_anything_is_trained() -> None:
    text = SUITE.format(protocol="one-shot")
    parse_suite(text.replace("points = 24", "points = 180"), "mine.toml")
    assert parse_suite(text.replace("points = 24", ""), "mine.toml").points == 256, "the default is no demand"
    for points in (181, 10**18):
        with pytest.raises(SuiteError, match=f"^mine.toml: {points} points are asked for, but digits has 180 for S"):
            parse_suite(text.replace("points = 24", f"points = {points}"), "mine.toml")


def suite_with_a_folder(path: Path) -> str:
    """Of 20 images in two classes, of which 2 are points."""
    for name, shade in (("dark", 20), ("light", 220)):
        (path / name).mkdir(parents=True)
        for number in range(10):
            Image.new("RGB", (8, 8), (shade, shade + number, shade)).save(path / name / f"{number}.png")
    text = SUITE.format(protocol="one-shot").replace("lenet-300-100", "lenet-5").replace("points = 24", "points = 3")
    return text.replace('data = "digits"', f'data = "folder:{path}"')


def test_of_a_folder_too_when_its_images_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(training.RECIPES, "lenet-5", RECIPE)
    suite = parse_suite(suite_with_a_folder(tmp_path / "images"), "mine.toml")
    with pytest.raises(OptionError, match=r"3 points are asked for, but folder:.* has 2 for S"):
        estimate(suite)
    cells = run(suite, tmp_path / "run", cache_dir=tmp_path / "cache", progress=False).cells
    assert set(cells["status"]) == {"failed"}
    assert cells["error"].str.contains("3 points are asked for, but .* has 2 for S: ask for at most so many").all()


def test_fewer_points_than_the_rule_says_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(training.RECIPES, "lenet-300-100", RECIPE)
    for size in (181, 180):
        monkeypatch.setattr(measuring, "sample_size", lambda *_, size=size, **__: size)
        text = SUITE.format(protocol="one-shot").replace("points = 24", 'points = "sample-size"')
        finished = run(parse_suite(text, "mine.toml"), tmp_path / str(size), cache_dir=tmp_path, progress=False)
        assert set(finished.cells["num_points"]) == {180}
        sentence = "lenet-300-100 on digits, seed 3: the authors' rule asks for 181 points; S has 180, all looked at."
        assert (sentence in summary(finished)) == (size == 181)
