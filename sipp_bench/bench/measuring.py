"""Measuring the cells of one network, data set and seed."""

import contextlib
import re
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sipp_bench.bench import protocols
from sipp_bench.bench.jobs import Bar, Outbox, Writer
from sipp_bench.bench.suite import Suite
from sipp_bench.bench.suite_tables import Method
from sipp_bench.compression.honoured import Where, check_rows
from sipp_bench.compression.masks import require_masks_held
from sipp_bench.compression.pruned import Pruned
from sipp_bench.errors import StoreError
from sipp_bench.machine.seeds import derived_seed, generator
from sipp_bench.measures.asked import Subject as AskedSubject
from sipp_bench.measures.cell import cost_measures, count_operations, prediction_measures
from sipp_bench.measures.latency import reference_samples, timed
from sipp_bench.measures.predictions import evaluate, predict, scores
from sipp_bench.methods import Fitted, fit
from sipp_bench.network.controls import require_other
from sipp_bench.sensitivity.sample_size import sample_size
from sipp_bench.store.cell import Cell
from sipp_bench.store.records import Arrays
from sipp_bench.zoo import data, models, training


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
    counted: tuple[int, int]
    """Of the dense network, by `count_operations`."""
    asked: AskedSubject


_latest: list[tuple[tuple["Measuring", tuple[str, str, int]], _Subject, Outbox]] = []
"""In a worker, the subject of the latest job and what was recorded of it: the next job is most likely about it, too."""


