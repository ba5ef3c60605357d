"""Settings for every test."""

import os

import torch

# The tests run side by side in several processes; each leaves the other cores to its neighbours.
torch.set_num_threads(1)

# Where there is no GPU, Triton's kernel is tested by its interpreter. Triton reads this when it is imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
