"""What `icarus bench` measures: a benchmark a file or folder, and the few pieces that they share."""
