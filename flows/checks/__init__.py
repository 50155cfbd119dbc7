"""`forgeline doctor`: what of this machine and its surroundings works, and how to mend what does not.

A file for each thing that is looked at, each with a `checks` function; `check.py` runs them. Nothing that was there
before is changed: what is written to the store is removed again.
"""
