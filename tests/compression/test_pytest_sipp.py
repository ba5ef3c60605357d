"""The fixture sipp_verify, as another project's tests use it."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import pytest_sipp

pytest_plugins = ["pytester"]

PROJECT = """
import pytest, torch
import sipp_bench as sb

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(12, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)).eval()
points = torch.rand(20, 12)
"""


def run(pytester: pytest.Pytester, body: str) -> pytest.RunResult:
    pytester.makepyfile(PROJECT + body)
    return pytester.runpytest_inprocess("-p", "pytest_sipp", "-p", "no:cacheprovider")


def test_a_bound_that_holds(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
def test_bound(sipp_verify):
    sipp_verify(model, sb.prune(model, points, keep=0.7, method="sipp-det"), points)

@pytest.mark.parametrize("method", ["sipp-hybrid", "magnitude"])
def test_network(sipp_verify, method):
    sipp_verify(model, sb.prune(model, points, keep=0.8, method="magnitude").model, points)
""",
    )
    result.assert_outcomes(passed=3)


def test_a_broken_bound_is_named(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
def test_bound(sipp_verify):
    pruned = sb.prune(model, points, keep=0.7, method="sipp-det")
    for epsilon in pruned.guarantee.epsilon.values():
        epsilon.mul_(0.1)
    sipp_verify(model, pruned, points)

def test_changed_weights(sipp_verify):
    network = sb.prune(model, points, keep=0.7, method="sipp-det").model
    with torch.no_grad():
        network[2].weight.mul_(3)
    sipp_verify(model, network, points)

def test_changed_sign(sipp_verify):
    network = sb.prune(model, points, keep=0.7, method="sipp-det").model
    with torch.no_grad():
        network[0].weight.mul_(-1)
    sipp_verify(model, network, points)
""",
    )
    result.assert_outcomes(failed=3)
    weights = "the block of neuron [0-9]*'s (positive|negative) weights has error [0-9.]*, its bound is [0-9.]* "
    result.stdout.re_match_lines(
        [
            f"0.weight breaks its bound of claim C2: {weights}.*",
            f"2.weight breaks its bound of claim C2: {weights}.*",
            "The bounds do not hold: '0.weight' changed the sign of a weight.*",
        ]
    )


def test_nothing_checked_is_a_failure(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
def prune(method, keep):
    return sb.prune(model, points, keep=keep, method=method)

def test_no_guarantee(sipp_verify):
    sipp_verify(model, prune("magnitude", 0.7), points)

def test_other_points(sipp_verify):
    sipp_verify(model, prune("sipp-det", 0.7), points[:10])

def test_drawn(sipp_verify):
    sipp_verify(model, prune("sipp-rand", 0.7), points)

def test_all_dropped(sipp_verify):
    sipp_verify(model, prune("sipp-det", 0.0), points)

def test_nothing_dropped(sipp_verify):
    sipp_verify(model, model, points)

def test_retrained(sipp_verify):
    pruned = prune("sipp-det", 0.7)
    pruned.apply_masks(lambda: None)()
    sipp_verify(model, pruned, points)

def test_masks_of_torch(sipp_verify):
    sipp_verify(model, prune("magnitude", 0.7).to_torch_prune(), points)
""",
    )
    result.assert_outcomes(failed=7)
    assert result.stdout.str().count("\nNothing was checked: ") == 7


def test_the_plugin_is_registered_and_light() -> None:
    project = Path(pytest_sipp.__file__).parents[1] / "pyproject.toml"
    if project.exists():  # in a checkout, which may not be installed
        scripts = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["entry-points"]
        assert scripts["pytest11"] == {"pytest_sipp": "pytest_sipp"}
    code = "import pytest_sipp, sys; print({'torch', 'numpy', 'sipp_bench'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
