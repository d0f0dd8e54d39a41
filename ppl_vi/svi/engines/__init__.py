"""Engines: the three implementations of SVI's steps, and the choice among them.

Open `choice.py` first: it says which engine is taken, and why. `step.py` has one step as a function of plain tensors.
`batched.py` runs that step operation by operation, `compiled.py` turns it into machine code, and `pyro.py` runs Pyro's
own `SVI`. `memory.py` and `portion.py` bound how much is computed in one call, and `probe.py` lends an engine's step to
the convergence checks.
"""
