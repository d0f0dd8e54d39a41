"""Sweeps: many models, guides, settings and seeds, in one file that survives whatever ends the program.

`running.py` has `sweep` and is the file to read first; `plan.py` says what is computed, `tasks.py` how, `store.py`
where it is kept, and `results.py` reads it.
"""
