"""Truths by reference draws: long chains of Hamiltonian Monte Carlo, where quadrature does not reach.

Open `reference.py` first: it runs the chains (`sampler.py`, `leapfrog.py`) and holds them to the criteria of
`criteria.py`. `bridge.py` computes log p(x) from the draws, `reparametrisation.py` and `site_terms.py` find coordinates
in which chains move well through a hierarchy, and `cache.py` keeps the draws for later runs.
"""
