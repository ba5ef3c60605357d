"""The reporting checklist of the field, item by item, on the pages of a real run: what a reader must find is there."""

import html
import re
from pathlib import Path

import pytest

from sipp_bench.bench.runner import run
from sipp_bench.bench.suite import parse_suite
from sipp_bench.bench.suite_tables import Target
from sipp_bench.report.build import write_report
from sipp_bench.report.render import PAGES
from sipp_bench.store.folder import Run
from sipp_bench.zoo.training import Recipe

SUITE = """
name = "listed"
seeds = [0, 1, 2]
keep = [0.5, 0.2, 0.1, 0.05, 0.02]
points = 16
protocol = "retrain"
protocol_options = { retrain_epochs = 1 }
[measures]
latency_repeats = 2
[[target]]
network = "lenet-300-100"
data = "digits"
[[method]]
name = "sipp-hybrid"
[[method]]
name = "magnitude"
[[method]]
name = "random"
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Target, "training_recipe", lambda _: Recipe(epochs=2, batch_size=50, learning_rate=0.05))
        folder = tmp_path_factory.mktemp("listed")
        return run(parse_suite(SUITE, "listed.toml"), folder / "run", cache_dir=folder / "cache", progress=False)


@pytest.fixture(scope="module")
def text(finished: Run, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What all pages say, without their tags and white space."""
    site = write_report({"listed": finished}, tmp_path_factory.mktemp("site")).parent
    pages = "\n".join((Path(site) / page).read_text() for page in PAGES)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", pages)).split())


def test_architecture_data_split_and_checkpoints(text: str, finished: Run) -> None:
    for words in ("lenet-300-100", "digits", "fc1.weight", "30,000", "four parts that never overlap"):
        assert words in text or words.replace(",", "") in text, words
    for checkpoint in finished.meta["checkpoints"].values():
        assert checkpoint["sha256"][:12] in text
    for data in finished.meta["data"].values():
        assert data["sha256"][:12] in text


def test_compression_and_theoretical_speedup_with_their_definitions(text: str) -> None:
    assert "compression ratio is 1 / achieved keep" in text
    assert "multiply-adds" in text
    assert re.search(r"masks? (alone|do)", text), "a mask makes nothing faster"


def test_five_operating_points_with_baselines_down_to_collapse(text: str, finished: Run) -> None:
    for keep in ("50%", "20%", "10%", "5%", "2%"):
        assert keep in text
    for method in ("sipp-hybrid", "magnitude", "random"):
        assert method in text
    for accuracy in finished.cells.query("method == 'random'").groupby("keep")["accuracy"].mean():
        assert f"{100 * accuracy:.1f} ±" in text, "raw accuracies, the worst ones too"


def test_means_and_spreads_say_what_they_are(text: str) -> None:
    assert "n = 3 seeds; bars are one sample standard deviation" in text
    assert re.search(r"\d\.\d ± \d", text)


def test_requested_and_achieved_per_layer_and_before_and_after_retraining(text: str, finished: Run) -> None:
    assert "requested" in text.lower()
    assert "achieved" in text.lower()
    for layer in ("fc1.weight", "fc2.weight", "fc3.weight"):
        assert layer in text
    assert "Before retraining" in text
    assert "After retraining" in text
    before = finished.cells.query("method == 'magnitude' and keep == 0.1")["pruned_accuracy"].mean()
    assert f"{100 * before:.1f} ±" in text
    assert "after the last epoch of retraining, never of the best one" in text


def test_times_say_how_they_were_measured(text: str) -> None:
    for words in ("cpu", "float32", "thread", "median", "quartile", "warm"):
        assert words in text.lower(), words


def test_claims_say_what_was_checked_and_what_was_found(text: str, finished: Run) -> None:
    assert "C12" in text
    assert "violations" in text.lower()
    assert "vacuous" in text
    assert "δ" in text
    blocks = int(finished.checks.query("on == 'S'")["blocks"].sum())
    assert f"{blocks:,}" in text


def test_machine_versions_commit_seeds_and_the_command(text: str, finished: Run) -> None:
    assert str(finished.meta["versions"]["torch"]) in text
    assert str(finished.meta["machine"]["cpu"]) in text
    assert str(finished.meta["commit"] or "")[:10] in text
    assert finished.meta["suite"]["sha256"][:12] in text
    assert "seeds = [0, 1, 2]" in text
    assert "sipp-bench run" in text


def test_failed_differs_from_not_run(text: str) -> None:
    assert "Of 45 planned cells, 45 finished, 0 failed and 0 were not run" in text
