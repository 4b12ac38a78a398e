"""Maps in a browser: one folder that opens without a network or a server, and a server for the pixels of big slides."""
