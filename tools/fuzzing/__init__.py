"""Parts of ``tools/fuzz.py``: mutations, what is done with a mutated file, and worker processes."""
