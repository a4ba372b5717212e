"""Claims put to the test: arms that differ in one thing, run under common random numbers.

engine       a grid's cells, those that are missing done by whoever does them; the others are plans on it:
study        arms times seeds, compared by statistics that are fixed in advance
scan         scores and short trainings of many blocks and places
robustness   a trained model under other conditions
bench        what a block costs
quickstart   three arms and a page
"""
