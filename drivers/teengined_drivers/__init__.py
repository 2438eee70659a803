"""Drivers that come with teengine: one kind of device, one file."""
