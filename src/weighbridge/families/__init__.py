"""Families of models: names, layouts and what servers make of them, as data; one descriptor for each family.

Descriptors stand in ``descriptors/``, what several of them share in ``units/``; `descriptor` is their schema.
"""

from weighbridge.families.catalogue import UNKNOWN, descriptors, families, family_of
from weighbridge.families.descriptor import Experts, Merge, Role, Unquantized
from weighbridge.families.family import Family

__all__ = ["UNKNOWN", "Experts", "Family", "Merge", "Role", "Unquantized", "descriptors", "families", "family_of"]
