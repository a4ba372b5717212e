"""Rooms as point clouds, and questions that someone in them asks: scanned ones and furnished ones."""
