"""The library at work: a file's lines go through a model server that is slow, often full and sometimes ill."""
