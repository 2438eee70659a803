"""teengine: run language models larger than any one device, on the devices you already have."""

__all__ = ["__version__"]

__version__ = "0.1.0"
