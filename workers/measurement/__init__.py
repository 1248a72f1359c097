"""What is measured, always on the delivered file: accuracy, size, operations, latency."""
