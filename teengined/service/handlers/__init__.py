"""What the daemon does for each call, a file for each group of calls."""
