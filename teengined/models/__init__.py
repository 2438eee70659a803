"""Stages of transformers models: their own classes on the meta device, with our weights, attention and experts."""
