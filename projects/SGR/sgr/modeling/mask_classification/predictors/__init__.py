"""Predictors turn learned queries into classes and masks."""
