"""The claims of SiPP as code that tries to falsify them."""

# Here and now: loading the module of that name later would put it in the place of the function.
from theory_checks.conformance import check_method, method_checks
from theory_checks.verify import Report, verify

__all__ = ["Report", "check_method", "method_checks", "verify"]
