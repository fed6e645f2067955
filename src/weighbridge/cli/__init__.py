"""The commands: they parse arguments, call the package, print, and choose the exit code."""
