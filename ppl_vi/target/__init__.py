"""The target: a user's Pyro model with its data, made ready for exact computations.

Open `target.py` first: `Target` gives the log joint density, the latent sites and their map to unconstrained space.
`preparation.py` lists what is done to a user's model before (discrete latents are summed out, densities end where their
supports end). `inspection.py` refuses models that can't be used, and all code of a user's runs through `isolation.py`.
"""
