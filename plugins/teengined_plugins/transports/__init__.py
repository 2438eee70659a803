"""Transports: how activations move from stage to stage."""
