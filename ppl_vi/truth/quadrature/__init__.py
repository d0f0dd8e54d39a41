"""Truths by quadrature, for up to three latent numbers of any model.

Open `adaptive.py` first: it integrates over two or three numbers by a tree of bricks (`tree.py`, `bricks.py`, `box.py`)
in coordinates of its own (`standardized.py`), and confirms the result by a search for modes (`search.py`) and by
`cross_checks.py`. `one_number.py` integrates over a single number. `conditional.py` integrates over a few outer latents
where all others are known exactly given these.
"""
