"""Pages to read in a browser: self-contained, light and dark, on any screen."""
