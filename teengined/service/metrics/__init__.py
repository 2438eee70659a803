"""What a monitoring program reads of a daemon: counted where it happens, collected when it is asked for."""
