"""A study: arms times seeds, run with common random numbers, compared by statistics fixed in advance.

config, arms   the study's file, checked
cells      its runs, and which are there
checks     what would make it fail, found before anything is trained
claim      whose folder it is, and what was changed after results had been read
estimate   what they will cost
local, ray_cluster   who runs them (ray_nodes, ray_worker: the cluster's machines, and what is sent to them)
run        runs what is missing
facts      reads finished runs, refuses what does not belong together
assemble   facts to `StudyResult`
read       results.json back to a `StudyResult`
compare    the same for a training loop of one's own
"""
