"""Colours of pictures, told apart with any colour vision."""

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8A8A8A")
"""Okabe and Ito's; where lines share an axis their markers differ too."""
INK, SOFT, LINE = "#1c2530", "#5c6773", "#dfe4e9"
"""Text, text beside it, rules."""
SUPPORT, AGAINST = (230, 97, 1), (94, 60, 153)
"""For and against a class, as red, green, blue: orange and purple."""
