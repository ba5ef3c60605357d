"""The claims of SiPP as code that tries to falsify them."""

# Here and now: loading the module of that name later would put it in the place of the function.
from theory_checks.verify import Report, verify

__all__ = ["Report", "verify"]
