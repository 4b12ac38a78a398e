"""Who is train, val and test: split schemes, the split file, its guards, the files of other tools."""
