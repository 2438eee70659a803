"""PyTorch's `.pt` files, read without running what is in them: what they hold, and where it lies."""
