"""Kill a run at random moments, fill its disk, take its right to write, start it twice: is anything lost or wrong?

    python tests/reliability/faults.py -o reports/reliability/faults.json

The suite has 6 cells of a small network, which is trained on the way. One undisturbed run says what each file must be.

kill        SIGKILL after a random time of the processor, drawn uniformly from what an undisturbed run takes once all
            is imported, so that other programs on the machine do not shift the moments; then the folder is looked at,
            and the run goes on there. A folder in which the run has come to its end is compared and left for a new one,
            without trained networks
disk full   the run folder on a disk of so many KiB; then the disk is enlarged and the run goes on
read-only   the run folder on a disk that is mounted read-only, half of its cells done
two runs    two processes started on one folder at once
corruption  a byte of a cell's or the run's file is replaced, at random, one at a time, and the folder read

After each fault: no finished cell's file may be missing or other than in the undisturbed run ("lost", "wrong"), and a
run that refuses must do so with exit code 2, without a traceback, and say what to do. Disks need Linux and root, or
`unshare -rm` before the command.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import sipp_bench.bench.runner  # noqa: F401  # imported here, so that no process has to
from sipp_bench.cli import commands as cli
from sipp_bench.errors import StoreError
from sipp_bench.machine.files import write_atomically
from sipp_bench.machine.system import describe_system
from sipp_bench.store.folder import load_run
from sipp_bench.store.records import SEAL, read_json, to_json

STAGES = ("corruption", "two_runs", "full_disks", "read_only", "kills")

SUITE = """name = "faults"
seeds = [0]
keep = [0.5, 0.2, 0.05]
points = 32

[[target]]
network = "lenet-300-100"
data = "digits"

[[method]]
name = "sipp-det"

[[method]]
name = "random"
"""


@dataclass(frozen=True)
class Started:
    """A process that does what `sipp-bench run` does once everything is imported, and the file of what it says."""

    pid: int
    errors: Path

    def kill_after(self, seconds: float) -> None:
        """SIGKILL once its main thread has had so many seconds of a processor, or is at its end."""
        while (had := self.cpu_seconds()) is not None and had < seconds:
            time.sleep(0.002)
        os.kill(self.pid, signal.SIGKILL)

    def cpu_seconds(self) -> float | None:
        """Of its main thread; None once it has ended."""
        try:
            state = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
            return None if state == "Z" else int(Path(f"/proc/{self.pid}/schedstat").read_text().split()[0]) / 1e9
        except OSError:
            return None

    def finish(self) -> tuple[int, str]:
        """Exit code, below 0 for a signal, and what it said on the way out."""
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return code, self.errors.read_text().rpartition("\r")[2].strip().rpartition("\n")[2]


def start(suite: Path, folder: Path, cache: Path) -> Started:
    """A run in a process of its own: a copy of this one, which has imported everything and computed nothing."""
    errors = cache.parent / f"{time.monotonic_ns()}.txt"
    pid = os.fork()
    if pid:
        return Started(pid, errors)
    try:
        with errors.open("w") as said, open(os.devnull, "w") as nothing:  # noqa: PTH123  # it is no file
            os.dup2(said.fileno(), 2)
            os.dup2(nothing.fileno(), 1)
            os.environ["SIPP_BENCH_CACHE"] = str(cache)
            cli.main(["run", str(suite), "-o", str(folder), "--no-report"])
    except SystemExit as end:
        os._exit(int(end.code or 0))
    finally:
        os._exit(99)  # an exception that nothing caught


def results(folder: Path) -> dict[str, bytes]:
    """The files that must be the same in every run."""
    return {
        file.name: file.read_bytes()
        for file in folder.glob("cells/*")
        if not file.name.startswith(".") and not file.name.endswith((".timing.json", ".traceback.txt"))
    }


def finished(found: dict[str, bytes]) -> set[str]:
    return {name for name in found if name.endswith(".json")}


class Judge:
    """Compares folders with an undisturbed run."""

    def __init__(self, expected: dict[str, bytes]) -> None:
        self.expected = expected

    def look(self, folder: Path, before: set[str]) -> dict[str, Any]:
        """before: the cells that were finished when the fault came, or earlier."""
        found = results(folder)
        wrong = [name for name in finished(found) if found[name] != self.expected[name]]
        for name in finished(found) - set(wrong):  # the files that belong to a finished cell are whole
            stem = name.removesuffix(".json")
            parts = [each for each in self.expected if each.startswith(f"{stem}.") and each != name]
            wrong += [each for each in parts if found.get(each) != self.expected[each]]
        return {
            "finished": len(finished(found)),
            "lost": sorted(before - finished(found)),
            "wrong": sorted(wrong),
            "temporary_files": len([*folder.glob(".*.tmp"), *folder.glob("cells/.*.tmp")]),
            "reading": self.read(folder),
        }

    def read(self, folder: Path) -> str:
        """Whether the folder loads as far as it is finished."""
        try:
            run = load_run(folder)
        except StoreError as error:
            # Before run.json is there, this is no run folder yet.
            return "no run yet" if "it has no run.json" in str(error) else f"refused: {error}"
        return "as it should be" if len(run.cells) == len(finished(results(folder))) else "cells are missing"

    def equal(self, folder: Path) -> bool:
        """Whether a run that came to its end has the undisturbed one's files, and nothing else."""
        left = [*folder.glob(".*.tmp"), *folder.glob("cells/.*.tmp")]
        return results(folder) == self.expected and not left


