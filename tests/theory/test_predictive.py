"""Predictive power: tables, correlations and the picture, from a quick run and from tables made up."""

import io
from pathlib import Path

import matplotlib.figure
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import sipp_bench as sb
from sipp_bench.compression.honoured import block_errors
from sipp_bench.errors import OptionError
from sipp_bench.zoo import training
from theory_checks.published import predictive
from theory_checks.published.predictive import Predictive, correlate, picture, predictive_power, retrained_errors

METHODS = (("sipp-det", {}), ("sipp-rand", {"weights": "downstream"}))
KEEPS = (0.5, 0.1)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Predictive:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SIPP_BENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setitem(training.RECIPES, "lenet-300-100", training.Recipe(epochs=3, batch_size=32, learning_rate=0.05))
        return predictive_power(data="digits", seeds=(0, 1), methods=METHODS, keeps=KEEPS, retrain_epochs=2)


@pytest.fixture
def _small_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sipp_bench.report.style.DPI", 50)


def made_up(**columns: list[float]) -> pd.DataFrame:
    """Correlations of two seeds with 4 rows each, two keep ratios, everything constant but what is given."""
    about = {"seed": [0] * 4 + [1] * 4, "method": "m", "keep": [0.5, 0.5, 0.1, 0.1] * 2, "layer": "a"}
    names = ("bound", "error_S", "error_fresh", "error_retrained", "accuracy", "accuracy_retrained")
    frame = pd.DataFrame(about | dict.fromkeys(names, 1.0) | columns)
    return correlate(frame, frame.drop(columns="layer"))


def row(correlations: pd.DataFrame, x: str, y: str, scope: str) -> pd.Series:
    return correlations.query("x == @x and y == @y and scope == @scope").iloc[0]


def test_every_cell_is_measured(measured: Predictive) -> None:
    assert len(measured.cells) == 2 * 2 * 2
    assert len(measured.layers) == 3 * len(measured.cells)
    assert set(measured.layers["method_name"]) == {"sipp-det", "sipp-rand"}
    values = measured.layers[["bound", "error_S", "error_fresh", "error_retrained"]]
    assert values.notna().all(axis=None)
    assert (values >= 0).all(axis=None)
    # A bound without draws holds for every block (C2), hence for their medians.
    certain = measured.layers[measured.layers["method_name"] == "sipp-det"]
    assert (certain["error_S"] <= certain["bound"] * (1 + 1e-5)).all()
    means = measured.layers.groupby(["seed", "method", "keep"])["error_fresh"].mean()
    cells = measured.cells.set_index(["seed", "method", "keep"])["error_fresh"]
    pd.testing.assert_series_equal(means.sort_index(), cells.sort_index())


def test_retraining_helps_a_network_that_is_not_at_chance(measured: Predictive) -> None:
    worst = measured.cells[measured.cells["keep"] == 0.1]
    # From chance, one epoch brings nothing back: its first layers pass no signal on.
    alive = worst[worst["accuracy"] > 0.2]
    assert len(alive) == 2
    assert (alive["accuracy_retrained"] > alive["accuracy"]).all()
    assert (measured.layers["error_retrained"] != measured.layers["error_fresh"]).any()


def test_bounds_and_errors_rank_keep_ratios_alike(measured: Predictive) -> None:
    found = row(measured.correlations, "bound", "error_fresh", "all")
    assert len(found["by_seed"]) == 2
    assert found["lowest"] > 0.5
    assert row(measured.correlations, "error_fresh", "accuracy", "all")["highest"] < 0


def test_correlations_are_of_ranks_one_a_seed() -> None:
    found = made_up(bound=[1, 2, 3, 4] * 2, error_S=[1, 10, 100, np.inf, 4, 3, 2, 1])
    found = row(found, "bound", "error_S", "all")
    assert found["by_seed"] == pytest.approx((1.0, -1.0))
    assert (found["lowest"], found["rho"], found["highest"]) == pytest.approx((-1, 0, 1))
    assert found["n"] == 4


def test_the_keep_ratio_alone_is_told_from_the_rest() -> None:
    found = made_up(bound=[1, 2, 3, 4] * 2, error_S=[2, 1, 4, 3] * 2)
    assert row(found, "bound", "error_S", "all")["rho"] == pytest.approx(0.6)
    assert row(found, "bound", "error_S", "within keep 0.1")["rho"] == pytest.approx(-1)


