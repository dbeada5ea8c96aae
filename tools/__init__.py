"""The commands of the project. setup.py installs this folder as ``sgr.tools``."""
