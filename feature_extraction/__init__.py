"""From whole-slide images to embeddings in a cache that knows its space."""
