"""How far estimators of mutual information are from what is true: exact critics, trained ones, and a peer's.

Commands, figures and what was not run: ``README.md`` beside this file.
"""
