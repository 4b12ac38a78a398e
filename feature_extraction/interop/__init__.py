"""Other tools' feature folders: a file for each layout, joined to ours by `importing` and `exporting`."""
