"""Wire messages and their bytes. No sockets, no clocks."""
