"""icarus demo"""
