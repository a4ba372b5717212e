"""Numbers -> tables, figures and pages. Computes nothing: what is shown was measured elsewhere."""
