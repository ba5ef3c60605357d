"""In CI a test that was not made is a test that failed."""

import pytest
from installed import COMPLETE, lacking


@pytest.mark.parametrize(("value", "outcome"), [("", pytest.skip.Exception), ("1", pytest.fail.Exception)])
def test_what_is_not_installed_skips_a_test_and_fails_it_where_all_must_run(
    monkeypatch: pytest.MonkeyPatch, value: str, outcome: type[BaseException]
) -> None:
    monkeypatch.setenv(COMPLETE, value)
    with pytest.raises(outcome, match="no Chromium"):
        lacking("no Chromium on this machine")
