"""Claims put to the test: arms that differ in one thing, run under common random numbers."""
