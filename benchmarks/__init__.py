"""Benchmarks, one short program each: choose, run, show."""