def kills(suite: Path, work: Path, judge: Judge, wanted: int, seed: int) -> Iterator[dict[str, Any]]:
    """One entry a kill; every run in whose folder processes were killed comes to its end."""
    chance, killed, number = random.Random(seed), 0, 0
    first, seconds = start(suite, work / "first", work / "first-cache"), 0.0
    while (had := first.cpu_seconds()) is not None:
        seconds = had
        time.sleep(0.002)
    first.finish()
    while killed < wanted:
        folder, cache, before, code = work / f"kill-{number}", work / f"kill-cache-{number}", set[str](), -9
        while code == -signal.SIGKILL:
            process = start(suite, folder, cache)
            if killed == wanted:
                code, said = process.finish()
                break
            moment = chance.uniform(0, seconds)
            process.kill_after(moment)
            code, said = process.finish()
            if code == -signal.SIGKILL:
                killed += 1
                entry: dict[str, Any] = {"folder": number}
                entry |= {"after_cpu_seconds": moment, "of_cpu_seconds": seconds} | judge.look(folder, before)
                before |= finished(results(folder))
                yield entry | {"training_left_off": len([*cache.glob("*.state")])}
        assert code == 0, said
        yield {"folder": number, "exit_code": code, "said": without(work, said if code else "")} | {
            "ended_equal": code == 0 and judge.equal(folder)
        }
        number += 1


