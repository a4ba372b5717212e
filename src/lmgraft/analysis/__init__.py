"""Models and runs -> numbers. Draws nothing and trains nothing."""
