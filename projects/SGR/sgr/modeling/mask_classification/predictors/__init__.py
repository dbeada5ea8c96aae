"""Predictors: queries to classes and masks."""
