"""A trained model evaluated again under other conditions than its test items', by its own task.

suite.py   what a suite is: conditions, what is needed for them, what sums them up
cells.py   what came of each condition, kept in a run's robustness.json
paired.py  what is lost, item by item
run.py     conditions as cells of the engine
suites/    the suites that know their kind of item
"""
