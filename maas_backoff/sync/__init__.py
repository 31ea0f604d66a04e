"""The blocking facade: calls from threads, scripts, notebooks, Django and Flask."""
