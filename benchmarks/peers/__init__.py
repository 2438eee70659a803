"""Other engines, each run by the Python of its own environment: nothing here imports the project, or is imported by it."""
