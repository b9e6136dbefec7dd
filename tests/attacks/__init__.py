"""Attacks on the scripts by the files and words that they take: what is tried, and how the table of it is made.

`python -m tests.attacks` runs all of them and writes the table of docs/security.md. A payload that is run makes
the file `executed`; a file beside the attacked folder must not change.
"""
