"""One question, pulled by every engine, compared and explained: is this gradient right?"""
