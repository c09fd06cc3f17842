"""Two networks side by side: how each is run, how far apart their outputs are, and what is said of it."""
