"""Dictionaries as other libraries keep them on disk: read and written, one file for each format."""
