"""Small models that are made on the spot."""
