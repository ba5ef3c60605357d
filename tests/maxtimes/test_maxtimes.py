"""The max-times kernel: every backend against the definition by loops, for every kind of layer, and which is chosen."""

import itertools
import warnings
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from installed import lacking
from torch import Tensor, nn

from sipp_bench import maxtimes, measure_sensitivity
from sipp_bench.errors import OptionError
from sipp_bench.maxtimes import chunked, native
from sipp_bench.network import blocks as quadrants
from sipp_bench.network.patches import ConvGeometry, Windows, windows

CPU = torch.device("cpu")
NO_NATIVE = native.unavailable(CPU, torch.float32)
needs_native = pytest.mark.skipif(NO_NATIVE is not None, reason=f"no native library here: {NO_NATIVE}")


def usable() -> list[str]:
    """Backends that run here; Triton's on a CPU by its interpreter (see conftest)."""
    return [name for name in maxtimes.BACKENDS[1:] if maxtimes.module(name).unavailable(CPU, torch.float32) is None]


def test_the_native_library_is_here() -> None:
    if NO_NATIVE is not None:
        lacking(f"no native library on this machine: {NO_NATIVE}")


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(7, 5),
    "linear, one neuron": lambda: nn.Linear(3, 1),
    "linear, many": lambda: nn.Linear(70, 19),
    "conv1d": lambda: nn.Conv1d(2, 3, 3, padding=1),
    "conv2d": lambda: nn.Conv2d(2, 11, 3, padding=1),
    "conv2d stride": lambda: nn.Conv2d(2, 3, 3, stride=2, padding=2),
    "conv2d uneven": lambda: nn.Conv2d(2, 3, (3, 2), stride=(2, 1), padding=(0, 1), dilation=(1, 2)),
    "conv2d same": lambda: nn.Conv2d(2, 3, 2, padding="same"),
    "conv2d 1x1": lambda: nn.Conv2d(5, 9, 1),
    "conv2d 1x1 stride": lambda: nn.Conv2d(5, 9, 1, stride=2),
    "conv2d groups": lambda: nn.Conv2d(4, 6, 3, groups=2, padding=1),
    "depthwise": lambda: nn.Conv2d(4, 4, 3, groups=4, padding=1),
    "depthwise, two each": lambda: nn.Conv2d(3, 6, 3, groups=3),
    "conv3d": lambda: nn.Conv3d(2, 3, 2, dilation=2, padding=1),
}
SHAPES = {1: (2, 9), 2: (2, 8, 7), 3: (2, 5, 4, 6)}


def inputs_of(layer: nn.Module, points: int) -> Tensor:
    if isinstance(layer, nn.Linear):
        return torch.rand(points, layer.in_features)
    assert isinstance(layer, nn.modules.conv._ConvNd)
    return torch.rand(points, layer.in_channels, *SHAPES[layer.weight.ndim - 2][1:])


def geometry_of(layer: nn.Module) -> ConvGeometry | None:
    if isinstance(layer, nn.Linear):
        return None
    names = ("stride", "padding", "dilation", "groups")
    return ConvGeometry.from_arguments(layer.weight.ndim - 2, {name: getattr(layer, name) for name in names})


