"""Truths of targets with a decoder, such as a VAE: log p(x) of every data point.

Open `evidence.py` first: it computes log p(x) for up to three latents by two quadrature rules, an adaptive tree of
cells (`tree.py`, `cells.py`) and a lattice (`lattice.py`), and looks for modes that both may have missed (`modes.py`).
`annealing.py` bounds log p(x) for any number of latents by annealed importance sampling, with the chains of `hmc.py`.
"""
