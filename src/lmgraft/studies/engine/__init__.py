"""The experiment engine: of a grid's cells those that are missing are done, whoever does them, and each is said.

progress   what long work says, with the time left
missing    run what is missing: one loop for studies, scans, robustness suites, benchmarks and the quickstart
runs       a training as a cell: its recipe, its folder, and whether it is there
worker     one call in a process of its own
local      trainings in processes of this machine
cluster    trainings on a Ray cluster; machine is what each of its machines must have
signals    what SIGTERM and Ctrl-C do meanwhile
"""
