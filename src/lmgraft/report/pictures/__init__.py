"""Pictures of items with what a model makes of them, a file for each kind of item."""
