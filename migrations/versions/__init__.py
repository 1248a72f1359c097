"""The changes, each named by its date."""
