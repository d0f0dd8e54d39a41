"""Approximations from other systems, one file a system: each imports its system when a function is called.

What they return is an `Approximation`, which `ppl_vi.measure` takes. Nothing else of ppl_vi imports them.
"""
