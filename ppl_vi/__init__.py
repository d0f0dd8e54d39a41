"""The ruler for variational inference in Pyro."""

__version__ = "0.1.0"
