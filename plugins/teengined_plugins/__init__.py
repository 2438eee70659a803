"""Plugins that come with teengine: policies, precision strategies, transports and model sources."""
