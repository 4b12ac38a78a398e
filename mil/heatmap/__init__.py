"""Where on the slide a prediction comes from: tile tables, how faithful they are, and their pictures."""
