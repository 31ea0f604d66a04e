"""The preflight: what is wrong with the server is named before any task is taken."""
