"""Numerical methods that know nothing of Pyro's models or guides.

Each file stands alone: quadrature rules (`rules.py`), Newton's method (`newton.py`), Laplace's approximation
(`laplace.py`), mixtures of Gaussian and Student t distributions, importance weights, KL divergences of Gaussians, and
`vmapping.py`, which runs one function for many inputs. Most of the package uses `vmapping.py`, so open that first.
"""
