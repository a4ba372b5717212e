"""The benchmark's table, charts, and the words of --explain."""
