"""The worker process of one device: stages, sampling, and the loop between the daemon's socket and the arithmetic."""
