"""What is timed, against whom: ratios taken side by side, in interleaved rounds of one run."""
