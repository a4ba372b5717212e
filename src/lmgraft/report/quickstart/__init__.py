"""The quickstart's table and page."""
