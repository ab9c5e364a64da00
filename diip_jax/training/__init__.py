"""Train a prior on a folder of clean pictures: `python -m diip_jax.training --help`."""
