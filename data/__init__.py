"""Images in, batches out: sources, the prepared cache, sampling, augmentation and the two loaders."""
