"""Comparisons: several guides fitted to one target and scored, with the curves and records of the result.

`ppl_vi.compare` and the benchmarks of the toy and of the zoo use this folder. Open `run.py` first: it fits and scores
one family after another. `comparison.py` has the result, `records.py` turns it into plain dicts, and `curves.py` and
`axes.py` compute what the figures of `ppl_vi.report` draw.
"""
