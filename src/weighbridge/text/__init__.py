"""Text that strangers wrote, read strictly: YAML, JSON, patterns."""
