"""The token ids that mean the same to every architecture and every task. Imports nothing."""

PAD, BOS, EOS = 0, 1, 2
FIRST = 3
"""The first id without a meaning of its own."""
