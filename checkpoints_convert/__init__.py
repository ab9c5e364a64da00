"""Convert PyTorch diffusion checkpoints into priors: one module per layout."""
