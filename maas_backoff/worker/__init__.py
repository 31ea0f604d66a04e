"""The worker's half of the library: claim tasks, run each as an attempt, settle the attempt. Begin with work.py."""
