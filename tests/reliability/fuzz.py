"""The fuzz tests of tests/cli/test_fuzz.py for minutes, from new seeds, and what they found.

    python tests/reliability/fuzz.py -o reports/reliability/fuzz.json --minutes 5

The time is shared equally by the functions. Each goes on with one seed of Hypothesis after another; an exception that
is not of sipp_bench/errors.py is recorded with the smallest file that raises it, and the exit code is 1.

With Atheris (`python -m pip install atheris`), which looks for inputs that reach new code, one function at a time:

    python tests/reliability/fuzz.py --atheris test_checkpoints -max_total_time=300
"""

import argparse
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis

from sipp_bench.machine.files import write_atomically
from sipp_bench.machine.system import describe_system
from sipp_bench.store.records import to_json

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests" / "cli"), str(ROOT / "tests")]


def tests() -> dict[str, Any]:
    """The fuzz tests by name."""
    import test_fuzz

    return test_fuzz.TESTS


def run(test: Any, seconds: float, first_seed: int) -> dict[str, Any]:
    """One test, again and again, until the time is over."""
    examples = 0
    inner = test.hypothesis.inner_test

    def counted(*arguments: Any, **options: Any) -> None:
        nonlocal examples
        examples += 1
        inner(*arguments, **options)

    test.hypothesis.inner_test = counted
    # In place: a test that has settings takes no others.
    test._hypothesis_internal_use_settings = hypothesis.settings(
        test._hypothesis_internal_use_settings, max_examples=50, derandomize=False
    )
    seed, failures, began, cpu = first_seed, list[str](), time.perf_counter(), time.process_time()
    while time.perf_counter() - began < seconds and not failures:
        again: Callable[[], None] = hypothesis.seed(seed)(test)
        try:
            again()
        except Exception:
            failures.append(f"seed {seed}: {traceback.format_exc()}".replace(str(ROOT), "."))
        seed += 1
    return {
        "examples": examples, "seeds": [first_seed, seed - 1], "seconds": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - cpu, "uncaught": failures,
    }  # fmt: skip


def with_atheris(name: str, arguments: list[str]) -> None:
    """Let Atheris choose the bytes that Hypothesis draws from."""
    import atheris

    with atheris.instrument_imports(include=["sipp_bench", "safetensors"]):
        test = tests()[name]
    atheris.Setup([sys.argv[0], *arguments], test.hypothesis.fuzz_one_input)
    atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, help="The JSON file.")
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--seed", type=int, default=0, help="The first one.")
    parser.add_argument("--atheris", metavar="TEST")
    options, others = parser.parse_known_args()
    warnings.simplefilter("ignore")
    if options.atheris:
        with_atheris(options.atheris, others)
        return
    share = 60 * options.minutes / len(tests())
    found = {name: run(test, share, options.seed) for name, test in tests().items()}
    content = {
        "command": f"python tests/reliability/fuzz.py -o reports/reliability/fuzz.json --minutes {options.minutes:g}",
        **describe_system(),
        "hypothesis": hypothesis.__version__,
        "examples": sum(each["examples"] for each in found.values()),
        "seconds": sum(each["seconds"] for each in found.values()),
        "cpu_seconds": sum(each["cpu_seconds"] for each in found.values()),
        "uncaught": sum(len(each["uncaught"]) for each in found.values()),
        "tests": found,
    }
    if options.output:
        write_atomically(options.output, to_json(content))
    print(to_json(content))
    sys.exit(1 if content["uncaught"] else 0)


if __name__ == "__main__":
    main()
