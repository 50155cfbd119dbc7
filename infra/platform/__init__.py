"""What stands the platform up around the pipelines."""
