"""Does a checkpoint serve: what a server's own loader makes of it, and whether the server then computes what it means.

The server lives in an environment of its own (`environment`); a client inside it is asked by files (`client`), its
answer is judged here (`loaded`, `agreement`) and put together as a report (`check`).
"""
