"""Greedy answers to a test set, through a gateway or by the reference, and their score."""
