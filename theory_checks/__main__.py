"""`python -m theory_checks -o FOLDER`: check everything and write the theory report; exit code 1 if anything failed."""

import argparse
import os
from pathlib import Path

import torch

from theory_checks.claims import FULL, QUICK
from theory_checks.published.publish import run_theory, write_report


def main() -> int:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(prog="python -m theory_checks", description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the report")
    parser.add_argument("--effort", choices=("quick", "full"), default="full")
    parser.add_argument("--repeats", type=int, default=5, help="of each cell of the matrix and point of a curve")
    parser.add_argument("--seeds", type=int, default=50, help="runs of all claims on correct code")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    run = run_theory(
        FULL if given.effort == "full" else QUICK,
        repeats=given.repeats,
        seeds=given.seeds,
        seed=given.seed,
        processes=os.cpu_count() or 1,
        progress=True,
    )
    page = write_report(run, given.output)
    print(f"{'Nothing failed.' if run.ok else 'Something failed: see the report.'} Report: {page}")
    return 0 if run.ok else 1


if __name__ == "__main__":
    raise SystemExit(main())
