"""The results as one HTML page that needs no network: of a comparison, of the benchmarks and of a sweep.

`parts` says what a page is made of, `comparison`, `decoder` and `sweep` make one of results, and `render` writes it.
"""
