"""The producer's half: creating tasks, reading them, waiting for them, and operations by hand."""
