"""Other engines, each run by the Python of its own environment: nothing here imports the project, nor the reverse."""
