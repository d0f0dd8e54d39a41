"""Models to measure guides on, one file each: the Pyro model, its targets, its source."""
