"""icarus bench"""
