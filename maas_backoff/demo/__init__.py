"""The demo: the lines of a file go through a model server that is slow, often full and sometimes broken."""