def cases(layer: nn.Module, points: int, dtype: torch.dtype) -> list[tuple[Windows, Tensor, Tensor]]:
    """windows, z and signs of every chunk; a third of the inputs and of the weights are 0, and so are some sums."""
    geometry, weight = geometry_of(layer), layer.weight.detach().to(dtype)
    weight = torch.where(torch.rand_like(weight) < 0.3, 0.0, weight)
    groups = geometry.groups if geometry else 1
    x = inputs_of(layer, points).to(dtype)
    x = torch.where(torch.rand_like(x) < 0.3, 0.0, x)
    magnitudes = quadrants.block_magnitudes(weight, groups)
    positive = (weight > 0).reshape(groups, weight.shape[0] // groups, -1)
    found = []
    for chunk in windows(x, weight, geometry, 1 << 20, unfolded=False):
        z = quadrants.window_sums(chunk, magnitudes)
        found.append((chunk, torch.where(torch.rand_like(z) < 0.1, 0.0, z), positive))
    return found


def by_loops(chunk: Windows, z: Tensor, positive: Tensor, out: Tensor) -> Tensor:
    # z: (samples, groups, 2M, positions) -> (groups, patches, 2M)
    a, sums = chunk.unfold(), z.permute(1, 0, 3, 2).flatten(1, 2)
    result, neurons = out.clone(), out.shape[1]
    for g, i, j in itertools.product(*map(range, out.shape)):
        column = sums[g, :, i if positive[g, i, j] else neurons + i]
        # Two operations on two numbers, each rounded once, in every backend: equal to the last bit.
        quotients = torch.where(column > 0, a[g, :, j] * (1 / column), 0.0)
        result[g, i, j] = max([result[g, i, j], *quotients])
    return result


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("backend", usable())
def test_backends_do_what_the_definition_says_on_every_kind_of_layer(backend: str, kind: str) -> None:
    torch.manual_seed(len(kind))
    for chunk, z, positive in cases(LAYERS[kind](), 2, torch.float32):
        out = torch.rand(positive.shape) / 2
        expected = by_loops(chunk, z, positive, out)
        maxtimes.max_product(chunk, z, positive, out, backend)
        assert torch.equal(out, expected)


@needs_native
@pytest.mark.parametrize("variant", native.variants() if NO_NATIVE is None else [])
@pytest.mark.parametrize("threads", [1, 2, 3])
@settings(deadline=None, max_examples=25)
@given(
    st.integers(1, 1400), st.integers(1, 21), st.integers(1, 150), st.integers(1, 3), st.integers(0, 999)
)  # fmt: skip
def test_native_tiles_of_every_size_and_instruction_set(
    variant: str, threads: int, patches: int, neurons: int, n: int, groups: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, z = torch.rand(groups, n, patches, generator=generator), torch.rand(1, groups, 2 * neurons, patches)
    z = torch.where(z < 0.1, 0.0, z)
    positive = torch.rand(groups, neurons, n, generator=generator) < 0.5
    found, expected = torch.zeros(groups, neurons, n), torch.zeros(groups, neurons, n)
    chunked.max_product(Windows(x), z, positive, expected)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        native.max_product(Windows(x), z, positive, found, variant)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("tile", [1, 7, 64])
def test_the_torch_backend_at_every_tile_size(tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(tile)
    monkeypatch.setattr(chunked, "_TILE", {"cpu": tile})
    for dtype in (torch.float32, torch.float64):
        for chunk, z, positive in cases(nn.Conv2d(4, 6, 3, groups=2), 3, dtype):
            out = torch.zeros(positive.shape, dtype=dtype)
            expected = by_loops(chunk, z, positive, out)
            chunked.max_product(chunk, z, positive, out)
            assert torch.equal(out, expected)


@pytest.mark.parametrize("backend", usable())
def test_a_part_of_a_larger_result_is_filled_in_place(backend: str) -> None:
    torch.manual_seed(0)
    ((chunk, z, positive),) = cases(nn.Linear(5, 6), 4, torch.float32)
    whole = torch.zeros(1, 9, 5)
    maxtimes.max_product(chunk, z, positive, whole[:, 2:8], backend)
    assert torch.equal(whole[:, 2:8], by_loops(chunk, z, positive, torch.zeros(1, 6, 5)))
    assert not whole[:, :2].any()
    assert not whole[:, 8:].any()


@pytest.mark.parametrize("kind", LAYERS)
def test_sums_of_convolutions_are_those_of_their_patches(kind: str) -> None:
    torch.manual_seed(len(kind))
    layer = LAYERS[kind]()
    geometry, weight = geometry_of(layer), layer.weight.detach()
    magnitudes = quadrants.block_magnitudes(weight, geometry.groups if geometry else 1)
    for chunk in windows(inputs_of(layer, 3), weight, geometry, 1 << 20, unfolded=False):
        z = quadrants.window_sums(chunk, magnitudes)
        exact = chunk.unfold().double() @ magnitudes.double().transpose(1, 2)
        # Recursive summation of n non-negative products in float32.
        n = magnitudes.shape[2]
        assert torch.allclose(z.permute(1, 0, 3, 2).flatten(1, 2).double(), exact, rtol=(n + 1) * 2**-24, atol=0)


@needs_native
def test_the_native_survey_is_that_of_torch() -> None:
    torch.manual_seed(0)
    z = torch.where(torch.rand(3, 2, 6, 11) < 0.3, 0.0, torch.rand(3, 2, 6, 11))
    z[:, 1, 2] = 0
    for sums in (z, z.transpose(0, 3), torch.zeros_like(z)):
        active, expected = (torch.ones(2, 6, dtype=torch.int64) for _ in range(2))
        assert native.survey(sums, active) == quadrants.survey(sums, expected)
        assert torch.equal(active, expected)


@pytest.mark.parametrize("backend", usable())
def test_sensitivities_agree_over_backends(backend: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=2), nn.Flatten(), nn.Linear(64, 3)
    )
    points = torch.randn(5, 1, 14, 14)
    found = measure_sensitivity(model, points, backend=backend)  # type: ignore[arg-type]
    exact = measure_sensitivity(model.double(), points.double(), backend="reference")
    for name, layer in exact.items():
        assert torch.allclose(found[name].values.double(), layer.values, rtol=1e-5, atol=1e-30)
        assert torch.equal(found[name].active, layer.active)


def test_names_are_chosen_by_argument_then_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(maxtimes.VARIABLE, "reference")
    assert maxtimes.choose(CPU, torch.float32) == "reference"
    assert maxtimes.choose(CPU, torch.float32, "torch") == "torch"
    monkeypatch.setenv(maxtimes.VARIABLE, "")
    assert maxtimes.choose(CPU, torch.float32) == ("native" if NO_NATIVE is None else "torch")
    assert maxtimes.choose(CPU, torch.float64) == "torch"
    monkeypatch.setenv(maxtimes.VARIABLE, "nativ")
    with pytest.raises(OptionError, match=r"SIPP_BENCH_BACKEND is one of auto, .*not 'nativ'"):
        measure_sensitivity(nn.Linear(2, 2), torch.ones(1, 2))
    with pytest.raises(OptionError, match="backend is one of"):
        measure_sensitivity(nn.Linear(2, 2), torch.ones(1, 2), backend="gpu")  # type: ignore[arg-type]


def test_without_the_library_everything_works_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_library", lambda: "it was not built.")
    maxtimes._say_what_is_lost.cache_clear()
    with pytest.warns(UserWarning, match=r"No native max-times kernel: it was not built\. .* some 20 times slower"):
        assert maxtimes.choose(CPU, torch.float32) == "torch"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert maxtimes.choose(CPU, torch.float32) == "torch"  # said once
    assert dict(maxtimes.describe(CPU))["native"] == "not available: it was not built."
    assert len(measure_sensitivity(nn.Linear(2, 2), torch.ones(1, 2))) == 1
    with pytest.raises(OptionError, match="'native' can't be used for cpu here: it was not built"):
        measure_sensitivity(nn.Linear(2, 2), torch.ones(1, 2), backend="native")


@needs_native
def test_an_instruction_set_that_is_not_there_is_refused() -> None:
    with pytest.raises(OptionError, match="'mmx' can't be used here; there are: "):
        native.max_product(
            Windows(torch.ones(1, 1, 1)), torch.ones(1, 1, 2, 1), torch.ones(1, 1, 1).bool(), torch.ones(1, 1, 1), "mmx"
        )
