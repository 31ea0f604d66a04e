"""Small helpers that know nothing of tasks: a guard around other people's code, forks, cancellation, processes."""
