"""Metrics of guides of any number of latents, by sums over weighted points and draws.

Open `scores.py` first: each metric there is a small function of a `SampledFit` (`sampled_fit.py`), which has the guides
on common noise nodes and the truth's weighted points. `importance.py` has the metrics that need only draws of the
guide, and `best_member.py` searches for the family's best member.
"""
