"""What every part of a recipe shares: strict models, and how hub ids and commits are written."""

from pydantic import BaseModel, ConfigDict

HUB_ID = r"^[A-Za-z0-9_][\w.-]{0,99}/[A-Za-z0-9_][\w.-]{0,99}$"
REVISION = r"^[0-9a-f]{40}$"


class Strict(BaseModel):
    """A model that takes no key it does not know, converts nothing, and does not change."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
