"""`maas-backoff map`: a task for each line of a file, and a file with the results in the order of the lines."""
