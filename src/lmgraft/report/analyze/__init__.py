"""The page, tables and figures of `lmgraft analyze`."""
