"""icarus eval"""
