"""Independent answers to a question, one file for each kind of program that gives them."""
