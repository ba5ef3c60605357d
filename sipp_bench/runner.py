"""From a suite to results on disk: each cell is written by itself, so a run can stop anywhere and go on."""

import contextlib
import re
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

import sipp_bench as sb
from sipp_bench import checks, metrics, protocols
from sipp_bench.errors import StoreError
from sipp_bench.masks import require_masks_held
from sipp_bench.measures.asked import Subject as AskedSubject
from sipp_bench.measures.cell import cost_measures, prediction_measures
from sipp_bench.measures.predictions import predict
from sipp_bench.records import Arrays
from sipp_bench.store import Run, Store, load_run
from sipp_bench.suite import Cell, Suite
from sipp_bench.suite_tables import Method
from sipp_bench.system import describe_system
from sipp_bench.zoo import data, models, training

_Result = TypeVar("_Result")

# Added to a cell's seed for the training of its network's twin: no suite has both.
_TWIN = 2**32


def run(
    suite: Suite,
    output: Path | str,
    *,
    cache_dir: Path | None = None,
    progress: bool = True,
    download: bool = False,
) -> Run:
    """Measure every cell of `suite` that the folder `output` does not hold yet, and return the whole run.

    A cell that raises is recorded as failed and the others go on; the next run tries failed cells again.
    Interrupting or killing the process loses the cell in flight. A cell's results depend on the cell alone,
    not on which others ran before it in the same process: a run in pieces gives the files of one in one go.

    cache_dir: where trained networks are kept; None for the default of `training.trained_model`. download: fetch data
    that is not on the machine.
    Raises StoreError when the folder cannot be used.
    """
    cells = suite.cells()
    meta = {
        "suite": {"name": suite.name, "text": suite.text, "sha256": suite.sha256},
        "seeds": suite.seeds,
        "cells": [cell.id for cell in cells],
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        **describe_system(),
    }
    with Store(output, meta) as store:
        missing = [cell for cell in cells if store.status(cell) != "done"]
        with (
            _deterministic(),
            tqdm(total=len(cells), initial=len(cells) - len(missing), unit="cell", disable=not progress) as bar,
        ):
            runner = _Runner(suite, store, bar, cache_dir, download)
            for _, group in groupby(missing, lambda cell: (cell.network, cell.data, cell.seed)):
                runner.run_target(list(group))
    return load_run(output)


@dataclass(frozen=True)
class _Subject:
    """A trained network with its data, and what is measured on it once for all methods."""

    trained: training.Trained
    dataset: data.DataSet
    points: data.Part
    """What the methods look at: as many points of S as the suite asks for, or all."""
    fresh: data.Part
    """As many validation points, for the checks: the largest error over more points would not compare."""
    dense: dict[str, float]
    dense_logits: Tensor
    """On the test part."""
    dense_multiply_adds: int
    asked: AskedSubject


