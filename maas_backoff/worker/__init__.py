"""The worker's half: it claims tasks, runs each as an attempt, and settles it. Begin with work.py."""
