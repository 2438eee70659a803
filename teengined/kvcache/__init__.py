"""Blocks of KV by id: who holds them, and which prompts begin alike. Pure; tensors live in the engine."""
