"""What `icarus bench` measures: one benchmark a file, and the few pieces that they share."""
