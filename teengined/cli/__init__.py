"""The `teengine` command. One file a verb; everything it knows about models comes through the client library."""
