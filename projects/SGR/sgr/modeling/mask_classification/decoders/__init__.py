"""Pixel decoders: a backbone's features to mask features."""
