"""Stochastic variational inference: fits a guide family to all problems of a target, in many replicas together.

Open `fit.py` first: `fit` checks its arguments, runs the rounds of Adam's steps (`rounds.py`) until a convergence check
lets them end (`stopping.py`), and returns a `Fit` (`result.py`). `program.py` turns the model and the guide into pure
functions of parameters, data and noise, and the folder `engines` has what takes the steps. `minibatch.py` is apart from
all this: it trains a VAE on mini-batches.
"""
