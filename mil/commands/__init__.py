"""Entry points, one command a file: the only rooms of this package that see Hydra's configuration."""
