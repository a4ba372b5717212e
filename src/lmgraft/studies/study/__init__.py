"""A study: arms times seeds, run with common random numbers, compared by statistics fixed in advance.

config, arms   the study's file, checked
checks     what would make it fail, found before anything is trained
claim      whose folder it is, and what was changed after results had been read
estimate   what they will cost
run        its runs as cells of the engine; runs what is missing
facts      reads finished runs, refuses what does not belong together
costs      counted operations and timed steps of each arm, kept
assemble   facts to `StudyResult`, costs and words added last
read       results.json back to a `StudyResult`
compare    the same for a training loop of one's own
"""
