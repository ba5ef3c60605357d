"""Seeds of 32 bits: torch's generator on the CPU reads no more, so that 7 and 7 + 2**32 draw the same numbers."""

import hashlib
from numbers import Integral

import torch

from sipp_bench.errors import OptionError

LIMIT = 2**32
"""Seeds lie below it."""


def require_seed(seed: object, name: str = "seed") -> int:
    """`seed` as an int. Raises OptionError unless it is a whole number, of Python or of numpy, within [0, 2**32)."""
    if isinstance(seed, bool) or not isinstance(seed, Integral) or not 0 <= int(seed) < LIMIT:
        raise OptionError(
            f"{name} is a whole number from 0 to {LIMIT - 1}, not {seed!r}: torch's generators on the CPU read 32 bits "
            "of a seed, so that larger ones would draw the same as a smaller one."
        )
    return int(seed)


def derived_seed(seed: int, purpose: str) -> int:
    """The seed, of 32 bits, of a draw that has to be independent of the others made from `seed`: a hash of both.

    Bytes 3 to 6 of SHA-256("PURPOSE SEED"). Never add to a seed, nor multiply it: seed + 1 is the seed of another run.
    Two different pairs have the same one with probability 2**-32, so what must differ is compared besides. Raises
    OptionError as `require_seed` does.
    """
    digest = hashlib.sha256(f"{purpose} {require_seed(seed)}".encode()).digest()
    return int.from_bytes(digest[3:7], "big")


def generator(seed: int) -> torch.Generator:
    """A generator of the CPU that begins at `seed`. Raises OptionError as `require_seed` does."""
    return torch.Generator().manual_seed(require_seed(seed))
