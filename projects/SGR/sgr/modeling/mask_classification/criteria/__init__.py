"""Matchers of predicted and true masks, and the losses between them."""
