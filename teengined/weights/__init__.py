"""Bring weights to where they are computed: resident units, the ring, expert caches, embedding rows. Imports torch."""
