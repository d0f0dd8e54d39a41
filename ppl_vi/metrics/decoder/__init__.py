"""Metrics of amortized guides, such as the encoder of a VAE, at single data points.

Open `gaps.py` first: it splits log p(x) - ELBO into the approximation gap and the amortization gap. `best_members.py`
finds the best member of the guide's family for each data point, with the help of the other files. `bounds.py` bounds
the gap where log p(x) is not known.
"""
