"""The layouts that are read and written, by the name of their tool."""

from feature_extraction.interop import anndata, clam, slide2vec, stamp, trident

READERS = {reader.name: reader for reader in (clam.READER, trident.READER, stamp.READER, slide2vec.READER)}
WRITERS = {writer.name: writer for writer in (clam.WRITER, trident.WRITER, stamp.WRITER, anndata.WRITER)}
