"""What tests need beside Python's packages: skipped on a machine without it, failed where everything must be tested."""

import os
from typing import NoReturn

import pytest

COMPLETE = "SIPP_BENCH_TEST_COMPLETE"


def lacking(what: str) -> NoReturn:
    """Skip the test that needs what is not installed; fail it where the environment asks for all tests, as CI does."""
    if os.environ.get(COMPLETE):
        pytest.fail(f"{what}. {COMPLETE} is set: what is not tested counts as failed", pytrace=False)
    pytest.skip(what, allow_module_level=True)
