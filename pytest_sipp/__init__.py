"""A fixture for the tests of others: a pruned network still honours its bound.

    def test_bound(sipp_verify):
        sipp_verify(dense_model, pruned, points)

Its own package, so that pytest, which loads plugins in every session, does not load torch with it.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from torch import nn

    from sipp_bench.compression.pruned import Pruned
    from sipp_bench.network.points import Points

Verify = Callable[["nn.Module", "Pruned | nn.Module", "Points"], None]


@pytest.fixture(scope="session")
def sipp_verify() -> Verify:
    """sipp_verify(model, pruned, points): fail unless every bound holds and one that could be broken was checked.

    pruned: what `sipp_bench.prune` gives, with the points that it looked at; or any pruned copy of the model, which is
    held to claim C2 for the weights that it dropped.
    """

    def verify(model: "nn.Module", pruned: "Pruned | nn.Module", points: "Points") -> None:
        from sipp_bench.compression.honoured import bound_problems

        if problems := bound_problems(model, pruned, points):
            pytest.fail("\n".join(problems), pytrace=False)

    return verify