@dataclass(frozen=True)
class _Runner:
    suite: Suite
    store: Store
    bar: "tqdm[Any]"
    cache_dir: Path | None
    download: bool

    def run_target(self, cells: list[Cell]) -> None:
        """Run `cells`, all of one network, data set and seed."""
        with self._recording_failure(cells):
            subject = self._prepare(cells[0])
            for _, group in groupby(cells, lambda cell: cell.method):
                self._run_method(subject, list(group))

    def _run_method(self, subject: _Subject, cells: list[Cell]) -> None:
        """Fit once, then run `cells`, which differ in their keep ratio only, from the largest down as cascades go."""
        method = self._method(cells[0])
        reached: dict[tuple[float, ...], sb.Pruned] = {}
        with self._recording_failure(cells):
            self.bar.set_postfix_str(f"{cells[0].network}, seed {cells[0].seed}, {method.label}")
            fitted, fit_seconds = _timed(lambda: self._fit(subject, cells[0], subject.trained.model))
            for cell in sorted(cells, key=lambda cell: -cell.keep):
                with self._recording_failure([cell]), models.seeded(cell.seed):
                    task = self._task(subject, fitted, cell, reached)
                    result, timing, blocks, predicted = self._measure(subject, fitted, task)
                    result = {"status": "done", "error": None} | self._about(cell) | result
                    self.store.write_cell(cell, result, {"fit_seconds": fit_seconds} | timing, blocks, predicted)
                    self.bar.update()

    def _prepare(self, cell: Cell) -> _Subject:
        self.bar.set_postfix_str(f"{cell.network}, seed {cell.seed}, training")
        dataset = data.load(cell.data, seed=cell.seed, download=self.download)
        self.store.record("data", cell.data, {"sha256": dataset.sha256})
        trained = self._trained(cell, dataset)
        name = f"{cell.network} on {cell.data}, seed {cell.seed}"
        self.store.record("checkpoints", name, {"sha256": trained.sha256, "key": trained.key})
        wanted = self.suite.points
        if isinstance(wanted, str):  # "sample-size", the only word that suites take there
            wanted = sb.sample_size(trained.model, example=dataset.points.images[:1])
        points = _draw(dataset.points, wanted, cell.seed)
        dataset.require_points(points)
        fresh = _draw(dataset.validation, len(points), cell.seed)
        scores, logits = _evaluate(trained.model, dataset)
        adds = metrics.multiply_adds(trained.model, points.images[:1])
        asked = self._asked(cell, trained.model, dataset, points, logits)
        return _Subject(trained, dataset, points, fresh, scores, logits, adds, asked)

    def _asked(
        self, cell: Cell, model: nn.Module, dataset: data.DataSet, points: data.Part, logits: Tensor
    ) -> AskedSubject:
        asked = self.suite.measures.asked()
        sample = _draw(dataset.test, asked.corruption_images, cell.seed) if asked.corruption_images else None
        twin = self._trained(cell, dataset, seed=cell.seed + _TWIN).model if asked.twin else None
        return AskedSubject(asked, model, dataset.test, sample, points.images, logits, twin, cell.seed)

    def _trained(
        self, cell: Cell, dataset: data.DataSet, last_epoch: int | None = None, seed: int | None = None
    ) -> training.Trained:
        """The cell's network; seed: of its training, by default the cell's."""
        recipe = self.suite.target_of(cell).training_recipe()
        if recipe is None:
            return training.pretrained_model(cell.network, dataset)
        seed = cell.seed if seed is None else seed
        return training.trained_model(
            cell.network, dataset, seed=seed, cache_dir=self.cache_dir, recipe=recipe, last_epoch=last_epoch
        )

    def _fit(self, subject: _Subject, cell: Cell, model: nn.Module) -> sb.Fitted:
        method, points = self._method(cell), subject.points
        with models.seeded(cell.seed):
            return sb.fit(model, points.images, method=method.name, labels=points.labels, **method.options)

    def _task(
        self, subject: _Subject, fitted: sb.Fitted, cell: Cell, reached: dict[tuple[float, ...], sb.Pruned]
    ) -> protocols.Task:
        return protocols.Task(
            fitted=fitted,
            fit=lambda model: self._fit(subject, cell, model),
            early=lambda epoch: self._trained(cell, subject.dataset, last_epoch=epoch).model,
            train=subject.dataset.train,
            recipe=self.suite.target_of(cell).training_recipe(),
            keep=cell.keep,
            seed=cell.seed,
            keeps=self.suite.keep,
            reached=reached,
        )

    def _measure(
        self, subject: _Subject, fitted: sb.Fitted, task: protocols.Task
    ) -> tuple[dict[str, Any], dict[str, float | list[float]], Arrays, dict[str, NDArray[Any]]]:
        """Prune to the cell's keep ratio and measure: the result, the times, the arrays by block, what is predicted."""
        model, example = subject.trained.model, subject.points.images[:1]
        protocol = self.suite.make_protocol()
        outcome, seconds = _timed(lambda: protocol.run(task))
        pruned, final = outcome.pruned, outcome.retrained or outcome.pruned
        require_masks_held(final)
        (scores, logits), evaluate_seconds = _timed(lambda: _evaluate(final.model, subject.dataset))
        (rows, blocks), check_seconds = _timed(lambda: self._check(subject, outcome))
        around, others = self._around(subject, outcome)
        test = {"labels": subject.dataset.test.labels, "dense": subject.dense_logits.argmax(1)}
        last = {"pruned" if outcome.retrained is None else "retrained": logits.argmax(1)}
        result = {
            **scores,
            **around,
            "dense_accuracy": subject.dense["accuracy"],
            "dense_loss": subject.dense["loss"],
            "weights": pruned.weights,
            "requested": pruned.requested,
            "kept": pruned.kept,
            "achieved_keep": pruned.kept / pruned.weights,
            "multiply_adds": metrics.multiply_adds(model, example, pruned.masks),
            "dense_multiply_adds": subject.dense_multiply_adds,
            **prediction_measures(subject.dense_logits, logits, subject.dataset.test.labels),
            **cost_measures(model, example, final.model, pruned.masks),
            **subject.asked.measures(final, scores["accuracy"]),
            "mask_sha256": pruned.mask_sha256,
            "checkpoint_sha256": subject.trained.sha256,
            "num_points": len(subject.points),
            "delta": None if pruned.guarantee is None else pruned.guarantee.delta,
            "guarantee": None if final.guarantee is None else final.guarantee.statement(),
            "skipped": dict(fitted.skipped),
            "layers": pruned.layers.to_dict("records"),
            "checks": rows,
        }
        timing: dict[str, float | list[float]] = {
            # Only one-shot does nothing but prune.
            "prune_seconds" if outcome.retrained is None else "protocol_seconds": seconds,
            "evaluate_seconds": evaluate_seconds,
            "check_seconds": check_seconds,
            **subject.asked.latency(final.model),
        }
        return result, timing, blocks, {name: classes.numpy() for name, classes in (test | last | others).items()}

    @staticmethod
    def _around(subject: _Subject, outcome: protocols.Outcome) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """What retraining adds: scores and classes before it, and those of the control; nothing without retraining."""
        if outcome.retrained is None:
            return {}, {}
        around: dict[str, Any] = {"retrained_sha256": outcome.retrained.mask_sha256}
        classes = {}
        for which, network in {"pruned": outcome.pruned, "control": outcome.control}.items():
            if network is not None:
                scores, logits = _evaluate(network.model, subject.dataset)
                around |= {f"{which}_{name}": value for name, value in scores.items()}
                classes[which] = logits.argmax(1)
        return around, classes

    def _check(self, subject: _Subject, outcome: protocols.Outcome) -> tuple[list[dict[str, Any]], Arrays]:
        """The guarantee, which is about the network as pruned, compared with the one that it was pruned from."""
        pruned = outcome.pruned
        # The first claim is the one that the rows of check_cell are about.
        if pruned.guarantee is None or pruned.guarantee.claims[0] not in self.suite.checks:
            return [], {}
        rows: list[dict[str, Any]] = []
        blocks: dict[str, dict[str, NDArray[Any]]] = {}
        parts: dict[checks.Where, data.Part] = {"S": subject.points, "fresh": subject.fresh}
        for where, part in parts.items():
            found, arrays = checks.check_cell(outcome.reference, pruned, part.images, where)
            rows += [row | {"points": len(part)} for row in found]
            for weight, named in arrays.items():
                blocks.setdefault(weight, {}).update({name: array.numpy() for name, array in named.items()})
        return rows, blocks

    def _method(self, cell: Cell) -> Method:
        return next(method for method in self.suite.methods if method.label == cell.method)

    def _about(self, cell: Cell) -> dict[str, Any]:
        method = self._method(cell)
        return {"method_name": method.name, "options": method.options}

    @contextlib.contextmanager
    def _recording_failure(self, cells: list[Cell]) -> Iterator[None]:
        """Record `cells` as failed when the block raises, and go on. StoreError ends the run."""
        try:
            yield
        except StoreError:
            raise
        except Exception as error:
            result = {"status": "failed", "error": f"{type(error).__name__}: {_without_paths(str(error))}"}
            for cell in cells:
                self.store.write_cell(cell, result | self._about(cell), {}, traceback=traceback.format_exc())
                self.bar.update()


