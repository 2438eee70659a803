"""Bring weights to where they are computed: resident units, the streaming ring, embedding rows. Imports torch."""
