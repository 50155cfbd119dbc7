"""The standby: a process of `forgeline up` that has imported everything and forks, so that a run begins at once.

`circumstances.py` says who may be served; `server.py` is the process; `client.py` is the command that asks it.
"""