@dataclass(frozen=True)
class Measuring:
    suite: Suite
    store: Writer
    bar: Bar
    cache_dir: Path | None
    download: bool
    device: str

    def job(self, cells: list[Cell], only_prepare: bool) -> Outbox:
        """`run_cells` in a worker, or its beginning; what it would write comes back."""
        outbox = Outbox()
        measuring = replace(self, store=outbox)
        wanted = (self, cells[0].subject)
        with measuring._recording_failure(cells):
            if not _latest or _latest[0][0] != wanted:
                _latest.clear()
                found = Outbox()
                _latest.append((wanted, replace(self, store=found)._prepare(cells[0]), found))
            _, subject, found = _latest[0]
            outbox.facts += found.facts
            if not only_prepare:
                measuring._run_methods(subject, cells)
        return outbox

    def run_cells(self, cells: list[Cell]) -> None:
        """Run `cells`, all of one network, data set and seed."""
        with self._recording_failure(cells):
            self._run_methods(self._prepare(cells[0]), cells)

    def _run_methods(self, subject: _Subject, cells: list[Cell]) -> None:
        for _, group in groupby(cells, lambda cell: cell.method):
            self._run_method(subject, list(group))

    def _run_method(self, subject: _Subject, cells: list[Cell]) -> None:
        """Fit once, then run `cells`, which differ in their keep ratio only, from the largest down as cascades go."""
        method = self._method(cells[0])
        reached: dict[tuple[float, ...], Pruned] = {}
        with self._recording_failure(cells):
            self.bar.set_postfix_str(f"{cells[0].network}, seed {cells[0].seed}, {method.label}")
            fitted, fit_seconds = timed(lambda: self._fit(subject, cells[0], subject.trained.model), self.device)
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
        points = _draw(dataset.points, self._wanted(name, trained.model, dataset.points), cell.seed)
        dataset.require_points(points)
        fresh = _draw(dataset.validation, len(points), cell.seed)
        scores, logits = _evaluate(trained.model, dataset)
        counted = count_operations(trained.model, points.images[:1])
        asked = self._asked(cell, trained.model, dataset, points, logits)
        return _Subject(trained, dataset, points, fresh, scores, logits, counted, asked)

    def _wanted(self, name: str, model: nn.Module, points: data.Part) -> int:
        """How many points of S the methods look at; where there are fewer than the authors' rule says, run.json has it.

        Raises OptionError where there are fewer than the suite says.
        """
        wanted = self.suite.points
        if not isinstance(wanted, str):
            self.suite.require_enough(name, len(points))
            return min(wanted, len(points))
        size = sample_size(model, example=points.images[:1])  # "sample-size", the only word that suites take there
        if size > len(points):
            self.store.record("sample_size", name, {"wanted": size, "there": len(points)})
        return min(size, len(points))

    def _asked(
        self, cell: Cell, model: nn.Module, dataset: data.DataSet, points: data.Part, logits: Tensor
    ) -> AskedSubject:
        asked = self.suite.measures.asked()
        sample = _draw(dataset.test, asked.corruption_images, cell.seed) if asked.corruption_images else None
        twin = None
        if asked.twin:
            twin = self._trained(cell, dataset, seed=derived_seed(cell.seed, "twin")).model
            require_other(twin, model, "The twin")
        return AskedSubject(asked, model, dataset.test, sample, points.images, logits, twin, cell.seed)

    def _trained(
        self, cell: Cell, dataset: data.DataSet, last_epoch: int | None = None, seed: int | None = None
    ) -> training.Trained:
        """The cell's network; seed: of its training, by default the cell's."""
        recipe = self.suite.target_of(cell).training_recipe()
        if recipe is None:
            trained = training.pretrained_model(cell.network, dataset)
            trained.model.to(self.device)
            return trained
        return training.trained_model(
            cell.network,
            dataset,
            seed=cell.seed if seed is None else seed,
            cache_dir=self.cache_dir,
            device=self.device,
            recipe=recipe,
            last_epoch=last_epoch,
        )

    def _fit(self, subject: _Subject, cell: Cell, model: nn.Module) -> Fitted:
        method, points = self._method(cell), subject.points
        with models.seeded(cell.seed):
            return fit(model, points.images, method=method.name, labels=points.labels, **method.options)

    def _task(
        self, subject: _Subject, fitted: Fitted, cell: Cell, reached: dict[tuple[float, ...], Pruned]
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
        self, subject: _Subject, fitted: Fitted, task: protocols.Task
    ) -> tuple[dict[str, Any], dict[str, float | list[float]], Arrays, dict[str, NDArray[Any]]]:
        """Prune to the cell's keep ratio and measure: the result, the times, the arrays by block, what is predicted."""
        model, example, beside = subject.trained.model, subject.points.images[:1], reference_samples()
        protocol = self.suite.make_protocol()
        outcome, seconds = timed(lambda: protocol.run(task), self.device)
        pruned, final = outcome.pruned, outcome.retrained or outcome.pruned
        require_masks_held(final)
        (scores, logits), evaluate_seconds = timed(lambda: _evaluate(final.model, subject.dataset), self.device)
        (rows, blocks), check_seconds = timed(lambda: self._check(subject, outcome), self.device)
        around, others = self._around(subject, outcome)
        test = {"labels": subject.dataset.test.labels, "dense": subject.dense_logits.argmax(1)}
        last = {"pruned" if outcome.retrained is None else "retrained": logits.argmax(1)}
        result = {
            **scores,
            **around,
            "dense_accuracy": subject.dense["accuracy"],
            "dense_loss": subject.dense["loss"],
            "dense_validation_accuracy": subject.dense["validation_accuracy"],
            "weights": pruned.weights,
            "requested": pruned.requested,
            "kept": pruned.kept,
            "achieved_keep": pruned.kept / pruned.weights,
            **prediction_measures(subject.dense_logits, logits, subject.dataset.test.labels),
            **cost_measures(model, example, subject.counted, final.model, pruned.changes),
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
            "reference_seconds": median([*beside, *reference_samples()]),
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
        # The first claim is the one that the rows of check_rows are about.
        if pruned.guarantee is None or pruned.guarantee.claims[0] not in self.suite.checks:
            return [], {}
        rows: list[dict[str, Any]] = []
        blocks: dict[str, dict[str, NDArray[Any]]] = {}
        parts: dict[Where, data.Part] = {"S": subject.points, "fresh": subject.fresh}
        subject.dataset.require_points(subject.points)
        subject.dataset.require_fresh(subject.fresh)
        for where, part in parts.items():
            found, arrays = check_rows(outcome.reference, pruned, part.images, where)
            rows += [row | {"points": len(part)} for row in found]
            for weight, named in arrays.items():
                blocks.setdefault(weight, {}).update({name: array.cpu().numpy() for name, array in named.items()})
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


def _draw(part: data.Part, wanted: int, seed: int) -> data.Part:
    """`wanted` rows at random, or all if there are fewer; the first rows won't do, since parts are sorted.

    Fewer are there of test images to spoil, and of fresh points; of S, `_wanted` has seen to it.
    """
    rows = torch.randperm(len(part), generator=generator(seed))[:wanted]
    return data.Part(part.images[rows], part.labels[rows], part.indices[rows])


def _evaluate(model: nn.Module, dataset: data.DataSet) -> tuple[dict[str, float], Tensor]:
    """Scores on the test and validation parts, and the logits of the test part, which it passes through once."""
    logits = predict(model, dataset.test.images)
    test = scores(logits, dataset.test.labels)
    validation = evaluate(model, dataset.validation.images, dataset.validation.labels)
    return test | {f"validation_{name}": value for name, value in validation.items()}, logits


def _without_paths(text: str) -> str:
    """`text` with every absolute path cut to its last part: results must not differ between machines."""
    return re.sub(r"(?<![\w.])(?:[A-Za-z]:)?(?:[/\\][^\s/\\:'\",]+)+[/\\](?=[^\s/\\])", "", text)
