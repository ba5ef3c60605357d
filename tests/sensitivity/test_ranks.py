"""One measurement by several processes; what they check together is in ranks_program.py."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ranks_program
import torch

import sipp_bench as sb
from sipp_bench.errors import OptionError

PROGRAM = Path(__file__).parents[1] / "ranks_program.py"


def environment() -> dict[str, str]:
    """Of a process that finds the package where this one does, and the modules beside the tests."""
    places = [str(Path(sb.__file__).parents[1]), str(PROGRAM.parent)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(places), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """What each of three ranks, started by torchrun, found."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3"]
    done = subprocess.run(
        [*command, str(PROGRAM), str(folder)], env=environment(), capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(3)]


@pytest.mark.parametrize("check", [check.__name__ for check in ranks_program.CHECKS])
def test_ranks_agree_with_one_process(check: str, reports: list[dict[str, str]]) -> None:
    found = [report[check] for report in reports]
    assert found == ["ok"] * 3, "\n".join(found)


def test_when_one_rank_dies_the_others_say_so_and_end(tmp_path: Path) -> None:
    command = [sys.executable, str(PROGRAM), str(tmp_path)]
    ranks = [
        subprocess.Popen([*command, str(rank), "3"], env=environment(), stderr=subprocess.PIPE) for rank in range(3)
    ]
    try:
        statuses = [ranks[2].wait(timeout=200)]
        # What is promised; it takes less than a second where cores are free.
        ended = time.monotonic()
        statuses += [rank.wait(timeout=max(0.1, 60 - (time.monotonic() - ended))) for rank in ranks[:2]]
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()
    assert statuses == [-9, 0, 0]
    for rank in (0, 1):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert found["kind"] == "RankError"
        assert "Another rank has ended or no longer answers" in found["sentence"]
        assert "see what that process said last" in found["sentence"]
    assert not (tmp_path / "2.json").exists()


def test_a_group_needs_torch_distributed() -> None:
    with pytest.raises(OptionError, match="start the program with torchrun"):
        sb.measure_sensitivity(torch.nn.Linear(3, 2), torch.ones(2, 3), group="world")


def test_a_measurement_made_before_is_used_if_it_fits() -> None:
    model, points = ranks_program.build("conv")
    sens = sb.measure_sensitivity(model, points)
    for method in ("sipp-det", "sipp-mixture"):
        given = sb.fit(model, points, method, sensitivity=sens, weights="downstream").prune(0.3)
        anew = sb.fit(model, points, method, weights="downstream").prune(0.3)
        for name, weight in given.model.named_parameters():
            assert torch.equal(weight, dict(anew.model.named_parameters())[name])
    other, _ = ranks_program.build("conv", seed=1)
    with pytest.raises(OptionError, match=r"'0\.weight' were not measured on this network"):
        sb.fit(other, points, sensitivity=sens)
    with pytest.raises(OptionError, match=r"lack '7\.weight'"):
        sb.fit(model, points, sensitivity=sb.measure_sensitivity(model, points, layers=["0", "4"]))
    with pytest.raises(OptionError, match="'mean'"):
        sb.fit(model, points, sensitivity=sens, patch_reduction="mean")
    with pytest.raises(OptionError, match="'wanda' does not use sensitivities"):
        sb.fit(model, points, "wanda", sensitivity=sens)
