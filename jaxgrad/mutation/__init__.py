"""Would the check have noticed? A backward pass with one mistake at a time, and how many of them a check kills."""
