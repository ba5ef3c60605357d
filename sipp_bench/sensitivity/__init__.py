"""Points in, empirical sensitivity out (claim C1): what is measured, pass by pass, and what it is made of."""

from sipp_bench.sensitivity.measure import LayerSensitivity, PatchReduction, Sensitivity, measure_sensitivity

__all__ = ["LayerSensitivity", "PatchReduction", "Sensitivity", "measure_sensitivity"]
