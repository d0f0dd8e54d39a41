"""Benchmarks: programs that are run from the root of the checkout, as in `python -m benchmarks.toy_posterior`.

Each file with a `main` is one program; its docstring says what it measures and how it is called. The files `vae_*.py`
(but `vae_speed.py`) are parts of `vae.py`, the files `speed_*.py` are parts of `speed.py`, and likewise
`posteriordb_*.py` and `autoguides_*.py`, whose cases run each in a `limited_process`. Open `toy_posterior.py` first.
"""
