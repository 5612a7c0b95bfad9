"""Tasks: one file = one task, found by its name; each defines a frozen dataclass `class Config(Task)`."""
