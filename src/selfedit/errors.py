"""The one exception that every package may raise for a mistake of the user's.

Knows nothing of any package.  The command line turns a `UserError` into one line on standard error and exit code 2;
every other exception is a bug and keeps its traceback.
"""


class UserError(Exception):
    """A mistake that the user can mend: the message is one line that names what is wrong, where, and what to do."""
