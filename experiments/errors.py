"""The user's mistakes, told apart from ours."""


class UserError(Exception):
    """Something the user can mend: one sentence with what was expected, what came, and the remedy.

    The command prints it without a traceback and ends with status 2.
    """
