"""What a traced program shows: its taps, and the noise of its arithmetic."""
