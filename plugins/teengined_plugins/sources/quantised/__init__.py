"""Weights that a Hugging Face checkpoint stores quantised, unpacked one tensor at a time: a module for each family."""
