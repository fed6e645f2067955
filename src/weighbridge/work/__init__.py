"""Work on the rows of tensors: where they lie, how they are read, how work is cut, done in turn, and journalled.

Nothing here knows what is done with the rows: that is the engine's arithmetic, or the audit's own.
"""
