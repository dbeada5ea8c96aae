"""Augmentations of an image together with its labels."""
