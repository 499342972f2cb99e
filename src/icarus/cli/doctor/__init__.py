"""icarus doctor"""
