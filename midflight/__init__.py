"""Midflight listens to an email campaign while it is being sent, and changes the rest of the send."""

__version__ = "0.1.0"
