"""Placement and scheduling policies, one module each."""
