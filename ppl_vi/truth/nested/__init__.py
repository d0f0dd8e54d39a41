"""Truths of hierarchies: inner latents are integrated out, and only the few outer ones are left.

Open `truth.py` first. `ppl_vi.target.factorisation` finds which latents are outer and which inner. The inner ones are
integrated out in closed form (`normal.py`) or in blocks of one or two numbers by quadrature (`blocks.py`, `modes.py`);
`marginal.py` makes a density of the outer ones of either, and `rejection.py` draws the inner ones of blocks. The outer
ones get importance draws and their criteria (`ppl_vi.truth.importance`), and a lattice integrates over up to five of
them (`lattice.py`).
"""