def summary(run: Run) -> str:
    """In plain text: test accuracy by method and keep ratio, verdicts of the checks, failures, counts."""
    lines = []
    done = run.cells[run.cells["status"] == "done"]
    failed = run.cells[run.cells["status"] == "failed"]
    for (network, data_name), cells in done.groupby(["network", "data"], sort=False):
        dense = cells.groupby("seed")["dense_accuracy"].first()
        table = cells.pivot_table(index="method", columns="keep", values="accuracy", sort=False)
        table = table.sort_index(axis="columns", ascending=False).map("{:.1%}".format)
        lines += [
            f"{network} on {data_name}: test accuracy, mean of {len(dense)} seeds. Dense {dense.mean():.1%}",
            table.rename_axis(columns="keep", index=None).to_string(na_rep="-"),
            "",
        ]
    if len(run.checks):
        lines.append("Checks, one a layer and cell:")
        verdicts = run.checks.groupby(["claim", "on", "verdict"]).size().unstack(fill_value=0)
        lines += [verdicts.reset_index().rename_axis(columns=None).to_string(index=False), ""]
    for error, cells in failed.groupby("error", sort=False):
        lines.append(f"{len(cells)} cells failed, the first {cells['id'].iloc[0]}: {error}")
    planned = len(run.meta["cells"])
    lines.append(f"{len(done)} of {planned} cells done, {len(failed)} failed. Results: {run.path}")
    return "\n".join(lines)


def _draw(part: data.Part, wanted: int, seed: int) -> data.Part:
    """`wanted` rows at random, or all if there are fewer; the first rows won't do, since parts are sorted."""
    rows = torch.randperm(len(part), generator=torch.Generator().manual_seed(seed))[:wanted]
    return data.Part(part.images[rows], part.labels[rows], part.indices[rows])


def _evaluate(model: nn.Module, dataset: data.DataSet) -> tuple[dict[str, float], Tensor]:
    """Scores on the test and validation parts, and the logits of the test part, which it passes through once."""
    logits = predict(model, dataset.test.images)
    test = metrics.evaluate(nn.Identity(), logits, dataset.test.labels)
    validation = metrics.evaluate(model, dataset.validation.images, dataset.validation.labels)
    return test | {f"validation_{name}": value for name, value in validation.items()}, logits


def _timed(work: Callable[[], _Result]) -> tuple[_Result, float]:
    start = time.perf_counter()
    return work(), time.perf_counter() - start


def _without_paths(text: str) -> str:
    """`text` with every absolute path cut to its last part: results must not differ between machines."""
    return re.sub(r"(?<![\w.])(?:[A-Za-z]:)?(?:[/\\][^\s/\\:'\",]+)+[/\\](?=[^\s/\\])", "", text)


@contextlib.contextmanager
def _deterministic() -> Iterator[None]:
    """Deterministic kernels where torch has them, for this block only."""
    enabled, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
