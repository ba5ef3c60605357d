"""What the figures show and how they tell methods apart."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from report.runs import MadeUpRun, made_up_run, retrain

from sipp_bench.report import bound_figure, figures, style
from sipp_bench.report.collect import Target, collect
from sipp_bench.report.layers import layer_bounds_picture, layers_picture


def target_of(run: MadeUpRun) -> Target:
    return next(collect({"run": run}).targets())


def methods(*pairs: tuple[str, str]) -> pd.DataFrame:
    return pd.DataFrame(pairs, columns=["method_name", "method"])


def test_every_method_looks_different() -> None:
    names = [*style.METHODS, "mine", "yours"]
    labels = [(name, f"{name}{option}") for name in names for option in ("-uniform", "-layer", "-downstream", "-mean")]
    styles = style.method_styles(methods(*labels))
    assert list(styles) == [label for _, label in labels]
    looks = {(look.colour, look.marker, str(look.line), look.filled) for look in styles.values()}
    assert len(looks) == len(labels)
    # Without colour as well: marker, line and fill are enough.
    assert len({look[1:] for look in looks}) == len(labels)


def test_same_option_has_the_same_line() -> None:
    labels = [(name, f"{name}-{option}") for name in ("sipp-det", "sipp-rand") for option in ("uniform", "downstream")]
    styles = style.method_styles(methods(*labels, ("wanda", "wanda")))
    assert styles["sipp-det-downstream"].line == styles["sipp-rand-downstream"].line
    assert styles["sipp-det-downstream"].line != styles["sipp-det-uniform"].line
    assert styles["wanda"].line == "-"


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([1.0, 10.0], ["1×", "2×", "5×", "10×"]),
        ([1.0000001, 9.9999], ["1×", "2×", "5×", "10×"]),
        ([1.0, 100.2], ["1×", "2×", "5×", "10×", "20×", "50×", "100×"]),
        ([0.31, 0.35], ["0.2×", "0.5×"]),
        ([0.0002, 90.0], ["0.0001×", "0.001×", "0.01×", "0.1×", "1×", "10×", "100×"]),
        ([0.0, np.inf, 3.0], ["2×", "5×"]),
    ],
)
def test_logarithmic_axes_have_plain_labels(values: list[float], labels: list[str]) -> None:
    axes = style.new_figure(4, 3).subplots()
    style.log_ticks(axes, "x", values, "×")
    low, high = axes.get_xlim()
    assert [label.get_text() for label in axes.get_xticklabels()] == labels
    assert all(low <= value <= high for value in values if 0 < value < np.inf)


def drawn_points(axes: Axes) -> dict[str, np.ndarray]:
    return {str(points.get_label()): np.asarray(points.get_offsets()) for points in axes.collections}


@pytest.fixture
def panels(monkeypatch: pytest.MonkeyPatch) -> dict[str, Axes]:
    """Panel title -> axes of every figure drawn in the test."""
    seen: dict[str, Axes] = {}

    def remember(figure: Figure) -> bytes:
        seen.update({axes.get_title(loc="left"): axes for axes in figure.axes})
        return b""

    for module in (figures, bound_figure):
        monkeypatch.setattr(module, "drawn", remember)
    return seen


def test_vacuous_bounds_are_marked(panels: dict[str, Axes]) -> None:
    run = made_up_run(methods={"sipp-det": "sipp-det"})
    picture = bound_figure.bound_picture(target_of(run), run.blocks, "bounds")
    assert picture is not None
    points = drawn_points(panels["sipp-det"])
    arrays = [layer for layers in run.arrays.values() for layer in layers.values()]
    epsilon = np.concatenate([layer["epsilon"].ravel() for layer in arrays])
    assert len(epsilon) < bound_figure.SHOWN, "all are drawn"
    for where in ("on S", "on fresh points"):
        assert len(points[where]) == (epsilon < 1).sum()
        assert (points[where][:, 0] < 1).all()
        assert len(points[f"{where}, vacuous bound"]) == (epsilon >= 1).sum()
        assert (points[f"{where}, vacuous bound"][:, 0] >= 1).all()
    assert f"{len(epsilon):,} in all" in picture.caption


def test_diagonal_is_where_error_equals_bound(panels: dict[str, Axes]) -> None:
    run = made_up_run(methods={"sipp-det": "sipp-det"}, keeps=(0.2,))
    bound_figure.bound_picture(target_of(run), run.blocks, "bounds")
    line = panels["sipp-det"].lines[0]
    np.testing.assert_allclose(line.get_xdata(), line.get_ydata())


def test_delta_is_stated_for_methods_that_draw(panels: dict[str, Axes]) -> None:
    run = made_up_run(methods={"sipp-det": "sipp-det", "sipp-rand": "sipp-rand"}, keeps=(0.2,))
    picture = bound_figure.bound_picture(target_of(run), run.blocks, "bounds")
    assert picture is not None
    assert "The bounds of sipp-rand are allowed to fail with probability at most δ = 0.1" in picture.caption


def test_worst_block_is_never_sampled_away(panels: dict[str, Axes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bound_figure, "SHOWN", 20)
    monkeypatch.setattr(bound_figure, "ALWAYS", 5)
    run = made_up_run(methods={"sipp-det": "sipp-det"})
    layer = next(iter(run.arrays.values()))["fc1.weight"]
    layer["epsilon"][3, 1], layer["error_S"][3, 1] = 0.5, 0.9
    bound_figure.bound_picture(target_of(run), run.blocks, "bounds")
    points = drawn_points(panels["sipp-det"])
    assert [0.5, 0.9] in points["on S"].tolist()
    assert len(points["on S"]) + len(points["on S, vacuous bound"]) == 20


def test_blocks_that_were_left_alone_are_not_drawn_but_counted(panels: dict[str, Axes]) -> None:
    run = made_up_run(methods={"sipp-det": "sipp-det"}, keeps=(0.2,), seeds=(0,))
    for layer in next(iter(run.arrays.values())).values():
        for array in layer.values():
            array[0] = 0
    picture = bound_figure.bound_picture(target_of(run), run.blocks, "bounds")
    assert picture is not None
    assert "6 that nothing was pruned from" in picture.caption
    assert sum(len(points) for label, points in drawn_points(panels["sipp-det"]).items() if "S" in label) == 160 - 6


def test_accuracy_lines_are_the_means(panels: dict[str, Axes]) -> None:
    run = made_up_run()
    figures.accuracy_picture(target_of(run), "accuracy")
    bars = next(
        container for container in panels["Baselines"].containers if container.lines[0].get_color() == "#7F7F7F"
    )
    cells = run.cells[run.cells["method"] == "random"].groupby("keep")
    expected = 100 * cells["accuracy"].mean().sort_index(ascending=False)
    np.testing.assert_allclose(np.asarray(bars.lines[0].get_ydata(), float), expected)
    ratios = (1 / cells["achieved_keep"].first())[expected.index]
    np.testing.assert_allclose(np.asarray(bars.lines[0].get_xdata(), float), ratios)


def test_the_caption_says_whether_networks_were_retrained(panels: dict[str, Axes]) -> None:
    run = made_up_run()
    assert "compression ratio, one-shot." in figures.accuracy_picture(target_of(run), "accuracy").caption
    retrain(run)
    caption = figures.accuracy_picture(target_of(run), "accuracy").caption
    assert "one-shot" not in caption
    assert "after the last epoch of retraining" in caption


def test_no_figure_where_reduction_equals_compression(panels: dict[str, Axes]) -> None:
    run = made_up_run()
    assert figures.compute_picture(target_of(run), "compute") is not None
    run.cells["multiply_adds"] = run.cells["kept"]
    run.cells["dense_multiply_adds"] = run.cells["weights"]
    assert figures.compute_picture(target_of(run), "compute") is None


def test_no_difference_figure_without_magnitude(panels: dict[str, Axes]) -> None:
    run = made_up_run(methods={"sipp-det": "sipp-det", "random": "random"})
    assert figures.difference_picture(target_of(run), "difference") is None
    assert figures.accuracy_picture(target_of(run), "accuracy").alt


def test_maps_of_many_layers_have_room_and_plain_numbers() -> None:
    """Under the names of deep networks, as high as the map itself; the layout fails loudly when there is no room."""
    run = made_up_run()
    deep = {
        layer: f"features.stage1.unit{number}.body.conv1.conv"
        for number, layer in enumerate(run.layers["layer"].unique())
    }
    copies = [run.layers.assign(layer=run.layers["layer"].map(deep) + f".{copy}") for copy in range(8)]
    for layers in (run.layers, pd.concat(copies)):
        target = target_of(replace(run, layers=layers))
        for picture in (layers_picture(target, "keep"), layer_bounds_picture(target, "bounds")):
            assert picture is not None
            assert b"mathdefault" not in picture.drawn.svg
