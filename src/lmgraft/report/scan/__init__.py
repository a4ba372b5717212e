"""A scan's page, tables and figures, and what its numbers say in sentences."""
