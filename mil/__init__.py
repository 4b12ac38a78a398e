"""From embeddings and text to slide-level classifiers and heatmaps that add up to the prediction."""
