"""What may be asked for: models, parameters with their ranges, LoRAs."""
