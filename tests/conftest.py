"""What every test runs under."""

import matplotlib
import torch

matplotlib.use("Agg")  # figures need no screen
torch.set_num_threads(1)  # the tests already share the cores among them
