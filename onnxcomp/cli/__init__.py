"""The command line: arguments in, a call of the library, an exit code out."""
