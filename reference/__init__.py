"""CLIP and each method the plain way, as upstream computes them.

Tests compare with it and bench/ times it. It imports torch and open_clip's tokenizer, and nothing
of this project.
"""
