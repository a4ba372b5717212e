"""A page on which finished runs are looked at item by item."""
