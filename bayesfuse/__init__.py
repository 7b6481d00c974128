"""Placeholder docstring until the public names exist."""
