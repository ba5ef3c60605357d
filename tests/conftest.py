"""Settings for every test."""

import torch

# The tests run side by side in several processes; each leaves the other cores to its neighbours.
torch.set_num_threads(1)
