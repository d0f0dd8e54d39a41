"""Truths by importance sampling: independent draws from a density that was fitted to the posterior.

On much data a posterior is nearly normal. Independent draws then take some ten thousand evaluations of the log density,
where chains take millions of its gradient. Open `draws.py` first: it takes the draws and holds them to criteria.
`proposal.py` finds the modes and fits the density; `witness.py` runs a few short chains from dispersed starts, which
would find mass that the density has missed; `weighted.py` has quantiles and effective sample sizes.
"""
