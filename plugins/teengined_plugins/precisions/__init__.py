"""Precision strategies: how weights are stored and multiplied."""
