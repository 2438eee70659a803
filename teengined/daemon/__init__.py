"""The `teengined` process: reads its configuration, wires the parts, supervises the workers. Imports no torch."""
