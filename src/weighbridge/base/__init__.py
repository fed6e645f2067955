"""The model that a checkpoint is made from: named, opened, identified by digest and lock."""
