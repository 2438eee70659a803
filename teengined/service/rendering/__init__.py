"""Rendering of chat templates: what a template is given, the sandbox it runs in, and the process around that."""
