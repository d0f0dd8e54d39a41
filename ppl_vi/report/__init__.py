"""Tables, figures and files made from the records and curves of a comparison.

Open `columns.py` first: it says what each column of a table shows. `table.py` prints a comparison of guides, `plots.py`
and `model_plots.py` draw it, `matrix.py` shows many models at once, and `decoder_table.py` and `decoder_plots.py` show
a VAE. `files.py` writes JSON, CSV and PNG files, and `datatree.py` makes the `DataTree` that ArviZ reads.
"""
