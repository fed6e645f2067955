"""Engines: what turns a planned source into quantized shards. Only here and in audit/ is torch imported."""
