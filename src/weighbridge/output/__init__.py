"""A directory that comes into being whole: claimed, staged, laid out, renamed."""
