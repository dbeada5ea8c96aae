"""Reads the ground truth of one image, for mappers, evaluators and the checker."""
