"""The machine that this runs on: files and their identity, the user's cache, memory."""
