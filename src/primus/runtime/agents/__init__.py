"""The agent of a node: starts ranks, watches them, starts them again."""
