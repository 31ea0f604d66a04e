"""The preflight: checks the server before a worker claims the first task."""
