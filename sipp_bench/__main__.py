"""`python -m sipp_bench` is `sipp-bench`."""

from sipp_bench.cli import main

main()
