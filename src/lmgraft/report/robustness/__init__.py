"""Robustness suites: the table, its JSON, the figure."""
