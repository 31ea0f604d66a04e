"""The client half: creates tasks, reads them, waits for them, and runs operations."""