def test_a_constant_side_has_no_correlation() -> None:
    found = row(made_up(bound=[1, 2, 3, 4] * 2), "bound", "error_S", "all")
    assert np.isnan([found["rho"], found["lowest"], found["highest"], *found["by_seed"]]).all()


def test_what_retraining_voids_is_marked() -> None:
    found = made_up()
    assert set(found.loc[found["retrained"], "y"]) == {"error_retrained", "accuracy_retrained"}
    assert set(found.loc[~found["retrained"], "y"]) == {"error_S", "error_fresh", "accuracy"}


def network() -> torch.nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = (torch.nn.Conv2d(1, 3, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(48, 4))
        return torch.nn.Sequential(*layers)


def test_errors_after_retraining_are_the_usual_ones_while_signs_stay() -> None:
    model, points = network(), torch.randn(70, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    pruned = sb.prune(model, points, method="sipp-rand", keep=0.3)
    usual = block_errors(model, pruned.model, points, pruned.masks)
    for name, errors in retrained_errors(model, pruned.model, points, pruned.masks).items():
        torch.testing.assert_close(errors, usual[name].largest)


def test_a_flipped_weight_counts_in_the_block_of_its_new_sign() -> None:
    model, other = torch.nn.Sequential(torch.nn.Linear(2, 1)), torch.nn.Sequential(torch.nn.Linear(2, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[2.0, -1.0]]))
        other[0].weight.copy_(torch.tensor([[-1.0, -1.0]]))
    errors = retrained_errors(model, other, torch.ones(1, 2), ["0.weight"])["0.weight"]
    assert errors.tolist() == [[1.0, 1.0]]  # from 2 to 0, and from 1 to 2
    assert retrained_errors(other, model, torch.ones(1, 2), ["0.weight"])["0.weight"].tolist() == [[np.inf, 0.5]]


@pytest.mark.usefixtures("_small_pictures")
def test_the_picture_says_what_retraining_voids(measured: Predictive, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []

    def keep_text(figure: matplotlib.figure.Figure) -> bytes:
        written.extend(text.get_text() for axes in figure.axes[2:] for text in axes.texts)
        return drawn(figure)

    drawn = predictive.png
    monkeypatch.setattr(predictive, "png", keep_text)
    image = Image.open(io.BytesIO(picture(measured)))
    assert image.width > image.height > 200
    assert "guarantee void after retraining" in written


@pytest.mark.usefixtures("_small_pictures")
def test_the_picture_has_the_correlations_within_one_keep(
    measured: Predictive, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over everything the keep ratio makes them large; how much is the bound's own stands beside it."""
    said: dict[int, str] = {}

    def keep_text(figure: matplotlib.figure.Figure) -> bytes:
        for place, axes in enumerate(figure.axes):
            said[place] = " ".join(" ".join(text.get_text() for text in axes.texts).split())
        return b""

    monkeypatch.setattr(predictive, "png", keep_text)
    picture(measured)
    for place, pairs in enumerate(
        (
            [("bound", "error_fresh")],
            [("error_fresh", "accuracy"), ("bound", "accuracy")],
            [("error_retrained", "accuracy_retrained"), ("bound", "accuracy_retrained")],
        )
    ):
        for x, y in pairs:
            rho = {scope: row(measured.correlations, x, y, scope)["rho"] for scope in ("all", "within keep 0.5")}
            assert f"over all keep ratios {rho['all']:+.2f}" in said[place]
            assert f"within one keep 0.5: {rho['within keep 0.5']:+.2f}" in said[place]


@pytest.mark.usefixtures("_small_pictures")
def test_a_picture_of_zeros_and_infinities(measured: Predictive) -> None:
    extreme = measured.layers.assign(bound=[0.0, np.inf] * (len(measured.layers) // 2))
    assert picture(Predictive(extreme, measured.cells, measured.correlations)).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("methods", "said"), [((("sipp-dot", {}),), "no method"), ((("magnitude", {}),), "without a guarantee")]
)
def test_refusals(
    methods: tuple[tuple[str, dict[str, str]], ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIPP_BENCH_CACHE", str(tmp_path))
    recipe = training.Recipe(epochs=1, batch_size=64, learning_rate=0.05)
    monkeypatch.setitem(training.RECIPES, "lenet-300-100", recipe)
    with pytest.raises(OptionError, match=said):
        predictive_power(data="digits", seeds=(0,), methods=methods, keeps=(0.5,), retrain_epochs=1)
