"""Finds the weights of a named model, and loads them."""
