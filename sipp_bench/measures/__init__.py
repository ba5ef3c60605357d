"""Measures beyond accuracy, each a pure function: what pruning changed in predictions, groups, robustness and cost.

predictions, groups, calibration: from logits and labels. potential: from an error curve. corruptions: on spoiled
images. random_splits: a method's place among random layer budgets. cost, storage, latency: what a smaller network
saves. cell: the cheap ones, as a run stores them.
"""
