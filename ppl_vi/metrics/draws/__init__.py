"""Metrics of draws from any system against the truth, with standard errors that count the draws' autocorrelation."""
