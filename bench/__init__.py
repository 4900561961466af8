"""Measures a running service: open-loop load, comparisons of runs, plots. Nothing of the service imports it."""
