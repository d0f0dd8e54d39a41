"""Metrics of guides of one latent number, by deterministic quadrature.

Open `divergence.py` first: each metric there is a small function of the densities on a `QuadratureGrid`, which
`grid.py` makes. `moments.py` has means, intervals and leaked mass, `scores.py` the family gap and the optimization gap,
and `best_member.py` the search for the family's best member.
"""
