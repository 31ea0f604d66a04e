"""One endless coroutine a file."""
