"""The words of the domain: frozen values, ids, units and errors. Standard library only, no I/O."""
