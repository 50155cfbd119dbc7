"""The commands of `forgeline`: a file for each group of them, which adds them to the parser by `add`.

Whatever is slow to import is imported where a command uses it: `forgeline --help` and `plan` answer at once.
"""
