"""How a recipe names what lies on the hub: patterns of ids and commits."""

HUB_ID = r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}/[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}$"
REVISION = r"^[0-9a-f]{40}$"
