"""The one hot kernel: a matrix product over the (max, *) semiring, sign-merged.

`max_product(a, r_plus, r_minus, positive, out)` folds into `out` (groups, M, n)

    out[g, i, j] = max(out[g, i, j], max over p of a[g, p, j] * r[g, p, i]),   r = r_plus where positive, else r_minus

for non-negative a (groups, P, n) and r_plus, r_minus (groups, P, M); `positive` is boolean (groups, M, n).
Every backend is one file beside this one with a function of that signature.
"""

from sipp_bench.maxtimes.chunked import max_product

__all__ = ["max_product"]
