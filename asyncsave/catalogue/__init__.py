"""What a run has on disk: step folders with their manifests, what to keep of them, what to remove. No tensor."""
