"""The native kernel under ThreadSanitizer: no data race in it, and every race that is planted in it is reported.

kernel.cpp is compiled as it is, with OpenMP; runtime.cpp stands in for GCC's OpenMP library. Needs g++ on Linux.
"""

import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
NATIVE = HERE.parents[1] / "sipp_bench" / "maxtimes" / "native"
REPORTED = 66  # the exit code of a program in which the sanitizer saw a race

# What is replaced in kernel.cpp by what: the sanitizer is only a check if it reports these.
RACES = {
    "all threads pack into the same buffer": ("packed.get() + thread() * COLUMNS * PATCHES", "packed.get()"),
    "no barrier before 1 / z is read": ("omp for schedule(static)", "omp for schedule(static) nowait"),
    "no barrier before 1 / z is written again": ("omp for schedule(dynamic)", "omp for schedule(dynamic) nowait"),
    "the survey's maximum is shared": (" reduction(max : largest)", ""),
}


def build(kernel: str, folder: Path) -> Path:
    """The driver with this text as kernel.cpp."""
    (folder / "kernel.cpp").write_text(kernel)
    common = ["g++", "-std=c++17", "-g", f"-I{NATIVE}"]
    watched = ["-O1", "-fsanitize=thread"]
    # No flags for an instruction set: which one it is makes no difference to who writes where.
    flags = ["-fopenmp", "-DSIPP_VARIANT=portable", "-ffinite-math-only", "-fno-signed-zeros"]
    subprocess.run([*common, *watched, *flags, "-c", folder / "kernel.cpp", "-o", folder / "kernel.o"], check=True)
    # The driver only compares, in one thread: nothing to watch.
    subprocess.run([*common, "-O2", "-c", HERE / "drive.cpp", "-o", folder / "drive.o"], check=True)
    objects = [HERE / "runtime.cpp", folder / "kernel.o", folder / "drive.o"]
    subprocess.run([*common, *watched, "-pthread", *objects, "-o", folder / "drive"], check=True)
    return folder / "drive"


def drive(program: Path) -> subprocess.CompletedProcess[str]:
    """One run, up to the first report. Some systems place memory where older sanitizers refuse it: then once more."""
    environment = os.environ | {"TSAN_OPTIONS": "halt_on_error=1"}
    done = subprocess.run([program], capture_output=True, text=True, check=False, env=environment)
    if "unexpected memory mapping" in done.stderr:
        command = ["setarch", platform.machine(), "-R", program]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    return done


def main() -> int:
    text, failed = (NATIVE / "kernel.cpp").read_text(), False
    with tempfile.TemporaryDirectory() as folder:
        done = drive(build(text, Path(folder)))
        print(f"kernel.cpp: {'silent' if done.returncode == 0 else 'FAILED'}; {done.stdout.strip()}")
        if done.returncode != 0:
            failed = True
            print(done.stderr)
        for what, (old, new) in RACES.items():
            if text.count(old) != 1:
                raise SystemExit(f"{old!r} is not in kernel.cpp exactly once: say how to plant: {what}.")
            reported = drive(build(text.replace(old, new), Path(folder))).returncode == REPORTED
            print(f"planted, {what}: {'reported' if reported else 'NOT REPORTED'}")
            failed = failed or not reported
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