@contextmanager
def disk(folder: Path, kib: int) -> Iterator[None]:
    """A disk of so many KiB at `folder`."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kib}k", "none", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)


def full_disks(suite: Path, work: Path, judge: Judge, cache: Path) -> list[dict[str, Any]]:
    """The disk holds nothing, run.json, and more and more of the cells."""
    entries = []
    for kib in (4, 16, 32, 64, 96):
        place = work / f"disk-{kib}"
        with disk(place, kib):
            code, said = start(suite, place / "run", cache).finish()
            entry = {"kib": kib, "exit_code": code, "said": without(work, said)} | judge.look(place / "run", set())
            remount(place, "size=64m")
            again, _ = start(suite, place / "run", cache).finish()
            entries.append(entry | {"ended_equal": again == 0 and judge.equal(place / "run")})
    return entries


def read_only(suite: Path, work: Path, judge: Judge, cache: Path) -> dict[str, Any]:
    """Half of the cells are done; then nothing can be written, and then it can again."""
    place = work / "read-only"
    with disk(place, 65536):
        start(suite, place / "run", cache).finish()
        for name in sorted(finished(results(place / "run")))[::2]:
            for file in (place / "run" / "cells").glob(f"{name.removesuffix('.json')}.*"):
                file.unlink()
        before = finished(results(place / "run"))
        remount(place, "ro")
        code, said = start(suite, place / "run", cache).finish()
        entry = {"exit_code": code, "said": without(work, said)} | judge.look(place / "run", before)
        remount(place, "rw")
        again, _ = start(suite, place / "run", cache).finish()
        return entry | {"ended_equal": again == 0 and judge.equal(place / "run")}


def two_runs(suite: Path, work: Path, judge: Judge, cache: Path, times: int = 5) -> list[dict[str, Any]]:
    """Both start within a few milliseconds, without trained networks: one of them runs, the other refuses."""
    entries = []
    for number in range(times):
        folder = work / f"two-{number}"
        ended = [process.finish() for process in [start(suite, folder, cache) for _ in range(2)]]
        refused = [without(work, said) for code, said in ended if code]
        entry = {"exit_codes": sorted(code for code, _ in ended), "said": refused} | judge.look(folder, set())
        entries.append(entry | {"ended_equal": judge.equal(folder)})
    return entries


def corruption(folder: Path, trials: int, seed: int) -> dict[str, Any]:
    """One byte of one file replaced by another: does reading the folder, arrays and all, refuse it by name?"""
    chance, counts, unnoticed = random.Random(seed), dict[str, int](), list[dict[str, Any]]()
    files = [folder / "run.json", *sorted(folder.glob("cells/*"))]
    for _ in range(trials):
        file = chance.choice(files)
        content = file.read_bytes()
        position = chance.randrange(len(content))
        other = chance.choice([byte for byte in range(256) if byte != content[position]])
        file.write_bytes(content[:position] + bytes([other]) + content[position + 1 :])
        kind = ".".join(part for part in file.name.split(".")[-2:] if not part[0].isdigit())
        try:
            run = load_run(folder)
            for each in run.cells["id"][run.cells["id"].map(file.name.startswith)]:
                run.blocks(each)
                run.predictions(each)
        except StoreError as error:
            outcome = "refused by name" if str(file) in str(error) else f"refused: {error}"
        else:
            outcome = "not noticed"
            around = slice(max(0, position - 9), position + 10)
            now, was = read_json(file), json.loads(content)
            same = all(now.get(key) == value for key, value in was.items() if key != SEAL)
            unnoticed.append({"file": kind, "was": content[around].decode("latin-1"), "values_unchanged": same})
        finally:
            file.write_bytes(content)
        counts[f"{kind}: {outcome}"] = counts.get(f"{kind}: {outcome}", 0) + 1
    return {"trials": trials, "seed": seed, "outcomes": dict(sorted(counts.items())), "not_noticed": unnoticed}


def without(work: Path, text: str) -> str:
    return text.replace(str(work), "WORK")


def in_lanes(work: Path, lanes: int, kill: Callable[[int], Iterator[dict[str, Any]]]) -> list[dict[str, Any]]:
    """`kill` for every lane, in a process of its own, which writes down what it found as it goes."""
    pids = []
    for lane in range(lanes):
        pid = os.fork()
        if pid == 0:
            entries = []
            for entry in kill(lane):
                entries.append({"lane": lane} | entry)
                write_atomically(work / f"lane-{lane}.json", to_json({"entries": entries}))
            os._exit(0)
        pids.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    assert not any(codes), codes
    return [
        entry for lane in range(lanes) for entry in json.loads((work / f"lane-{lane}.json").read_bytes())["entries"]
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True, help="The JSON file.")
    parser.add_argument("--kills", type=int, default=100, help="Rounded up to a multiple of the lanes.")
    parser.add_argument("--lanes", type=int, default=5, help="Processes that kill, each its own runs.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=STAGES, help="This stage, beside what the file has of the others.")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        suite, cache = work / "faults.toml", work / "cache"
        suite.write_text(SUITE)
        code, said = start(suite, work / "undisturbed", cache).finish()
        assert code == 0, said
        judge = Judge(results(work / "undisturbed"))

        def kill(lane: int) -> Iterator[dict[str, Any]]:
            place = work / f"lane-{lane}"
            place.mkdir()
            wanted = -(-options.kills // options.lanes)
            return kills(suite, place, judge, wanted, options.seed + lane)

        stages: dict[str, Callable[[], Any]] = {
            "corruption": lambda: corruption(work / "undisturbed", 1000, options.seed),
            "two_runs": lambda: two_runs(suite, work, judge, cache),
            "full_disks": lambda: full_disks(suite, work, judge, cache),
            "read_only": lambda: read_only(suite, work, judge, cache),
            "kills": lambda: in_lanes(work, options.lanes, kill),
        }
        content: dict[str, Any] = json.loads(options.output.read_bytes()) if options.only else {}
        content |= {
            "command": "python tests/reliability/faults.py -o reports/reliability/faults.json",
            **describe_system(),
            "seed": options.seed,
            "cells": len(finished(judge.expected)),
        }
        for name in [options.only] if options.only else STAGES:
            if name in ("full_disks", "read_only") and os.geteuid() != 0:
                content[name] = "not run: mounting a disk needs root"
                continue
            content[name] = stages[name]()
            write_atomically(options.output, to_json(content))


if __name__ == "__main__":
    main()
