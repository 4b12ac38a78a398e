"""Drawn tissue: slides with known truth for the demo, the tests, and the training of the demo encoder."""
