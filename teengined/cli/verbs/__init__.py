"""One verb a file. `teengined.cli.main` names them; none is imported before it is called."""
