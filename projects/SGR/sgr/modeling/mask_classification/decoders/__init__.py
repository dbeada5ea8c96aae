"""Pixel decoders turn a backbone's features into mask features."""
