"""Parts of tools/run_experiments.py: runs, processes, progress and results."""
