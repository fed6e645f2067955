"""The account: everything in a checkpoint, and what each of it was held against.

A server obeys every file, tensor and key that it finds, not those that somebody looked at. So each is in exactly one
state: held, the base's own, following from the scheme, harmless by a closed list, or not judged. What is not judged is
never part of a PASS that something was to be held against.
"""

from weighbridge.account.base import Base
from weighbridge.account.judge import judge
from weighbridge.account.model import Account, Judged, Kind, State
from weighbridge.account.section import account_section, unjudged

__all__ = ["Account", "Base", "Judged", "Kind", "State", "account_section", "judge", "unjudged"]
