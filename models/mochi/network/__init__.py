"""The networks: text encoder, transformer, VAE decoder."""
