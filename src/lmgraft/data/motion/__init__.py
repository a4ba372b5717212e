"""Traffic scenes: files of recorded or simulated drives to batches of agents' tracks and lanes, and what comes next."""
