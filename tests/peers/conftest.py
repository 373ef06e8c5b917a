"""How the references run beside the tests of other workers."""

import torch

# More threads than free cores wait for each other at every operation: fifty small steps took three minutes.
torch.set_num_threads(1)
