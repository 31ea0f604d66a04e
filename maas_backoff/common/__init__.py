"""Small helpers that do not use tasks: a guard around users' code, forks, cancellation, processes."""
